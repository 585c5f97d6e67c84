//! A batch in SQL: preconditions, then mutations in a savepoint.

use std::collections::BTreeMap;

use palisade_api::SessionId;
use palisade_core::batch::{Batch, Key, Kind, LogEntry, Mutation, PendingEntry, Precondition, Record};
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, ffi, params};

use crate::{Change, CommitError, StoreError, hint};

/// Why a batch was not applied.
pub(super) enum Refusal {
    /// For a reason of its own: the rest of the transaction is not concerned.
    Batch(CommitError),
    /// The storage failed, and the transaction with it.
    Storage(&'static str, rusqlite::Error),
}

impl From<CommitError> for Refusal {
    fn from(why: CommitError) -> Refusal {
        Refusal::Batch(why)
    }
}

fn at(step: &'static str) -> impl Fn(rusqlite::Error) -> Refusal {
    move |why| match why.sqlite_error_code() {
        // A text beyond SQLite's limit is the batch's own doing.
        Some(ErrorCode::TooBig) => {
            Refusal::Batch(CommitError::Store(StoreError::Storage { step, cause: why.to_string() }))
        }
        _ => Refusal::Storage(step, why),
    }
}

/// Applies a batch within the open transaction, whole or not at all, and says what changed.
pub(super) fn batch(conn: &Connection, batch: &Batch) -> Result<Vec<Change>, Refusal> {
    for precondition in &batch.preconditions {
        check(conn, precondition)?;
    }
    let mut changes = Vec::new();
    if batch.mutations.is_empty() {
        return Ok(changes);
    }
    statement(conn, "SAVEPOINT batch")?;
    for mutation in &batch.mutations {
        let applied = apply(conn, mutation, &mut changes);
        if let Err(Refusal::Batch(why)) = applied {
            statement(conn, "ROLLBACK TO batch")?;
            statement(conn, "RELEASE batch")?;
            return Err(Refusal::Batch(why));
        }
        applied?;
    }
    statement(conn, "RELEASE batch")?;
    Ok(changes)
}

fn statement(conn: &Connection, sql: &'static str) -> Result<(), Refusal> {
    conn.prepare_cached(sql).and_then(|mut statement| statement.execute([])).map(|_| ()).map_err(at(sql))
}

fn check(conn: &Connection, precondition: &Precondition) -> Result<(), Refusal> {
    let holds = match precondition {
        Precondition::Absent(key) => (revision(conn, key)?.is_none(), key),
        Precondition::Exists(key) => (revision(conn, key)?.is_some(), key),
        Precondition::Revision(key, wanted) => (revision(conn, key)? == Some(*wanted), key),
        Precondition::Epoch(session, expected) => {
            let current = log(conn, session)?.map_or(0, |log| log.epoch);
            return fenced(session, *expected, current, current == *expected);
        }
        Precondition::Tail(session, expected) => {
            let current = log(conn, session)?.map_or(0, |log| log.tail);
            return follows(session, *expected, current, current == *expected);
        }
    };
    match holds {
        (true, _) => Ok(()),
        (false, key) => Err(CommitError::Conflict(key.clone()).into()),
    }
}

fn fenced(session: &SessionId, expected: u64, current: u64, holds: bool) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err(CommitError::Fenced { session: session.clone(), expected, current }.into()) }
}

fn follows(session: &SessionId, expected: u64, current: u64, holds: bool) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err(CommitError::Tail { session: session.clone(), expected, current }.into()) }
}

fn apply(conn: &Connection, mutation: &Mutation, changes: &mut Vec<Change>) -> Result<(), Refusal> {
    match mutation {
        Mutation::Put(record) => {
            put(conn, record)?;
            hint(changes, Change::Record(record.kind, record.parent.clone()));
        }
        Mutation::Delete(key) => {
            if let Some(old) = stored(conn, key)? {
                execute(conn, "DELETE FROM records WHERE num = ?1", [old.num])?;
                unlabel(conn, key, &old)?;
                hint(changes, Change::Record(key.kind, old.parent));
            }
            if key.kind == Kind::Session {
                let session = SessionId::from(key.id.as_str());
                if let Some(log) = log(conn, &session)? {
                    execute(conn, "DELETE FROM events WHERE log = ?1", [log.num])?;
                    execute(conn, "DELETE FROM pending_events WHERE log = ?1", [log.num])?;
                    execute(conn, "DELETE FROM session_logs WHERE num = ?1", [log.num])?;
                    hint(changes, Change::Session(session));
                }
            }
        }
        Mutation::Append(session, entries) if !entries.is_empty() => {
            append(conn, session, entries)?;
            hint(changes, Change::Session(session.clone()));
        }
        Mutation::Enqueue(session, entries) if !entries.is_empty() => {
            enqueue(conn, session, entries)?;
            hint(changes, Change::Session(session.clone()));
        }
        Mutation::Dequeue(session, ids) => {
            if let Some(log) = log(conn, session)? {
                let mut removed = 0;
                for id in ids {
                    let sql = "DELETE FROM pending_events WHERE log = ?1 AND id = ?2";
                    removed += execute(conn, sql, params![log.num, id.as_str()])?;
                }
                if removed > 0 {
                    hint(changes, Change::Session(session.clone()));
                }
            }
        }
        Mutation::TakeLease(session, epoch) => {
            let log = log(conn, session)?;
            let current = log.as_ref().map_or(0, |log| log.epoch);
            fenced(session, *epoch, current, *epoch > current)?;
            let log = known(conn, session, log)?;
            let sql = "UPDATE session_logs SET epoch = ?2 WHERE num = ?1";
            execute(conn, sql, params![log.num, epoch.cast_signed()])?;
        }
        Mutation::Append(..) | Mutation::Enqueue(..) => {}
    }
    Ok(())
}

