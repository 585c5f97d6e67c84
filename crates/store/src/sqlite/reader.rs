//! Queries: a few read-only connections, used from blocking threads.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use palisade_api::{EventId, SessionId, Timestamp};
use palisade_core::batch::{Key, Kind, LogEntry, PendingEntry, Record};
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, Row, params, params_from_iter};
use tokio::sync::Semaphore;

use crate::sqlite::apply::decode_labels;
use crate::sqlite::{connect_to_read, storage};
use crate::{DueQuery, EventQuery, ListQuery, Order, StoreError};

/// Reads that may run at once.
const READERS: usize = 4;

/// The reading connections, opened when they are first needed.
pub(super) struct Readers {
    /// A read holds one permit for as long as it has a connection; closed with the store.
    permits: Arc<Semaphore>,
    idle: Arc<Idle>,
}

struct Idle {
    path: PathBuf,
    connections: Mutex<Vec<Connection>>,
}

impl Idle {
    fn take(&self) -> Result<Connection, StoreError> {
        let idle = self.connections.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(conn) = idle {
            return Ok(conn);
        }
        let conn = connect_to_read(&self.path).map_err(storage("open a reading connection"))?;
        conn.set_prepared_statement_cache_capacity(64);
        conn.execute_batch("PRAGMA cache_size = -2048; PRAGMA temp_store = MEMORY")
            .map_err(storage("set up a reading connection"))?;
        Ok(conn)
    }
}

impl Readers {
    pub(super) fn new(path: &Path) -> Readers {
        Readers {
            permits: Arc::new(Semaphore::new(READERS)),
            idle: Arc::new(Idle { path: path.to_owned(), connections: Mutex::default() }),
        }
    }

