//! The schema: embedded migrations that only go forward.

use rusqlite::{Connection, TransactionBehavior};

use crate::StoreError;
use crate::sqlite::storage;

/// Marks the file as Palisade's ("Plsd"), so that another program's database is never migrated by mistake.
pub(super) const APPLICATION_ID: i32 = 0x506c_7364;

/// Migration `n` takes the schema from version `n` to `n + 1`. Never change one that was released; add another.
const MIGRATIONS: &[&str] = &[include_str!("../../migrations/0001_initial.sql")];

/// The schema version that this binary reads and writes.
fn newest() -> u32 {
    u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX)
}

/// The schema version of the database, zero for a new one; refuses one that is newer or not ours. Writes nothing.
pub(super) fn version(conn: &Connection) -> Result<u32, StoreError> {
    let read = |name| conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let owner = read("application_id").map_err(storage("read the database's header"))?;
    let found = read("user_version").map_err(storage("read the schema version"))?;
    let tables: i64 = conn
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(storage("read the schema"))?;
    if owner != i64::from(APPLICATION_ID) && (owner != 0 || tables != 0) {
        return Err(StoreError::Storage {
            step: "open the database",
            cause: "the file is a database of another program: give another state directory".into(),
        });
    }
    let found = u32::try_from(found).unwrap_or(u32::MAX);
    if found > newest() {
        return Err(StoreError::TooNew { found, known: newest() });
    }
    Ok(found)
}

/// Brings the database from version `found` to the newest.
pub(super) fn migrate(conn: &mut Connection, found: u32) -> Result<(), StoreError> {
    for (version, migration) in (1u32..).zip(MIGRATIONS) {
        if version <= found {
            continue;
        }
        // One transaction for a step and its number: a crash leaves the version before or the version after.
        let step = conn
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(storage("begin a schema migration"))?;
        step.execute_batch(migration).map_err(storage("migrate the schema"))?;
        step.pragma_update(None, "application_id", APPLICATION_ID).map_err(storage("mark the database"))?;
        step.pragma_update(None, "user_version", version).map_err(storage("record the schema version"))?;
        step.commit().map_err(storage("commit a schema migration"))?;
    }
    Ok(())
}
