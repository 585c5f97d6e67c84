//! The persistent shell behind the `bash` tool.
//!
//! Commands reach the shell through its standard input as one `eval` of a quoted string, so that a command can neither
//! swallow what follows it nor leave a quote open. Their exit status comes back on a pipe of its own that is closed while
//! they run, with a number that they cannot know: output cannot pass for it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::reaper;
use crate::sys::check;
use crate::tools::Output;

/// What is kept of a command's output.
const KEPT: usize = 100 << 10;
/// The most that a caller may wait for one command.
const MAX_TIMEOUT: Duration = Duration::from_secs(3600);

/// The shell of this sandbox.
pub(crate) struct Shell {
    env: Vec<(String, String)>,
    /// One command at a time.
    live: Mutex<Option<Live>>,
    /// The call that runs and its shell, for those who want to end it.
    running: Mutex<Option<(u64, i32, bool)>>,
    /// Calls that were given up before they began.
    cancelled: Mutex<Vec<u64>>,
}

struct Live {
    pid: i32,
    stdin: OwnedFd,
    output: OwnedFd,
    status: OwnedFd,
}

impl Drop for Live {
    fn drop(&mut self) {
        reaper::kill_tree(self.pid);
    }
}

enum Ended {
    Status(i32),
    Gone,
    TimedOut,
}

impl Shell {
    pub(crate) fn new(env: Vec<(String, String)>) -> Shell {
        Shell { env, live: Mutex::new(None), running: Mutex::new(None), cancelled: Mutex::new(Vec::new()) }
    }

    /// Ends a call, if it is the one that runs.
    pub(crate) fn cancel(&self, id: u64) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        match running.as_mut() {
            Some((call, pid, cancelled)) if *call == id => {
                *cancelled = true;
                reaper::kill_tree(*pid);
            }
            _ => {
                let mut waiting = self.cancelled.lock().unwrap_or_else(PoisonError::into_inner);
                if waiting.len() < 1024 {
                    waiting.push(id);
                }
            }
        }
    }

    fn was_cancelled(&self, id: u64) -> bool {
        let mut waiting = self.cancelled.lock().unwrap_or_else(PoisonError::into_inner);
        let before = waiting.len();
        waiting.retain(|call| *call != id);
        waiting.len() != before
    }

    fn start(&self) -> io::Result<Live> {
        let (out_read, out_write) = pipe()?;
        let (status_read, status_write) = pipe()?;
        let (in_read, in_write) = pipe()?;
        let program = ["/bin/bash", "/usr/bin/bash"].into_iter().find(|path| std::path::Path::new(path).exists());
        let program = program.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "there is no /bin/bash in this sandbox's root file system")
        })?;
        let errors = out_write.try_clone()?;
        let status: RawFd = status_write.as_raw_fd();
        let mut command = Command::new(program);
        command
            .args(["--noprofile", "--norc"])
            .env_clear()
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .env("PS1", "")
            .env("PS2", "")
            .current_dir("/workspace")
            .stdin(Stdio::from(in_read))
            .stdout(Stdio::from(out_write))
            .stderr(Stdio::from(errors));
        // SAFETY: between fork and exec only async-signal-safe calls are made, on numbers captured before.
        unsafe {
            command.pre_exec(move || {
                check(libc::setsid().into())?;
                check(libc::dup2(status, STATUS).into())?;
                Ok(())
            });
        }
        let (child, _) = reaper::spawn(&mut command)?;
        drop(status_write);
        let live = Live {
            pid: i32::try_from(child.id()).unwrap_or(-1),
            stdin: in_write,
            output: out_read,
            status: status_read,
        };
        nonblocking(&live.output)?;
        nonblocking(&live.status)?;
        Ok(live)
    }
}

/// The shell's descriptor for exit statuses. Bash keeps its own descriptors above 9, so this one is free.
const STATUS: RawFd = 9;

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for the two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }.into())?;
    // SAFETY: both were just made and belong to nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

fn nonblocking(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }.into()).map(drop)
}