fn execute(conn: &Connection, sql: &'static str, values: impl rusqlite::Params) -> Result<usize, Refusal> {
    conn.prepare_cached(sql).and_then(|mut statement| statement.execute(values)).map_err(at(sql))
}

fn revision(conn: &Connection, key: &Key) -> Result<Option<u64>, Refusal> {
    let sql = "SELECT revision FROM records WHERE kind = ?1 AND id = ?2";
    conn.prepare_cached(sql)
        .and_then(|mut statement| {
            statement
                .query_row([key.kind.as_str(), &key.id], |row| Ok(row.get::<_, i64>(0)?.cast_unsigned()))
                .optional()
        })
        .map_err(at("read a revision"))
}

/// A record as it is stored, without its body.
#[derive(PartialEq, Eq)]
struct Stored {
    num: i64,
    revision: i64,
    parent: Option<String>,
    created_at: i64,
    archived: bool,
    status: Option<String>,
    due_at: Option<i64>,
    labels: Option<String>,
}

fn stored(conn: &Connection, key: &Key) -> Result<Option<Stored>, Refusal> {
    let sql = "SELECT num, revision, parent, created_at, archived, status, due_at, labels
               FROM records WHERE kind = ?1 AND id = ?2";
    conn.prepare_cached(sql)
        .and_then(|mut statement| {
            statement
                .query_row([key.kind.as_str(), &key.id], |row| {
                    Ok(Stored {
                        num: row.get(0)?,
                        revision: row.get(1)?,
                        parent: row.get(2)?,
                        created_at: row.get(3)?,
                        archived: row.get(4)?,
                        status: row.get(5)?,
                        due_at: row.get(6)?,
                        labels: row.get(7)?,
                    })
                })
                .optional()
        })
        .map_err(at("read a record"))
}

fn put(conn: &Connection, record: &Record) -> Result<(), Refusal> {
    let key = record.key();
    let old = stored(conn, &key)?;
    let new = Stored {
        num: old.as_ref().map_or(0, |old| old.num),
        revision: old.as_ref().map_or(0, |old| old.revision),
        parent: record.parent.clone(),
        created_at: record.created_at.as_micros(),
        archived: record.archived,
        status: record.status.clone(),
        due_at: record.due_at.map(|due| due.as_micros()),
        labels: encode_labels(&record.labels),
    };
    let revision = new.revision + 1;
    let Some(old) = old else {
        execute(
            conn,
            "INSERT INTO records (kind, id, revision, parent, created_at, archived, status, due_at, labels, body)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![
                record.kind.as_str(),
                record.id,
                revision,
                new.parent,
                new.created_at,
                new.archived,
                new.status,
                new.due_at,
                new.labels,
                record.body
            ],
        )?;
        return label(conn, record);
    };
    if new == old {
        // The common case, and the reason for the comparison: a column that is named here costs its indexes a rewrite.
        let sql = "UPDATE records SET revision = ?2, body = ?3 WHERE num = ?1";
        execute(conn, sql, params![old.num, revision, record.body])?;
        return Ok(());
    }
    execute(
        conn,
        "UPDATE records SET revision = ?2, parent = ?3, created_at = ?4, archived = ?5, status = ?6, due_at = ?7,
         labels = ?8, body = ?9 WHERE num = ?1",
        params![
            old.num,
            revision,
            new.parent,
            new.created_at,
            new.archived,
            new.status,
            new.due_at,
            new.labels,
            record.body
        ],
    )?;
    if new.labels != old.labels || new.created_at != old.created_at {
        unlabel(conn, &key, &old)?;
        label(conn, record)?;
    }
    Ok(())
}

