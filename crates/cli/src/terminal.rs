//! The terminal of whoever runs this command, as a command in a sandbox sees it.

use std::io::IsTerminal as _;

use palisade_worker::perimeter::TerminalSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Standard input without the terminal's own line editing, until it is dropped: whatever way that happens.
pub(crate) struct Raw(Option<Termios>);

impl Raw {
    /// Changes nothing when standard input is no terminal.
    pub(crate) fn begin() -> Raw {
        let stdin = std::io::stdin();
        let Ok(before) = tcgetattr(&stdin) else { return Raw(None) };
        let mut raw = before.clone();
        raw.make_raw();
        // What cannot be changed is as it was.
        let changed = tcsetattr(&stdin, OptionalActions::Now, &raw).is_ok();
        Raw(changed.then_some(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Whether somebody sits at both ends.
pub(crate) fn is_interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

/// The terminal's size; that of the terminals of old where there is none.
pub(crate) fn size() -> TerminalSize {
    match tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => TerminalSize { rows: size.ws_row, cols: size.ws_col },
        _ => TerminalSize { rows: 24, cols: 80 },
    }
}

/// Looks for the keys that let go of a command: control-p, control-q.
#[derive(Default)]
pub(crate) struct Escape {
    held: bool,
}

impl Escape {
    const FIRST: u8 = 0x10;
    const SECOND: u8 = 0x11;

    /// What of the typed bytes is for the command; none at the end of it, when the keys were typed.
    pub(crate) fn typed(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut through = Vec::with_capacity(bytes.len() + 1);
        for &byte in bytes {
            if self.held && byte == Self::SECOND {
                return (through, true);
            }
            if std::mem::take(&mut self.held) {
                through.push(Self::FIRST);
            }
            if byte == Self::FIRST {
                self.held = true;
            } else {
                through.push(byte);
            }
        }
        (through, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_both_keys_together_let_go() {
        let mut escape = Escape::default();
        assert_eq!(escape.typed(b"ab\x11c"), (b"ab\x11c".to_vec(), false));
        assert_eq!(escape.typed(b"a\x10"), (b"a".to_vec(), false));
        assert_eq!(escape.typed(b"b\x10\x10"), (b"\x10b\x10".to_vec(), false));
        assert_eq!(escape.typed(b"\x11rest"), (Vec::new(), true));
    }
}
