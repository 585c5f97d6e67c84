//! The store: one write door, a closed set of queries, and hints of what changed.
//!
//! Two back-ends keep the same promises and pass the same suite: [`Memory`], the reference, and [`Sqlite`].

mod error;
mod memory;
mod query;
mod sqlite;

pub use error::{CommitError, StoreError};
pub use memory::Memory;
pub use query::{Cursor, DueQuery, EventQuery, ListQuery, Order};
pub use sqlite::{Options, Sqlite, backup_file};

use std::path::Path;

use async_trait::async_trait;
use palisade_api::{EventId, SessionId};
use palisade_core::batch::{Batch, Key, Kind, LogEntry, PendingEntry, Record};

/// What changed, as a hint: a receiver that missed one must reconcile by query. Hints are sent once the batch is durable and
/// before its commit returns; one batch never gives the same hint twice.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Change {
    /// A record of this kind was written or removed; the parent is that of the record.
    Record(Kind, Option<String>),
    /// A session's log or pending events changed.
    Session(SessionId),
}

/// How many hints a receiver may be behind before it is told that it lagged.
const HINTS: usize = 4096;

/// Adds a hint unless the batch gave it already.
fn hint(changes: &mut Vec<Change>, change: Change) {
    if !changes.contains(&change) {
        changes.push(change);
    }
}

/// Durable state of the control plane.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Applies a batch whole or not at all. When this returns `Ok` the batch survives a crash of the process and of the
    /// machine; when it returns an error nothing of it is stored, unless the error says that the outcome is unknown
    /// ([`StoreError::Unconfirmed`]). A batch whose future is dropped after its first poll may still be applied.
    async fn commit(&self, batch: Batch) -> Result<(), CommitError>;

    /// The record with this key.
    async fn get(&self, key: &Key) -> Result<Option<Record>, StoreError>;

    /// Records of one kind in order of creation.
    async fn list(&self, query: &ListQuery) -> Result<Vec<Record>, StoreError>;

    /// Records whose `due_at` is at or before a time, the longest due first.
    async fn due(&self, query: &DueQuery) -> Result<Vec<Record>, StoreError>;

    /// How many records match; `limit`, `after` and `order` of the query are ignored.
    async fn count(&self, query: &ListQuery) -> Result<u64, StoreError>;

    /// Events of a session's log.
    async fn events(&self, query: &EventQuery) -> Result<Vec<LogEntry>, StoreError>;

    /// One event of a session's log by its id.
    async fn event(&self, session: &SessionId, id: &EventId) -> Result<Option<LogEntry>, StoreError>;

    /// A session's pending events in order of arrival.
    async fn pending(&self, session: &SessionId) -> Result<Vec<PendingEntry>, StoreError>;

    /// Sessions that have pending events, ordered by id.
    async fn sessions_with_pending(&self) -> Result<Vec<SessionId>, StoreError>;

    /// The last sequence number of a session's log; zero when it is empty or unknown.
    async fn tail(&self, session: &SessionId) -> Result<u64, StoreError>;

    /// The epoch of a session's lease; zero when it was never leased.
    async fn epoch(&self, session: &SessionId) -> Result<u64, StoreError>;

    /// Hints of what is committed from now on.
    fn watch(&self) -> tokio::sync::broadcast::Receiver<Change>;

    /// Whether a write can be made durable now; for readiness probes.
    async fn check(&self) -> Result<(), StoreError>;

    /// Writes a consistent copy of everything to a new file while the store goes on working.
    async fn backup(&self, to: &Path) -> Result<(), StoreError>;
}
