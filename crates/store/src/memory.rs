//! The reference back-end: what the others must do, in the simplest form that does it. Nothing outlives the process.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use palisade_api::{EventId, SessionId};
use palisade_core::batch::{Batch, Key, Kind, LogEntry, Mutation, PendingEntry, Precondition, Record};
use tokio::sync::broadcast;

use crate::{Change, CommitError, DueQuery, EventQuery, HINTS, ListQuery, Order, Store, StoreError, hint};

/// A store that keeps everything in the memory of this process; for tests and as the reference.
#[derive(Debug)]
pub struct Memory {
    state: Mutex<State>,
    hints: broadcast::Sender<Change>,
}

#[derive(Debug, Default)]
struct State {
    records: BTreeMap<Key, Record>,
    logs: BTreeMap<SessionId, Log>,
}

#[derive(Debug, Default)]
struct Log {
    entries: Vec<LogEntry>,
    /// Sequence numbers by event id.
    ids: BTreeMap<EventId, u64>,
    pending: Vec<PendingEntry>,
    epoch: u64,
}

impl Log {
    fn tail(&self) -> u64 {
        self.entries.last().map_or(0, |entry| entry.seq)
    }
}

/// What takes one step of a batch back.
enum Undo {
    Record(Key, Option<Record>),
    Log(SessionId, Option<Log>),
    Entries(SessionId, usize),
    Pending(SessionId, Vec<PendingEntry>),
    Epoch(SessionId, u64),
}

impl Default for Memory {
    fn default() -> Memory {
        Memory::new()
    }
}

