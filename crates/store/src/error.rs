//! What can go wrong at the write door and in queries, and whose fault it is.

use palisade_api::SessionId;
use palisade_core::batch::Key;

/// The store itself failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system has no room. Reads go on; nothing acknowledged is lost.
    #[error("the disk that holds the state directory is full: free space there, then retry")]
    Full,
    /// The database could not be opened or read.
    #[error("{step}: {cause}")]
    Storage {
        /// What was being done.
        step: &'static str,
        /// What the storage said.
        cause: String,
    },
    /// The database was written by a newer version.
    #[error("the database has schema version {found}, this binary knows up to {known}: run the version that wrote it, or a newer one")]
    TooNew {
        /// The version found.
        found: u32,
        /// The newest version this binary knows.
        known: u32,
    },
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}

/// A batch was not applied.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A record was not as the batch required.
    #[error("{0:?} is not in the state that this change was made for")]
    Conflict(Key),
    /// The session's lease is held by another epoch: the caller no longer owns the session. Never retry.
    #[error("the lease of {session} is at epoch {current}, not {expected}")]
    Fenced {
        /// The session.
        session: SessionId,
        /// What the batch required.
        expected: u64,
        /// What is stored.
        current: u64,
    },
    /// The session's log does not end where the batch goes on.
    #[error("the log of {session} ends at {current}, not {expected}")]
    Tail {
        /// The session.
        session: SessionId,
        /// What the batch required.
        expected: u64,
        /// What is stored.
        current: u64,
    },
    /// The store failed; the batch is not stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}
