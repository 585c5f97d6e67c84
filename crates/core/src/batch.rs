//! What a decision writes: a batch of mutations that is committed whole or not at all.
//!
//! These are data. `palisade-store` is the only code that executes them, so that every write of the control plane goes
//! through one door and carries its preconditions with it.

use std::collections::BTreeMap;

use palisade_api::{EventId, SessionId, Timestamp};
use serde::{Serialize, de::DeserializeOwned};

/// The kinds of records the control plane keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// An agent; the body is its newest version.
    Agent,
    /// One version of an agent; the parent is the agent, the id is `<agent id>/<version>`.
    AgentVersion,
    /// An environment.
    Environment,
    /// A session: the API object together with the state of its turn.
    Session,
    /// The agent of a session, as it was pinned; the id is the session's.
    SessionAgent,
    /// A work item; the parent is its environment.
    Work,
    /// A credential's hash and scope; never the credential.
    Key,
}

impl Kind {
    /// Every kind, in the order of their codes.
    pub const ALL: [Kind; 7] =
        [Kind::Agent, Kind::AgentVersion, Kind::Environment, Kind::Session, Kind::SessionAgent, Kind::Work, Kind::Key];

    /// The name under which a store keeps records of this kind. Never changes once released.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Agent => "agent",
            Kind::AgentVersion => "agent_version",
            Kind::Environment => "environment",
            Kind::Session => "session",
            Kind::SessionAgent => "session_agent",
            Kind::Work => "work",
            Kind::Key => "key",
        }
    }

    /// The kind with this name.
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// Names one record.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The record's kind.
    pub kind: Kind,
    /// The record's id, unique within its kind.
    pub id: String,
}

impl Key {
    /// The key of the record `id` of `kind`.
    pub fn new(kind: Kind, id: impl Into<String>) -> Key {
        Key { kind, id: id.into() }
    }
}

/// A record: a JSON body and the few columns that a store can search by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What the record is.
    pub kind: Kind,
    /// Unique within its kind.
    pub id: String,
    /// 1 when created, one more with each put. Set by the store; ignored in a put.
    pub revision: u64,
    /// The record that this one is listed under.
    pub parent: Option<String>,
    /// Lists are ordered by this and then by id.
    pub created_at: Timestamp,
    /// Archived records are left out of lists unless asked for.
    pub archived: bool,
    /// The state that lists and queues filter by.
    pub status: Option<String>,
    /// When something must be done about the record: a claim may be repeated, a lease lapses, a retry is due.
    pub due_at: Option<Timestamp>,
    /// Further exact-match filters.
    pub labels: BTreeMap<String, String>,
    /// The record itself, as JSON text.
    pub body: String,
}

impl Record {
    /// A record with this body and no filters.
    ///
    /// # Errors
    /// When the body cannot be written as JSON.
    pub fn new(
        kind: Kind,
        id: impl Into<String>,
        created_at: Timestamp,
        body: &impl Serialize,
    ) -> Result<Record, serde_json::Error> {
        Ok(Record {
            kind,
            id: id.into(),
            revision: 0,
            parent: None,
            created_at,
            archived: false,
            status: None,
            due_at: None,
            labels: BTreeMap::new(),
            body: serde_json::to_string(body)?,
        })
    }

    /// The key of this record.
    pub fn key(&self) -> Key {
        Key { kind: self.kind, id: self.id.clone() }
    }

    /// The body, read as `T`.
    ///
    /// # Errors
    /// When the stored text is not a `T`, which means that the database was written by something else.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.body)
    }
}

/// One event of a session's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// 1, 2, 3 … without gaps within a session.
    pub seq: u64,
    /// The event's id, unique within its session.
    pub id: EventId,
    /// The event's `type`.
    pub kind: String,
    /// The event's `processed_at`.
    pub at: Timestamp,
    /// The event as clients see it, as JSON text.
    pub body: String,
    /// What the model needs back but clients never see (its own ids and signatures), as JSON text.
    pub private: Option<String>,
}

/// A client event that has arrived and waits to be processed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingEntry {
    /// The id it will keep in the log.
    pub id: EventId,
    /// When it arrived.
    pub at: Timestamp,
    /// The event with `processed_at: null`, as JSON text.
    pub body: String,
}

/// What must hold for a batch to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Precondition {
    /// No such record exists.
    Absent(Key),
    /// The record exists.
    Exists(Key),
    /// The record exists at this revision.
    Revision(Key, u64),
    /// The session's lease is held at this epoch. Zero is the epoch of a session that was never leased.
    Epoch(SessionId, u64),
    /// The session's log ends at this sequence number. Zero is an empty log.
    Tail(SessionId, u64),
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mutation {
    /// Creates or replaces a record; its revision becomes one more than what is stored.
    Put(Record),
    /// Removes a record if it is there; with a session also its log, its pending events and its lease.
    Delete(Key),
    /// Appends to a session's log. The entries must follow the tail without a gap, or the batch fails.
    Append(SessionId, Vec<LogEntry>),
    /// Adds to a session's pending events, after those that are there.
    Enqueue(SessionId, Vec<PendingEntry>),
    /// Removes pending events by id; ids that are not there are ignored.
    Dequeue(SessionId, Vec<EventId>),
    /// Sets the epoch of a session's lease. Epochs only grow, or the batch fails.
    TakeLease(SessionId, u64),
}

/// Preconditions and mutations that are applied together or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// All must hold, else nothing is written.
    pub preconditions: Vec<Precondition>,
    /// Applied in order.
    pub mutations: Vec<Mutation>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Adds a precondition.
    #[must_use]
    pub fn when(mut self, precondition: Precondition) -> Batch {
        self.preconditions.push(precondition);
        self
    }

    /// Adds a mutation.
    #[must_use]
    pub fn with(mut self, mutation: Mutation) -> Batch {
        self.mutations.push(mutation);
        self
    }

    /// Whether the batch would change nothing.
    pub fn is_empty(&self) -> bool {
        self.mutations.is_empty()
    }
}
