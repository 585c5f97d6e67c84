//! The closed set of questions that may be asked of a store.

use palisade_api::{SessionId, Timestamp};
use palisade_core::batch::Kind;

/// Direction of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Oldest first.
    Ascending,
    /// Newest first.
    #[default]
    Descending,
}

/// A place in a list: strictly after this record in the list's own direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// `created_at` of the last record seen.
    pub created_at: Timestamp,
    /// Its id.
    pub id: String,
}

/// Lists records of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListQuery {
    /// The kind to list.
    pub kind: Kind,
    /// Only records with this parent.
    pub parent: Option<String>,
    /// Only records with one of these states; empty for any.
    pub statuses: Vec<String>,
    /// Only records that carry all of these labels.
    pub labels: Vec<(String, String)>,
    /// Archived records too.
    pub include_archived: bool,
    /// Created at or after.
    pub created_from: Option<Timestamp>,
    /// Created before (exclusive).
    pub created_before: Option<Timestamp>,
    /// Direction, by creation and then by id.
    pub order: Order,
    /// Where to go on.
    pub after: Option<Cursor>,
    /// At most so many.
    pub limit: usize,
}

impl ListQuery {
    /// All records of a kind that are not archived, newest first, at most 20.
    pub fn new(kind: Kind) -> ListQuery {
        ListQuery {
            kind,
            parent: None,
            statuses: Vec::new(),
            labels: Vec::new(),
            include_archived: false,
            created_from: None,
            created_before: None,
            order: Order::default(),
            after: None,
            limit: 20,
        }
    }
}

/// Finds records that are due, ordered by `due_at`, then `created_at`, then id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueQuery {
    /// The kind to look at.
    pub kind: Kind,
    /// Only records with this parent.
    pub parent: Option<String>,
    /// Only records with one of these states; empty for any.
    pub statuses: Vec<String>,
    /// Due at or before this time.
    pub before: Timestamp,
    /// At most so many.
    pub limit: usize,
}

/// Reads a session's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventQuery {
    /// The session.
    pub session: SessionId,
    /// Only these event types; empty for any.
    pub types: Vec<String>,
    /// `processed_at` at or after.
    pub from: Option<Timestamp>,
    /// `processed_at` before (exclusive).
    pub before: Option<Timestamp>,
    /// Direction, by sequence number.
    pub order: Order,
    /// Strictly after this sequence number in the query's own direction.
    pub after: Option<u64>,
    /// At most so many.
    pub limit: usize,
}

impl EventQuery {
    /// A session's whole log in order, at most `limit` events.
    pub fn all(session: SessionId, limit: usize) -> EventQuery {
        EventQuery { session, types: Vec::new(), from: None, before: None, order: Order::Ascending, after: None, limit }
    }
}
