//! How an attempt ended.

use std::io::Write;
use std::process::ExitCode;

use crate::sys::Errno;

/// How an attempt ended, as far as the one who made it can tell.
#[derive(Debug)]
pub(crate) enum Said {
    /// It was refused, and how.
    Refused(String),
    /// It succeeded, with what.
    Through(String),
    /// It could not be made, or its end is for others to see.
    Unclear(String),
}

impl Said {
    /// Says it in one line.
    pub(crate) fn tell(&self) -> ExitCode {
        let (word, text, code) = match self {
            Said::Refused(how) => ("refused", how, 0),
            Said::Through(what) => ("through", what, 1),
            Said::Unclear(why) => ("unclear", why, 2),
        };
        // Without a reader the exit status says it.
        let _ = writeln!(std::io::stdout(), "{word}: {}", text.replace('\n', " "));
        ExitCode::from(code)
    }

    /// What a failed step makes of the attempt: a refusal where the system says no, else nothing can be told from it.
    pub(crate) fn from_error(what: &str, why: Errno) -> Said {
        let text = if what.is_empty() { why.to_string() } else { format!("{what}: {why}") };
        if why.is_refusal() { Said::Refused(text) } else { Said::Unclear(text) }
    }
}

/// A call that must not be granted.
pub(crate) fn denied(result: Result<usize, Errno>) -> Said {
    denied_or(result, &[])
}

/// The same, where some errors come only after the right to make the call has been checked: they are successes.
pub(crate) fn denied_or(result: Result<usize, Errno>, proof: &[i32]) -> Said {
    match result {
        Ok(value) => Said::Through(format!("granted, with {value}")),
        Err(why) if proof.contains(&why.0) => Said::Through(format!("past the check of rights, to {why}")),
        Err(why) => Said::from_error("", why),
    }
}

/// Steps in a row: the first that is refused decides.
pub(crate) fn steps(attack: impl FnOnce() -> Result<Said, Said>) -> Said {
    attack().unwrap_or_else(|said| said)
}