    /// Runs a query on a blocking thread as soon as a connection is free.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let idle = self.idle.clone();
        let permits = self.permits.clone();
        tokio::task::spawn_blocking(move || {
            let conn = idle.take()?;
            let found = query(&conn).map_err(storage("read the database"));
            if !permits.is_closed() {
                idle.connections.lock().unwrap_or_else(PoisonError::into_inner).push(conn);
            }
            // Held to here, also when the caller has gone: it bounds the connections, not the callers.
            drop(permit);
            found
        })
        .await
        // Cancelled with the runtime, or a panic that was reported where it happened.
        .map_err(|_| StoreError::Closed)?
    }

    /// Refuses further reads and closes the connections that are idle; the others follow when their query ends.
    pub(super) fn close(&self) {
        self.permits.close();
        self.idle.connections.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

const RECORD: &str = "r.id, r.revision, r.parent, r.created_at, r.archived, r.status, r.due_at, r.labels, r.body";

fn record(kind: Kind, row: &Row<'_>) -> rusqlite::Result<Record> {
    Ok(Record {
        kind,
        id: row.get(0)?,
        revision: row.get::<_, i64>(1)?.cast_unsigned(),
        parent: row.get(2)?,
        created_at: Timestamp::from_micros(row.get(3)?),
        archived: row.get(4)?,
        status: row.get(5)?,
        due_at: row.get::<_, Option<i64>>(6)?.map(Timestamp::from_micros),
        labels: decode_labels(row.get_ref(7)?.as_str_or_null()?)?,
        body: row.get(8)?,
    })
}

pub(super) fn get(conn: &Connection, key: &Key) -> rusqlite::Result<Option<Record>> {
    conn.prepare_cached(&format!("SELECT {RECORD} FROM records r WHERE r.kind = ?1 AND r.id = ?2"))?
        .query_row([key.kind.as_str(), &key.id], |row| record(key.kind, row))
        .optional()
}

/// SQL text and its values, in order. The texts differ only by which filters are there, so that few are ever prepared.
#[derive(Default)]
struct Select {
    sql: String,
    values: Vec<Value>,
}

impl Select {
    fn new(sql: String) -> Select {
        Select { sql, values: Vec::new() }
    }

    fn text(&mut self, sql: &str) {
        self.sql.push_str(sql);
    }

    fn filter(&mut self, sql: &str, values: impl IntoIterator<Item = Value>) {
        self.sql.push_str(sql);
        self.values.extend(values);
    }

    fn any_of(&mut self, column: &str, texts: &[String]) {
        if !texts.is_empty() {
            let places = vec!["?"; texts.len()].join(", ");
            self.filter(&format!(" AND {column} IN ({places})"), texts.iter().cloned().map(Value::Text));
        }
    }

    fn all<T>(&self, conn: &Connection, read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>) -> rusqlite::Result<Vec<T>> {
        conn.prepare_cached(&self.sql)?.query_map(params_from_iter(&self.values), read)?.collect()
    }
}

fn text(value: &str) -> Value {
    Value::Text(value.to_owned())
}

fn time(value: Timestamp) -> Value {
    Value::Integer(value.as_micros())
}

fn limit(value: usize) -> Value {
    Value::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

/// `FROM … WHERE …` of a list, and the table whose index gives the order: that of the first label when there is one.
fn matching(query: &ListQuery, columns: &str) -> (Select, &'static str) {
    let kind = text(query.kind.as_str());
    let (mut select, table) = match query.labels.split_first() {
        None => {
            let mut select = Select::new(format!("SELECT {columns} FROM records r"));
            select.filter(" WHERE r.kind = ?", [kind]);
            (select, "r")
        }
        Some(((name, value), others)) => {
            // CROSS JOIN makes SQLite go through the labels first.
            let mut select = Select::new(format!(
                "SELECT {columns} FROM labels l CROSS JOIN records r ON r.kind = l.kind AND r.id = l.id"
            ));
            select.filter(" WHERE l.kind = ? AND l.name = ? AND l.value = ?", [kind, text(name), text(value)]);
            for (name, value) in others {
                select.filter(
                    " AND EXISTS (SELECT 1 FROM labels o WHERE o.kind = l.kind AND o.name = ? AND o.value = ?
                      AND o.created_at = l.created_at AND o.id = l.id)",
                    [text(name), text(value)],
                );
            }
            (select, "l")
        }
    };
    if let Some(parent) = &query.parent {
        select.filter(" AND r.parent = ?", [text(parent)]);
    }
    select.any_of("r.status", &query.statuses);
    if !query.include_archived {
        select.text(" AND r.archived = 0");
    }
    if let Some(from) = query.created_from {
        select.filter(&format!(" AND {table}.created_at >= ?"), [time(from)]);
    }
    if let Some(before) = query.created_before {
        select.filter(&format!(" AND {table}.created_at < ?"), [time(before)]);
    }
    (select, table)
}

fn direction(order: Order) -> (&'static str, &'static str) {
    match order {
        Order::Ascending => ("ASC", ">"),
        Order::Descending => ("DESC", "<"),
    }
}

pub(super) fn list(conn: &Connection, query: &ListQuery) -> rusqlite::Result<Vec<Record>> {
    let (mut select, table) = matching(query, RECORD);
    let (direction, beyond) = direction(query.order);
    if let Some(after) = &query.after {
        let sql = format!(" AND ({table}.created_at, {table}.id) {beyond} (?, ?)");
        select.filter(&sql, [time(after.created_at), text(&after.id)]);
    }
    let sql = format!(" ORDER BY {table}.created_at {direction}, {table}.id {direction} LIMIT ?");
    select.filter(&sql, [limit(query.limit)]);
    select.all(conn, |row| record(query.kind, row))
}

pub(super) fn count(conn: &Connection, query: &ListQuery) -> rusqlite::Result<u64> {
    let (select, _) = matching(query, "count(*)");
    conn.prepare_cached(&select.sql)?
        .query_row(params_from_iter(&select.values), |row| Ok(row.get::<_, i64>(0)?.cast_unsigned()))
}

pub(super) fn due(conn: &Connection, query: &DueQuery) -> rusqlite::Result<Vec<Record>> {
    let mut statuses: Vec<Option<&String>> = query.statuses.iter().map(Some).collect();
    statuses.sort_unstable();
    statuses.dedup();
    if statuses.is_empty() {
        statuses.push(None);
    }
    // One branch per status, each a walk along an index that ends at the limit, whatever else is due.
    let mut select = Select::new(format!("SELECT {RECORD} FROM ("));
    for (branch, status) in statuses.into_iter().enumerate() {
        if branch > 0 {
            select.text(" UNION ALL ");
        }
        select.filter("SELECT * FROM (SELECT * FROM records WHERE kind = ?", [text(query.kind.as_str())]);
        if let Some(status) = status {
            select.filter(" AND status = ?", [text(status)]);
        }
        select.filter(" AND due_at <= ?", [time(query.before)]);
        if let Some(parent) = &query.parent {
            select.filter(" AND parent = ?", [text(parent)]);
        }
        select.filter(" ORDER BY due_at, created_at, id LIMIT ?)", [limit(query.limit)]);
    }
    select.filter(") r ORDER BY r.due_at, r.created_at, r.id LIMIT ?", [limit(query.limit)]);
    select.all(conn, |row| record(query.kind, row))
}

const ENTRY: &str = "seq, id, kind, at, body, private";

fn entry(row: &Row<'_>) -> rusqlite::Result<LogEntry> {
    Ok(LogEntry {
        seq: row.get::<_, i64>(0)?.cast_unsigned(),
        id: EventId::from(row.get_ref(1)?.as_str()?),
        kind: row.get(2)?,
        at: Timestamp::from_micros(row.get(3)?),
        body: row.get(4)?,
        private: row.get(5)?,
    })
}

const LOG: &str = "log = (SELECT num FROM session_logs WHERE session = ?)";

pub(super) fn events(conn: &Connection, query: &EventQuery) -> rusqlite::Result<Vec<LogEntry>> {
    let mut select = Select::new(format!("SELECT {ENTRY} FROM events WHERE {LOG}"));
    select.values.push(text(query.session.as_str()));
    select.any_of("kind", &query.types);
    if let Some(from) = query.from {
        select.filter(" AND at >= ?", [time(from)]);
    }
    if let Some(before) = query.before {
        select.filter(" AND at < ?", [time(before)]);
    }
    let (direction, beyond) = direction(query.order);
    if let Some(after) = query.after {
        // No log reaches the end of SQLite's integers.
        let after = Value::Integer(i64::try_from(after).unwrap_or(i64::MAX));
        select.filter(&format!(" AND seq {beyond} ?"), [after]);
    }
    select.filter(&format!(" ORDER BY seq {direction} LIMIT ?"), [limit(query.limit)]);
    select.all(conn, entry)
}

pub(super) fn event(conn: &Connection, session: &SessionId, id: &EventId) -> rusqlite::Result<Option<LogEntry>> {
    conn.prepare_cached(&format!("SELECT {ENTRY} FROM events WHERE {LOG} AND id = ?"))?
        .query_row([session.as_str(), id.as_str()], entry)
        .optional()
}

pub(super) fn pending(conn: &Connection, session: &SessionId) -> rusqlite::Result<Vec<PendingEntry>> {
    conn.prepare_cached(&format!("SELECT id, at, body FROM pending_events WHERE {LOG} ORDER BY num"))?
        .query_map([session.as_str()], |row| {
            Ok(PendingEntry {
                id: EventId::from(row.get_ref(0)?.as_str()?),
                at: Timestamp::from_micros(row.get(1)?),
                body: row.get(2)?,
            })
        })?
        .collect()
}

pub(super) fn sessions_with_pending(conn: &Connection) -> rusqlite::Result<Vec<SessionId>> {
    let sql = "SELECT session FROM session_logs WHERE num IN (SELECT log FROM pending_events) ORDER BY session";
    conn.prepare_cached(sql)?.query_map([], |row| Ok(SessionId::from(row.get_ref(0)?.as_str()?)))?.collect()
}

/// Tail and epoch of a session; zeros when it has neither.
pub(super) fn log_state(conn: &Connection, session: &SessionId) -> rusqlite::Result<(u64, u64)> {
    let found = conn
        .prepare_cached("SELECT tail, epoch FROM session_logs WHERE session = ?1")?
        .query_row(params![session.as_str()], |row| {
            Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get::<_, i64>(1)?.cast_unsigned()))
        })
        .optional()?;
    Ok(found.unwrap_or_default())
}