/// Runs the tool.
pub(crate) fn bash(shell: &Shell, id: u64, input: &Value, limit: Duration) -> Output {
    let restart = input["restart"].as_bool().unwrap_or(false);
    let command = match &input["command"] {
        Value::String(command) if !command.trim().is_empty() => Some(command.as_str()),
        Value::Null | Value::String(_) => None,
        _ => return Output::error("bash: command must be a string"),
    };
    if command.is_none() && !restart {
        return Output::error("bash: command is required");
    }
    let timeout = match &input["timeout_ms"] {
        Value::Null => limit,
        value => match value.as_u64() {
            Some(ms) if ms > 0 => Duration::from_millis(ms).min(limit.max(Duration::from_millis(1))),
            _ => return Output::error("bash: timeout_ms must be a positive number of milliseconds"),
        },
    }
    .min(MAX_TIMEOUT);
    let mut live = shell.live.lock().unwrap_or_else(PoisonError::into_inner);
    if shell.was_cancelled(id) {
        return Output::error("bash: cancelled");
    }
    if restart {
        *live = None;
    }
    let Some(command) = command else { return Output::text("bash: session restarted") };
    if command.contains('\0') {
        return Output::error("bash: command must not contain NUL bytes");
    }
    let current = match live.take().map_or_else(|| shell.start(), Ok) {
        Ok(current) => current,
        Err(why) => return Output::error(format!("bash: the shell could not be started: {why}")),
    };
    *shell.running.lock().unwrap_or_else(PoisonError::into_inner) = Some((id, current.pid, false));
    let mut kept = Kept::default();
    let ended = run(&current, command, timeout, &mut kept);
    let cancelled = matches!(
        shell.running.lock().unwrap_or_else(PoisonError::into_inner).take(),
        Some((_, _, true))
    );
    let text = kept.text();
    match ended {
        _ if cancelled => Output::error("bash: cancelled"),
        Ok(Ended::Status(code)) => {
            *live = Some(current);
            match (code, text.is_empty()) {
                (0, true) => Output::text("(no output)"),
                (0, false) => Output::text(text),
                (code, true) => Output::error(format!("exit {code}")),
                (_, false) => Output::error(text),
            }
        }
        Ok(Ended::Gone) if text.is_empty() => Output::error("bash: bash session terminated"),
        Ok(Ended::Gone) => Output::error(format!("{text}\nbash: bash session terminated")),
        Ok(Ended::TimedOut) => {
            let said = format!("bash: bash command timed out after {}ms", timeout.as_millis());
            Output::error(if text.is_empty() { said } else { format!("{text}\n{said}") })
        }
        Err(why) => Output::error(format!("bash: {why}")),
    }
}

fn run(live: &Live, command: &str, timeout: Duration, kept: &mut Kept) -> io::Result<Ended> {
    let nonce = nonce()?;
    let quoted = command.replace('\'', r"'\''");
    // One line of the shell's own grammar: it is read whole before any of it runs.
    let line = format!("eval '{quoted}' </dev/null {STATUS}>&-; builtin printf '%s %s\\n' {nonce} \"$?\" >&{STATUS}\n");
    let deadline = Instant::now() + timeout;
    let mut unsent = line.as_bytes();
    // Writing may block when the command is longer than a pipe and the shell is not reading; do it in pieces.
    nonblocking(&live.stdin)?;
    let mut status = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Ended::TimedOut);
        }
        let mut watched = [
            libc::pollfd { fd: live.output.as_raw_fd(), events: libc::POLLIN, revents: 0 },
            libc::pollfd { fd: live.status.as_raw_fd(), events: libc::POLLIN, revents: 0 },
            libc::pollfd { fd: live.stdin.as_raw_fd(), events: libc::POLLOUT, revents: 0 },
        ];
        let count = if unsent.is_empty() { 2 } else { 3 };
        let ms = i32::try_from(left.as_millis().max(1)).unwrap_or(i32::MAX);
        // SAFETY: the array is longer than the count that is passed.
        let ready = unsafe { libc::poll(watched.as_mut_ptr(), count, ms) };
        if ready < 0 {
            let why = io::Error::last_os_error();
            if why.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(why);
        }
        if watched[0].revents != 0 {
            drain(&live.output, kept)?;
        }
        if count == 3 && watched[2].revents & libc::POLLERR != 0 {
            return Ok(Ended::Gone);
        }
        if count == 3 && watched[2].revents != 0 {
            match write(&live.stdin, unsent) {
                Ok(written) => unsent = &unsent[written..],
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Ok(Ended::Gone),
            }
        }
        if watched[1].revents != 0 {
            let mut buffer = [0; 256];
            match read(&live.status, &mut buffer) {
                // Only the shell holds the other end between commands: it is gone.
                Ok(0) => {
                    drain(&live.output, kept)?;
                    return Ok(Ended::Gone);
                }
                Ok(got) => status.extend_from_slice(&buffer[..got]),
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
                Err(why) => return Err(why),
            }
            if let Some(code) = parse(&status, &nonce) {
                drain(&live.output, kept)?;
                return Ok(Ended::Status(code));
            }
            // Nobody but a forger writes more than one line.
            if status.len() > 4096 {
                status.clear();
            }
        }
    }
}

