//! What can go wrong at the write door and in queries, and whose fault it is.

use palisade_api::SessionId;
use palisade_core::batch::Key;

/// The store itself failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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
    #[error(
        "the database has schema version {found}, this binary knows up to {known}: run the version that wrote it, or a newer one"
    )]
    TooNew {
        /// The version found.
        found: u32,
        /// The newest version this binary knows.
        known: u32,
    },
    /// Another process, or another part of this one, has the database open for writing.
    #[error("{path} is in use by {holder}: stop that server first, or give this one a state directory of its own")]
    InUse {
        /// The database.
        path: String,
        /// Who holds it, as far as the lock file tells.
        holder: String,
    },
    /// The storage failed while a write was made durable: it is not visible now, but may come back after a restart.
    #[error(
        "the storage failed while the change was made durable, so whether it is kept is unknown ({cause}): check the disk, then read the state again"
    )]
    Unconfirmed {
        /// What the storage said.
        cause: String,
    },
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}

/// A batch was not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// A record was not as the batch required. For a session also: an event that is appended or enqueued has an id that the
    /// session already has.
    #[error("{0:?} is not in the state that this change was made for")]
    Conflict(Key),
    /// The session's lease is held by another epoch: the caller no longer owns the session. Never retry. Also given to a
    /// lease that is taken at an epoch which is not above the stored one.
    #[error("the lease of {session} is at epoch {current}, not {expected}")]
    Fenced {
        /// The session.
        session: SessionId,
        /// What the batch required.
        expected: u64,
        /// What is stored.
        current: u64,
    },
    /// The session's log does not end where the batch goes on, or the batch's own entries have a gap; `expected` is the
    /// number before the first entry that does not follow.
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
