//! A value on its way into the sealed file. It is read without a buffer that would keep a copy, and zeroed when dropped.

use std::fs::File;
use std::io::{IsTerminal as _, Read};
use std::os::fd::AsFd;
use std::path::Path;

use palisade_api::Secret;
use palisade_vault::MAX_SECRET_BYTES;
use rustix::io::Errno;
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use crate::output::{Failure, Outcome};

/// Reads a value from a file, from standard input, or from whoever sits at the terminal.
pub(super) fn read(name: &str, from: Option<&Path>) -> Outcome<Secret> {
    let failed = || Failure::new(format!("the value of {name} cannot be read"));
    if let Some(path) = from {
        let read = File::open(path).and_then(whole);
        let bytes = read.map_err(|why| {
            failed().why(format!("{}: {why}", path.display())).fix("name a file that holds nothing but the value")
        })?;
        return checked(name, &bytes);
    }
    let stdin = std::io::stdin();
    let bytes = if stdin.is_terminal() {
        prompt(name, &stdin)?
    } else {
        whole(Unbuffered(&stdin)).map_err(|why| failed().why(why))?
    };
    checked(name, &bytes)
}

/// Text without the one line end that editors and `echo` add.
fn checked(name: &str, bytes: &[u8]) -> Outcome<Secret> {
    let failed = |why: String, fix: &str| Failure::new(format!("the value of {name} cannot be kept")).why(why).fix(fix);
    if bytes.len() > MAX_SECRET_BYTES {
        return Err(failed(
            format!("it has more than {} KiB", MAX_SECRET_BYTES >> 10),
            "keep nothing but the secret there",
        ));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|_| failed("it is no text in UTF-8".to_owned(), "keep binary values as base64"))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let secret = Secret::new(text.strip_suffix('\r').unwrap_or(text));
    if secret.is_blank() {
        return Err(failed("it is empty".to_owned(), "give it on standard input, at the prompt, or with --from-file"));
    }
    Ok(secret)
}

/// All there is, up to one byte more than may be. The room is had at once: what grows leaves its former self behind in memory.
fn whole(from: impl Read) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET_BYTES + 64));
    from.take(MAX_SECRET_BYTES as u64 + 3).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Standard input without the library's buffer.
struct Unbuffered<'a>(&'a std::io::Stdin);

impl Read for Unbuffered<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match rustix::io::read(self.0.as_fd(), &mut *into) {
                Err(Errno::INTR) => {}
                read => return read.map_err(Into::into),
            }
        }
    }
}

/// A terminal that shows nothing of what is typed, until it is dropped. What was typed or pasted and not read is thrown away then,
/// so that the rest of a value of several lines does not become commands of a shell.
struct Silent<'a> {
    terminal: &'a std::io::Stdin,
    before: Termios,
}

impl<'a> Silent<'a> {
    fn begin(terminal: &'a std::io::Stdin) -> rustix::io::Result<Silent<'a>> {
        let before = tcgetattr(terminal)?;
        let mut silent = before.clone();
        // Byte by byte, as lines are cut at 4 KiB; and no signals, as they would end the process with the terminal left silent.
        silent.local_modes.remove(LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG);
        silent.special_codes[SpecialCodeIndex::VMIN] = 1;
        silent.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(terminal, OptionalActions::Flush, &silent)?;
        Ok(Silent { terminal, before })
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}

/// Asks at the terminal, without an echo.
fn prompt(name: &str, terminal: &std::io::Stdin) -> Outcome<Zeroizing<Vec<u8>>> {
    let failed = || Failure::new(format!("the value of {name} cannot be asked for"));
    let (typed, given_up) = {
        let _silent = Silent::begin(terminal).map_err(|why| {
            failed().why(format!("the terminal cannot be kept from showing it: {why}")).fix("give it on standard input")
        })?;
        say(&format!("value of {name} (not shown; return ends it): "));
        line(Unbuffered(terminal)).map_err(|why| failed().why(why))?
    };
    say("\n");
    if given_up {
        return Err(failed().why("it was given up"));
    }
    Ok(typed)
}

#[expect(clippy::print_stderr, reason = "a prompt is no result")]
fn say(text: &str) {
    eprint!("{text}");
}

/// What is typed up to the end of the line, and whether whoever typed gave up.
fn line(mut from: impl Read) -> std::io::Result<(Zeroizing<Vec<u8>>, bool)> {
    const INTERRUPT: u8 = 0x03;
    const END: u8 = 0x04;
    const BACKSPACE: u8 = 0x08;
    const CLEAR: u8 = 0x15;
    const DELETE: u8 = 0x7f;
    let mut typed = Zeroizing::new(Vec::with_capacity(MAX_SECRET_BYTES + 64));
    let mut piece = Zeroizing::new([0; 256]);
    loop {
        let read = from.read(&mut *piece)?;
        if read == 0 {
            return Ok((typed, false));
        }
        for &byte in &piece[..read] {
            match byte {
                b'\n' | b'\r' | END => return Ok((typed, false)),
                INTERRUPT => return Ok((typed, true)),
                CLEAR => typed.clear(),
                BACKSPACE | DELETE => {
                    // A character of several bytes goes as a whole.
                    while typed.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
                }
                // One more than may be is kept, so that it is refused rather than cut.
                byte if typed.len() <= MAX_SECRET_BYTES => typed.push(byte),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_edited_as_it_is_typed() {
        let typed = |keys: &[u8]| {
            let (typed, given_up) = line(keys).unwrap();
            (String::from_utf8(typed.to_vec()).unwrap(), given_up)
        };
        assert_eq!(typed(b"abc\rrest"), ("abc".to_owned(), false));
        assert_eq!(typed("x\x15aé\x7f\x08\x7f\x7fyes\n".as_bytes()), ("yes".to_owned(), false));
        assert_eq!(typed(b"ab\x03cd\n"), ("ab".to_owned(), true));
        assert_eq!(typed(b"ab"), ("ab".to_owned(), false));
        assert!(checked("x", &typed(&b"y".repeat(MAX_SECRET_BYTES + 9)).0.into_bytes()).is_err());
    }

    #[test]
    fn one_line_end_is_no_part_of_a_value() {
        for (bytes, value) in [(&b"v\n"[..], "v"), (b"v\r\n", "v"), (b"a\nb\n\n", "a\nb\n"), (b" v ", " v ")] {
            assert_eq!(checked("x", bytes).unwrap().expose(), value);
        }
        for bytes in [&b""[..], b"\n", b" \n", b"\xff"] {
            assert!(checked("x", bytes).is_err());
        }
    }
}
