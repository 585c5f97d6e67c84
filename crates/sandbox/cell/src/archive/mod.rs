//! Files and trees as tar streams, packed and unpacked without following a link.
//!
//! Whoever unpacks does not trust whoever packed: inside the sandbox the stream comes from outside, and outside it comes from
//! a program that an agent may have written.

mod pack;
mod unpack;

pub use pack::pack;
pub use unpack::{Error, unpack};

/// What was moved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Moved {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// What is neither file, directory nor link, and was left out.
    pub skipped: Vec<String>,
}

/// Directories within each other; a tree that is deeper is made to be an attack.
const DEEPEST: usize = 256;
