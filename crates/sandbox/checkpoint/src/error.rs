//! What can go wrong with checkpoints; each says what failed, why, and what to do.

use std::io;
use std::path::{Path, PathBuf};

use crate::{Id, LayerPath};

/// Why an operation on checkpoints failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory could not be used.
    #[error("{doing} {path}: {cause}", path = path.display())]
    Io {
        /// The step.
        doing: &'static str,
        /// What it was about.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// There is no room for what was to be written. Nothing of it is left.
    #[error("{doing} {path}: the disk or its quota is full; make room (`palisade checkpoints prune`), then do it again", path = path.display())]
    Full {
        /// The step.
        doing: &'static str,
        /// What was to be written.
        path: PathBuf,
    },
    /// A file of the store does not hold what it must.
    #[error("{path} is corrupt: {what}; `palisade checkpoints verify` names every checkpoint that this affects", path = path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, with the chunk's name where it is about one.
        what: String,
    },
    /// A chunk is in no pack.
    #[error("chunk {chunk} is in no pack of {store}: a pack was lost; pull the checkpoint again or restore the store", store = store.display())]
    MissingChunk {
        /// The chunk.
        chunk: Id,
        /// The store.
        store: PathBuf,
    },
    /// The store holds no such checkpoint.
    #[error("there is no checkpoint {0}; `palisade checkpoints list` shows those that there are")]
    Unknown(String),
    /// More than one checkpoint's name begins so.
    #[error("more than one checkpoint's name begins with {0}; write more of it")]
    Ambiguous(String),
    /// The directory is not a store of this version.
    #[error("{path} is no checkpoint store that this version can read: {what}", path = path.display())]
    NotAStore {
        /// The directory.
        path: PathBuf,
        /// Why not.
        what: String,
    },
    /// A device in a layer: only overlayfs's whiteouts are allowed there.
    #[error("{0} in the layer is a device; remove it, it cannot be part of a checkpoint")]
    Device(LayerPath),
    /// An overlay feature whose layers do not hold what they show.
    #[error(
        "{0} in the layer refers to content elsewhere (overlay redirect, metacopy or the like); mount the overlay without these"
    )]
    Redirect(LayerPath),
    /// A file could not be read.
    #[error("{path} in the layer cannot be read: {cause}")]
    Unreadable {
        /// Its path in the layer.
        path: LayerPath,
        /// What the system said.
        cause: io::Error,
    },
    /// The layer changed while it was read.
    #[error("{0} in the layer changed while it was captured; freeze the sandbox before capturing it")]
    Changed(LayerPath),
    /// A limit on the size of what is read was reached.
    #[error("{what} is over the limit of {limit}; raise the limit if you trust where it comes from")]
    Limit {
        /// What is too large.
        what: &'static str,
        /// The most that is allowed.
        limit: u64,
    },
    /// Two checkpoints, or a checkpoint and a capture, that are relative to different bases.
    #[error("the bases differ ({0:?} and {1:?}); only layers over one base can be combined")]
    Bases(String, String),
    /// An archive that is not what it should be.
    #[error("the archive cannot be imported: {0}; nothing was stored")]
    Archive(String),
    /// A layer that a format cannot hold.
    #[error(
        "{0} cannot be in an OCI layer: its name is that of a whiteout there; rename it, or export in the own format"
    )]
    Inexpressible(LayerPath),
    /// The off-machine store failed.
    #[error("the off-machine store: {0}")]
    Remote(String),
    /// A step that a transaction cannot take from where it is.
    #[error("a transaction that is {from} cannot become {to}")]
    Transition {
        /// Its state.
        from: &'static str,
        /// The state asked for.
        to: &'static str,
    },
}

/// The result of an operation on checkpoints.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(doing: &'static str, path: &Path, cause: impl Into<io::Error>) -> Error {
        let cause = cause.into();
        match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::Full { doing, path: path.to_owned() },
            _ => Error::Io { doing, path: path.to_owned(), cause },
        }
    }

    pub(crate) fn corrupt(path: &Path, what: impl Into<String>) -> Error {
        Error::Corrupt { path: path.to_owned(), what: what.into() }
    }
}

/// Names the step and the path in which a system call failed.
pub(crate) trait At<T> {
    fn at(self, doing: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, doing: &'static str, path: &Path) -> Result<T> {
        self.map_err(|cause| Error::io(doing, path, cause))
    }
}
