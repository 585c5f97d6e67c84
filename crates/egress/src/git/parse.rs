//! The command list of a push (gitprotocol-pack(5), "Reference Update Request and Packfile Transfer").

use super::rules::is_ref;

/// The most commands in one push, and the most bytes that the list may have.
const COMMANDS: usize = 4096;
const BYTES: usize = 1 << 20;

/// One command: a ref, and what it is to change from and to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefUpdate {
    /// What it is thought to be now; all zeros if it is not there.
    pub old: String,
    /// What it is to be; all zeros if it is to go.
    pub new: String,
    /// Its full name.
    pub name: String,
}

impl RefUpdate {
    /// Whether the ref is to be made.
    pub fn is_create(&self) -> bool {
        is_zero(&self.old) && !is_zero(&self.new)
    }

    /// Whether the ref is to go.
    pub fn is_delete(&self) -> bool {
        is_zero(&self.new)
    }
}

fn is_zero(id: &str) -> bool {
    id.bytes().all(|byte| byte == b'0')
}

/// A whole list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Commands {
    /// The commands. None when git only asks whether it may push (`0000`).
    pub updates: Vec<RefUpdate>,
    /// What the client can do.
    pub capabilities: Vec<String>,
    /// How many bytes of the body the list took, the flush included. A pack or options follow.
    pub length: usize,
}

impl Commands {
    /// Whether the client named a capability.
    pub fn has(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|one| one == capability)
    }

    /// Whether options follow.
    pub fn push_options(&self) -> bool {
        self.has("push-options")
    }
}

/// How far the list was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// To its end.
    Done(Commands),
    /// It goes on: more bytes are needed.
    More,
}

/// Why a body is not the command list of a push.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GitError {
    /// The four digits of a length are none, or it is too short.
    #[error("the push is malformed: the length of a line is not four hexadecimal digits of at least 4")]
    Length,
    /// A line that is no command.
    #[error("the push is malformed: a line is not `old new ref`")]
    Line,
    /// A name that no ref has.
    #[error("the push names a ref that git does not allow")]
    Ref,
    /// Two commands for one ref.
    #[error("the push changes one ref twice")]
    Twice,
    /// More than is read.
    #[error(
        "the push changes more than {COMMANDS} refs, or its list is longer than {BYTES} bytes: push fewer at a time"
    )]
    TooLong,
    /// `git push --signed`.
    #[error("signed pushes are not supported: push without --signed")]
    Signed,
    /// It ends before the list does.
    #[error("the push ends in the middle of its list")]
    Short,
}

/// Reads a command list as it comes.
#[derive(Debug, Default)]
pub struct Parser {
    commands: Commands,
    rest: Vec<u8>,
    names: std::collections::HashSet<String>,
    /// Whether a command was read, which alone carries capabilities.
    first: Option<usize>,
    done: bool,
}

impl Parser {
    /// Nothing read yet.
    pub fn new() -> Parser {
        Parser::default()
    }

    /// Reads the next bytes of the body. Once it is done, it reads no more.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Progress, GitError> {
        if self.done {
            return Ok(Progress::Done(self.commands.clone()));
        }
        self.rest.extend_from_slice(&bytes[..bytes.len().min(BYTES + 4)]);
        let mut at = 0;
        while let Some(digits) = self.rest.get(at..at + 4) {
            let length = length(digits)?;
            if length == 0 {
                self.done = true;
                self.commands.length += at + 4;
                self.rest = Vec::new();
                return Ok(Progress::Done(self.commands.clone()));
            }
            let Some(line) = self.rest.get(at + 4..at + length) else { break };
            let line = line.to_vec();
            at += length;
            self.line(&line)?;
            if self.commands.updates.len() > COMMANDS {
                return Err(GitError::TooLong);
            }
        }
        self.rest.drain(..at);
        self.commands.length += at;
        if self.commands.length + self.rest.len() > BYTES { Err(GitError::TooLong) } else { Ok(Progress::More) }
    }

    /// Says that the body has ended.
    pub fn finish(&self) -> Result<Commands, GitError> {
        if self.done { Ok(self.commands.clone()) } else { Err(GitError::Short) }
    }

    fn line(&mut self, line: &[u8]) -> Result<(), GitError> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let (command, capabilities) = match line.iter().position(|byte| *byte == 0) {
            Some(at) => (&line[..at], Some(&line[at + 1..])),
            None => (line, None),
        };
        if command.starts_with(b"push-cert") {
            return Err(GitError::Signed);
        }
        let command = std::str::from_utf8(command).map_err(|_| GitError::Line)?;
        if let Some(id) = command.strip_prefix("shallow ") {
            return if is_id(id) && capabilities.is_none() { Ok(()) } else { Err(GitError::Line) };
        }
        let mut parts = command.splitn(3, ' ');
        let (Some(old), Some(new), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(GitError::Line);
        };
        let length = *self.first.get_or_insert(old.len());
        if !is_id(old) || !is_id(new) || old.len() != length || new.len() != length {
            return Err(GitError::Line);
        }
        if let Some(capabilities) = capabilities {
            // Only the first command has them: a server that read others would know more than was read here.
            if !self.commands.updates.is_empty() {
                return Err(GitError::Line);
            }
            let capabilities = std::str::from_utf8(capabilities).map_err(|_| GitError::Line)?;
            if capabilities.contains('\0') {
                return Err(GitError::Line);
            }
            self.commands.capabilities =
                capabilities.split(' ').filter(|one| !one.is_empty()).map(str::to_owned).collect();
        }
        if !is_ref(name) || !name.starts_with("refs/") {
            return Err(GitError::Ref);
        }
        if !self.names.insert(name.to_owned()) {
            return Err(GitError::Twice);
        }
        self.commands.updates.push(RefUpdate { old: old.to_owned(), new: new.to_owned(), name: name.to_owned() });
        Ok(())
    }
}

/// Reads the list at the beginning of a body of which a part is there.
pub fn parse_push(prefix: &[u8]) -> Result<Progress, GitError> {
    Parser::new().push(prefix)
}

/// The length of a line, its four digits included; 0 for a flush. The other special ones belong to no push.
fn length(digits: &[u8]) -> Result<usize, GitError> {
    let mut length = 0;
    for digit in digits {
        length = length * 16 + char::from(*digit).to_digit(16).ok_or(GitError::Length)? as usize;
    }
    if matches!(length, 1..=4) { Err(GitError::Length) } else { Ok(length) }
}

/// Whether it is the name of an object: SHA-1 or SHA-256.
fn is_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