fn parse(status: &[u8], nonce: &str) -> Option<i32> {
    let text = std::str::from_utf8(status).ok()?;
    text.lines().find_map(|line| line.strip_prefix(nonce)?.strip_prefix(' ')?.parse().ok())
}

fn nonce() -> io::Result<String> {
    let mut bytes = [0; 16];
    // SAFETY: the buffer is as long as the length says.
    check(unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) } as libc::c_long)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn read(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is as long as the length says.
    let read = check(unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) } as libc::c_long)?;
    Ok(usize::try_from(read).unwrap_or(0))
}

fn write(fd: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the buffer is as long as the length says.
    let wrote = check(unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) } as libc::c_long)?;
    Ok(usize::try_from(wrote).unwrap_or(0))
}

/// Takes what is there. A background job may write for ever, so no more than a few buffers are taken at a time.
fn drain(fd: &OwnedFd, kept: &mut Kept) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    for _ in 0..16 {
        match read(fd, &mut buffer) {
            Ok(0) => return Ok(()),
            Ok(got) => kept.add(&buffer[..got]),
            Err(why) if why.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(why) => return Err(why),
        }
    }
    Ok(())
}

/// The end of a command's output.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    cut: bool,
}

impl Kept {
    fn add(&mut self, more: &[u8]) {
        self.bytes.extend_from_slice(more);
        // Cut now and then rather than at each read; escape sequences are removed later and do not count.
        if self.bytes.len() > 4 * KEPT {
            self.bytes.drain(..self.bytes.len() - 2 * KEPT);
            self.cut = true;
        }
    }

    fn text(mut self) -> String {
        let mut plain = strip_escapes(&self.bytes);
        if plain.len() > KEPT {
            plain.drain(..plain.len() - KEPT);
            // Do not begin in the middle of a character.
            let start = plain.iter().take(4).position(|byte| byte & 0xc0 != 0x80).unwrap_or(0);
            plain.drain(..start);
            self.cut = true;
        }
        let text = String::from_utf8_lossy(&plain);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        if self.cut { format!("[output truncated]\n{text}") } else { text.to_owned() }
    }
}

/// Removes terminal escape sequences and other control characters: whoever looks at a log must see what was printed.
pub(crate) fn strip_escapes(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match byte {
            0x1b => {
                rest = match tail.first() {
                    // Control sequence: parameters, then one final byte.
                    Some(b'[') => {
                        let end = tail[1..].iter().position(|byte| (0x40..=0x7e).contains(byte));
                        end.map_or(&[][..], |end| &tail[end + 2..])
                    }
                    // Strings: until BEL or ESC \.
                    Some(b']' | b'P' | b'X' | b'^' | b'_') => {
                        let bell = tail.iter().position(|&byte| byte == 0x07).map(|at| at + 1);
                        let close = tail.windows(2).position(|pair| pair == b"\x1b\\").map(|at| at + 2);
                        let end = match (bell, close) {
                            (Some(a), Some(b)) => Some(a.min(b)),
                            (a, b) => a.or(b),
                        };
                        end.map_or(&[][..], |end| &tail[end..])
                    }
                    // A character set: two bytes.
                    Some(b'(' | b')' | b'*' | b'+' | b'#' | b'%' | b' ') => tail.get(2..).unwrap_or(&[]),
                    Some(_) => &tail[1..],
                    None => tail,
                };
            }
            b'\n' | b'\t' => plain.push(byte),
            b'\r' => {
                if tail.first() != Some(&b'\n') {
                    plain.push(b'\n');
                }
            }
            0x00..=0x1f | 0x7f => {}
            _ => plain.push(byte),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_removed() {
        assert_eq!(strip_escapes(b"\x1b[31mred\x1b[0m\x1b]0;title\x07 a\x08b\x1b(B\r\nc\x1b"), b"red ab\nc");
        assert_eq!(strip_escapes("ü\x1bPq\x1b\\ß".as_bytes()), "üß".as_bytes());
    }

    #[test]
    fn a_status_needs_its_nonce() {
        assert_eq!(parse(b"forged 0\nabc 7\n", "abc"), Some(7));
        assert_eq!(parse(b"abd 0\n", "abc"), None);
    }
}
