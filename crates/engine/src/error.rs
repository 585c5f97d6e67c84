//! What can go wrong with a session.

use palisade_core::session::Refusal;
use palisade_store::{CommitError, StoreError};

/// Why an operation on a session failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is no such session.
    #[error("there is no such session")]
    NoSession,
    /// The request is at fault.
    #[error(transparent)]
    Refused(Refusal),
    /// Somebody else changed the same thing; asking again may succeed.
    #[error("the object was changed by somebody else at the same time: read it again and retry")]
    Conflict,
    /// This process no longer owns the session; asking again finds its owner.
    #[error("the session moved while the request was under way: retry")]
    Lost,
    /// The process is ending.
    #[error("the server is shutting down: retry in a moment")]
    ShuttingDown,
    /// The store failed.
    #[error(transparent)]
    Store(StoreError),
    /// The database holds something that this version did not write.
    #[error("the stored state cannot be read: {0}")]
    Corrupt(serde_json::Error),
}

impl EngineError {
    pub(crate) fn corrupt(why: serde_json::Error) -> EngineError {
        EngineError::Corrupt(why)
    }
}

impl From<StoreError> for EngineError {
    fn from(why: StoreError) -> EngineError {
        EngineError::Store(why)
    }
}

impl From<CommitError> for EngineError {
    fn from(why: CommitError) -> EngineError {
        match why {
            CommitError::Store(why) => EngineError::Store(why),
            CommitError::Conflict(_) => EngineError::Conflict,
            CommitError::Fenced { .. } | CommitError::Tail { .. } => EngineError::Lost,
        }
    }
}
