//! Short ways to write records, entries and batches.

use palisade_api::{EventId, SessionId, Timestamp};
use palisade_core::batch::{Batch, Key, Kind, LogEntry, Mutation, PendingEntry, Record};
use palisade_store::{Change, CommitError, Store};
use tokio::sync::broadcast;

pub(crate) fn time(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros)
}

pub(crate) fn session(name: &str) -> SessionId {
    SessionId::from_tail(name)
}

pub(crate) fn key(kind: Kind, id: &str) -> Key {
    Key::new(kind, id)
}

/// A record made at `created` microseconds whose body names it.
pub(crate) fn record(kind: Kind, id: &str, created: i64) -> Record {
    Record::new(kind, id, time(created), &serde_json::json!({ "id": id })).unwrap()
}

/// Log entries `first..=last` of type `agent.message`, each at as many microseconds as its number.
pub(crate) fn entries(first: u64, last: u64) -> Vec<LogEntry> {
    (first..=last).map(|seq| entry(seq, "agent.message")).collect()
}

pub(crate) fn entry(seq: u64, kind: &str) -> LogEntry {
    LogEntry {
        seq,
        id: EventId::from_tail(&seq.to_string()),
        kind: kind.into(),
        at: time(seq.cast_signed()),
        body: format!(r#"{{"seq":{seq}}}"#),
        private: seq.is_multiple_of(2).then(|| "{}".into()),
    }
}

pub(crate) fn waiting(id: &str) -> PendingEntry {
    PendingEntry { id: EventId::from_tail(id), at: time(1), body: format!(r#"{{"id":"{id}"}}"#) }
}

pub(crate) fn put(record: Record) -> Batch {
    Batch::new().with(Mutation::Put(record))
}

pub(crate) fn append(session: &SessionId, entries: Vec<LogEntry>) -> Batch {
    Batch::new().with(Mutation::Append(session.clone(), entries))
}

pub(crate) fn conflict(kind: Kind, id: &str) -> CommitError {
    CommitError::Conflict(key(kind, id))
}

pub(crate) fn fenced(session: &SessionId, expected: u64, current: u64) -> CommitError {
    CommitError::Fenced { session: session.clone(), expected, current }
}

pub(crate) fn tail(session: &SessionId, expected: u64, current: u64) -> CommitError {
    CommitError::Tail { session: session.clone(), expected, current }
}

/// Puts each record in a commit of its own.
pub(crate) async fn put_all(store: &dyn Store, records: impl IntoIterator<Item = Record>) {
    for record in records {
        store.commit(put(record)).await.unwrap();
    }
}

/// The hints that have come so far.
pub(crate) fn hints(changes: &mut broadcast::Receiver<Change>) -> Vec<Change> {
    std::iter::from_fn(|| changes.try_recv().ok()).collect()
}