impl Memory {
    /// An empty store.
    pub fn new() -> Memory {
        Memory { state: Mutex::default(), hints: broadcast::Sender::new(HINTS) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that runs under the lock leaves the state half changed, so a poisoned lock still guards a whole state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn revision(&self, key: &Key) -> Option<u64> {
        self.records.get(key).map(|record| record.revision)
    }

    fn epoch(&self, session: &SessionId) -> u64 {
        self.logs.get(session).map_or(0, |log| log.epoch)
    }

    fn tail(&self, session: &SessionId) -> u64 {
        self.logs.get(session).map_or(0, Log::tail)
    }

    fn check(&self, precondition: &Precondition) -> Result<(), CommitError> {
        let conflict = |key: &Key| Err(CommitError::Conflict(key.clone()));
        match precondition {
            Precondition::Absent(key) if self.revision(key).is_some() => conflict(key),
            Precondition::Exists(key) if self.revision(key).is_none() => conflict(key),
            Precondition::Revision(key, revision) if self.revision(key) != Some(*revision) => conflict(key),
            Precondition::Epoch(session, expected) => match self.epoch(session) {
                current if current == *expected => Ok(()),
                current => Err(CommitError::Fenced { session: session.clone(), expected: *expected, current }),
            },
            Precondition::Tail(session, expected) => match self.tail(session) {
                current if current == *expected => Ok(()),
                current => Err(CommitError::Tail { session: session.clone(), expected: *expected, current }),
            },
            _ => Ok(()),
        }
    }

    fn apply(
        &mut self,
        mutation: Mutation,
        undo: &mut Vec<Undo>,
        changes: &mut Vec<Change>,
    ) -> Result<(), CommitError> {
        match mutation {
            Mutation::Put(mut record) => {
                let key = record.key();
                record.revision = self.revision(&key).unwrap_or(0) + 1;
                hint(changes, Change::Record(record.kind, record.parent.clone()));
                undo.push(Undo::Record(key.clone(), self.records.insert(key, record)));
            }
            Mutation::Delete(key) => {
                if let Some(old) = self.records.remove(&key) {
                    hint(changes, Change::Record(old.kind, old.parent.clone()));
                    undo.push(Undo::Record(key.clone(), Some(old)));
                }
                if key.kind == Kind::Session {
                    let session = SessionId::from(key.id);
                    if let Some(old) = self.logs.remove(&session) {
                        hint(changes, Change::Session(session.clone()));
                        undo.push(Undo::Log(session, Some(old)));
                    }
                }
            }
            Mutation::Append(session, entries) if !entries.is_empty() => {
                let log = self.log(&session, undo);
                undo.push(Undo::Entries(session.clone(), log.entries.len()));
                for entry in entries {
                    let current = log.tail();
                    if entry.seq != current + 1 {
                        return Err(CommitError::Tail { session, expected: entry.seq.saturating_sub(1), current });
                    }
                    if log.ids.contains_key(&entry.id) {
                        return Err(CommitError::Conflict(Key::new(Kind::Session, session.as_str())));
                    }
                    log.ids.insert(entry.id.clone(), entry.seq);
                    log.entries.push(entry);
                }
                hint(changes, Change::Session(session));
            }
            Mutation::Enqueue(session, entries) if !entries.is_empty() => {
                let log = self.log(&session, undo);
                undo.push(Undo::Pending(session.clone(), log.pending.clone()));
                for entry in entries {
                    if log.ids.contains_key(&entry.id) || log.pending.iter().any(|waiting| waiting.id == entry.id) {
                        return Err(CommitError::Conflict(Key::new(Kind::Session, session.as_str())));
                    }
                    log.pending.push(entry);
                }
                hint(changes, Change::Session(session));
            }
            Mutation::Dequeue(session, ids) => {
                if let Some(log) = self.logs.get_mut(&session) {
                    let before = log.pending.clone();
                    log.pending.retain(|entry| !ids.contains(&entry.id));
                    if log.pending.len() != before.len() {
                        undo.push(Undo::Pending(session.clone(), before));
                        hint(changes, Change::Session(session));
                    }
                }
            }
            Mutation::TakeLease(session, epoch) => {
                let current = self.epoch(&session);
                if epoch <= current {
                    return Err(CommitError::Fenced { session, expected: epoch, current });
                }
                self.log(&session, undo).epoch = epoch;
                undo.push(Undo::Epoch(session, current));
            }
            Mutation::Append(..) | Mutation::Enqueue(..) => {}
        }
        Ok(())
    }

    /// The session's log, made when it is not there.
    fn log(&mut self, session: &SessionId, undo: &mut Vec<Undo>) -> &mut Log {
        self.logs.entry(session.clone()).or_insert_with(|| {
            undo.push(Undo::Log(session.clone(), None));
            Log::default()
        })
    }

    fn take_back(&mut self, undo: Undo) {
        match undo {
            Undo::Record(key, old) => {
                match old {
                    Some(old) => self.records.insert(key, old),
                    None => self.records.remove(&key),
                };
            }
            Undo::Log(session, old) => {
                match old {
                    Some(old) => self.logs.insert(session, old),
                    None => self.logs.remove(&session),
                };
            }
            Undo::Entries(session, length) => {
                if let Some(log) = self.logs.get_mut(&session) {
                    for entry in log.entries.drain(length..) {
                        log.ids.remove(&entry.id);
                    }
                }
            }
            Undo::Pending(session, old) => {
                if let Some(log) = self.logs.get_mut(&session) {
                    log.pending = old;
                }
            }
            Undo::Epoch(session, old) => {
                if let Some(log) = self.logs.get_mut(&session) {
                    log.epoch = old;
                }
            }
        }
    }

    fn matching<'a>(&'a self, query: &'a ListQuery) -> impl Iterator<Item = &'a Record> {
        self.records.values().filter(|record| {
            record.kind == query.kind
                && (query.parent.is_none() || record.parent == query.parent)
                && has_status(record, &query.statuses)
                && query.labels.iter().all(|(name, value)| record.labels.get(name) == Some(value))
                && (query.include_archived || !record.archived)
                && query.created_from.is_none_or(|from| record.created_at >= from)
                && query.created_before.is_none_or(|before| record.created_at < before)
        })
    }
}

fn has_status(record: &Record, statuses: &[String]) -> bool {
    statuses.is_empty() || record.status.as_ref().is_some_and(|status| statuses.contains(status))
}

#[async_trait]
impl Store for Memory {
    async fn commit(&self, batch: Batch) -> Result<(), CommitError> {
        let mut state = self.state();
        for precondition in &batch.preconditions {
            state.check(precondition)?;
        }
        let (mut undo, mut changes) = (Vec::new(), Vec::new());
        for mutation in batch.mutations {
            if let Err(why) = state.apply(mutation, &mut undo, &mut changes) {
                while let Some(step) = undo.pop() {
                    state.take_back(step);
                }
                return Err(why);
            }
        }
        for change in changes {
            // Nobody may be watching.
            let _ = self.hints.send(change);
        }
        Ok(())
    }

    async fn get(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        Ok(self.state().records.get(key).cloned())
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<Record>, StoreError> {
        let state = self.state();
        let mut found: Vec<&Record> = state.matching(query).collect();
        found.sort_by_key(|record| (record.created_at, &record.id));
        if query.order == Order::Descending {
            found.reverse();
        }
        let seen = |record: &Record| {
            query.after.as_ref().is_some_and(|after| {
                let (here, there) = ((record.created_at, &record.id), (after.created_at, &after.id));
                if query.order == Order::Ascending { here <= there } else { here >= there }
            })
        };
        Ok(found.into_iter().filter(|record| !seen(record)).take(query.limit).cloned().collect())
    }

    async fn due(&self, query: &DueQuery) -> Result<Vec<Record>, StoreError> {
        let state = self.state();
        let mut found: Vec<&Record> = state
            .records
            .values()
            .filter(|record| {
                record.kind == query.kind
                    && (query.parent.is_none() || record.parent == query.parent)
                    && has_status(record, &query.statuses)
                    && record.due_at.is_some_and(|due| due <= query.before)
            })
            .collect();
        found.sort_by_key(|record| (record.due_at, record.created_at, &record.id));
        Ok(found.into_iter().take(query.limit).cloned().collect())
    }

    async fn count(&self, query: &ListQuery) -> Result<u64, StoreError> {
        Ok(self.state().matching(query).count() as u64)
    }

    async fn events(&self, query: &EventQuery) -> Result<Vec<LogEntry>, StoreError> {
        let state = self.state();
        let entries = state.logs.get(&query.session).map_or(&[][..], |log| &log.entries);
        let wanted = |entry: &&LogEntry| {
            (query.types.is_empty() || query.types.contains(&entry.kind))
                && query.from.is_none_or(|from| entry.at >= from)
                && query.before.is_none_or(|before| entry.at < before)
                && query.after.is_none_or(|after| match query.order {
                    Order::Ascending => entry.seq > after,
                    Order::Descending => entry.seq < after,
                })
        };
        Ok(match query.order {
            Order::Ascending => entries.iter().filter(wanted).take(query.limit).cloned().collect(),
            Order::Descending => entries.iter().rev().filter(wanted).take(query.limit).cloned().collect(),
        })
    }

    async fn event(&self, session: &SessionId, id: &EventId) -> Result<Option<LogEntry>, StoreError> {
        let state = self.state();
        Ok(state.logs.get(session).and_then(|log| log.entries.iter().find(|entry| entry.id == *id)).cloned())
    }

    async fn pending(&self, session: &SessionId) -> Result<Vec<PendingEntry>, StoreError> {
        Ok(self.state().logs.get(session).map(|log| log.pending.clone()).unwrap_or_default())
    }

    async fn sessions_with_pending(&self) -> Result<Vec<SessionId>, StoreError> {
        let state = self.state();
        Ok(state.logs.iter().filter(|(_, log)| !log.pending.is_empty()).map(|(session, _)| session.clone()).collect())
    }

    async fn tail(&self, session: &SessionId) -> Result<u64, StoreError> {
        Ok(self.state().tail(session))
    }

    async fn epoch(&self, session: &SessionId) -> Result<u64, StoreError> {
        Ok(self.state().epoch(session))
    }

    fn watch(&self) -> broadcast::Receiver<Change> {
        self.hints.subscribe()
    }

    async fn check(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn backup(&self, _to: &Path) -> Result<(), StoreError> {
        Err(StoreError::Storage {
            step: "back up",
            cause: "this store keeps its state in memory only: run with a state directory to have something to back up"
                .into(),
        })
    }
}