fn label(conn: &Connection, record: &Record) -> Result<(), Refusal> {
    for (name, value) in &record.labels {
        execute(
            conn,
            "INSERT INTO labels (kind, name, value, created_at, id) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![record.kind.as_str(), name, value, record.created_at.as_micros(), record.id],
        )?;
    }
    Ok(())
}

fn unlabel(conn: &Connection, key: &Key, old: &Stored) -> Result<(), Refusal> {
    for (name, value) in decode_labels(old.labels.as_deref()).map_err(at("read labels"))? {
        execute(
            conn,
            "DELETE FROM labels WHERE kind = ?1 AND name = ?2 AND value = ?3 AND created_at = ?4 AND id = ?5",
            params![key.kind.as_str(), name, value, old.created_at, key.id],
        )?;
    }
    Ok(())
}

/// Labels as they are kept in the record's row; none for no labels, which is the common case.
fn encode_labels(labels: &BTreeMap<String, String>) -> Option<String> {
    (!labels.is_empty()).then(|| serde_json::to_string(labels).expect("a map of text to text is always JSON"))
}

/// What [`encode_labels`] wrote.
pub(super) fn decode_labels(text: Option<&str>) -> rusqlite::Result<BTreeMap<String, String>> {
    text.map_or(Ok(BTreeMap::new()), serde_json::from_str)
        .map_err(|why| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(why)))
}

struct Log {
    num: i64,
    tail: u64,
    epoch: u64,
}

fn log(conn: &Connection, session: &SessionId) -> Result<Option<Log>, Refusal> {
    let sql = "SELECT num, tail, epoch FROM session_logs WHERE session = ?1";
    conn.prepare_cached(sql)
        .and_then(|mut statement| {
            statement
                .query_row([session.as_str()], |row| {
                    Ok(Log {
                        num: row.get(0)?,
                        tail: row.get::<_, i64>(1)?.cast_unsigned(),
                        epoch: row.get::<_, i64>(2)?.cast_unsigned(),
                    })
                })
                .optional()
        })
        .map_err(at("read a session's log state"))
}

/// The session's log, made when it is not there.
fn known(conn: &Connection, session: &SessionId, log: Option<Log>) -> Result<Log, Refusal> {
    if let Some(log) = log {
        return Ok(log);
    }
    execute(conn, "INSERT INTO session_logs (session, tail, epoch) VALUES (?1, 0, 0)", [session.as_str()])?;
    Ok(Log { num: conn.last_insert_rowid(), tail: 0, epoch: 0 })
}

/// A row with this id is there already.
fn is_taken(why: &rusqlite::Error) -> bool {
    why.sqlite_error().is_some_and(|error| error.extended_code == ffi::SQLITE_CONSTRAINT_UNIQUE)
}

fn taken(session: &SessionId) -> Refusal {
    CommitError::Conflict(Key::new(Kind::Session, session.as_str())).into()
}

fn append(conn: &Connection, session: &SessionId, entries: &[LogEntry]) -> Result<(), Refusal> {
    let log = log(conn, session)?;
    let mut tail = log.as_ref().map_or(0, |log| log.tail);
    let log = known(conn, session, log)?;
    let sql = "INSERT INTO events (log, seq, id, kind, at, body, private) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let mut insert = conn.prepare_cached(sql).map_err(at("append"))?;
    for entry in entries {
        follows(session, entry.seq.saturating_sub(1), tail, entry.seq == tail + 1)?;
        tail = entry.seq;
        insert
            .execute(params![
                log.num,
                entry.seq.cast_signed(),
                entry.id.as_str(),
                entry.kind,
                entry.at.as_micros(),
                entry.body,
                entry.private
            ])
            // The sequence number was free, so it is the id that is not.
            .map_err(|why| if is_taken(&why) { taken(session) } else { at("append")(why) })?;
    }
    execute(conn, "UPDATE session_logs SET tail = ?2 WHERE num = ?1", params![log.num, tail.cast_signed()])?;
    Ok(())
}

fn enqueue(conn: &Connection, session: &SessionId, entries: &[PendingEntry]) -> Result<(), Refusal> {
    let log = log(conn, session)?;
    let log = known(conn, session, log)?;
    let mut logged = conn.prepare_cached("SELECT 1 FROM events WHERE log = ?1 AND id = ?2").map_err(at("enqueue"))?;
    let sql = "INSERT INTO pending_events (log, id, at, body) VALUES (?1, ?2, ?3, ?4)";
    let mut insert = conn.prepare_cached(sql).map_err(at("enqueue"))?;
    for entry in entries {
        if logged.exists(params![log.num, entry.id.as_str()]).map_err(at("enqueue"))? {
            return Err(taken(session));
        }
        insert
            .execute(params![log.num, entry.id.as_str(), entry.at.as_micros(), entry.body])
            .map_err(|why| if is_taken(&why) { taken(session) } else { at("enqueue")(why) })?;
    }
    Ok(())
}
