//! What only the SQLite back-end promises: ownership of its file, versions, backups.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use palisade_core::batch::Kind;
use palisade_store::{CommitError, EventQuery, Memory, Options, Sqlite, Store, StoreError, backup_file};

use crate::fixture::{append, entries, key, put, record, session};

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn state_outlives_the_store_and_is_the_owners_alone() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("palisade.db");
    std::fs::write(&database, "").unwrap();
    std::fs::set_permissions(&database, std::fs::Permissions::from_mode(0o644)).unwrap();
    let a = session("a");
    let store = Sqlite::open(&database).unwrap();
    store.commit(put(record(Kind::Agent, "agent_1", 1))).await.unwrap();
    store.commit(append(&a, entries(1, 3))).await.unwrap();
    for file in std::fs::read_dir(directory.path()).unwrap() {
        assert_eq!(mode(&file.as_ref().unwrap().path()), 0o600, "{file:?}");
    }
    store.close().await;
    // Whoever still has the closed store is told so.
    assert_eq!(store.commit(append(&a, entries(4, 4))).await, Err(CommitError::Store(StoreError::Closed)));
    assert_eq!(store.tail(&a).await, Err(StoreError::Closed));
    assert_eq!(store.check().await, Err(StoreError::Closed));
    store.close().await;
    // A close leaves one file of state beside the lock.
    assert!(!directory.path().join("palisade.db-wal").exists());

    let again = Sqlite::open(&database).unwrap();
    assert_eq!(again.events(&EventQuery::all(a, 10)).await.unwrap(), entries(1, 3));
    assert_eq!(again.get(&key(Kind::Agent, "agent_1")).await.unwrap().unwrap().revision, 1);
}

#[tokio::test]
async fn commits_under_way_are_finished_by_a_close() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("palisade.db");
    let store = Sqlite::open(&database).unwrap();
    let commits = (0..64).map(|n| store.commit(append(&session(&n.to_string()), entries(1, 2))));
    let (outcomes, ()) = futures::future::join(futures::future::join_all(commits), store.close()).await;
    let store = Sqlite::open(&database).unwrap();
    for (n, outcome) in outcomes.into_iter().enumerate() {
        let tail = store.tail(&session(&n.to_string())).await.unwrap();
        assert_eq!(tail, if outcome.is_ok() { 2 } else { 0 });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_write_ahead_log_starts_over_under_reads() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("palisade.db");
    let options = Options { checkpoint_bytes: Some(128 * 1024), ..Options::default() };
    let store = Sqlite::open_with(&database, options).unwrap();
    let a = session("a");
    let done = std::sync::atomic::AtomicBool::new(false);
    let write = async {
        for n in 1..=1000 {
            store.commit(append(&a, entries(n, n))).await.unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let read = async || {
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            store.events(&EventQuery::all(a.clone(), 100)).await.unwrap();
        }
    };
    futures::future::join4(write, read(), read(), read()).await;
    // Each commit writes several pages of 4 KiB: kept whole, the log would be many times as long.
    let length = directory.path().join("palisade.db-wal").metadata().unwrap().len();
    assert!(length < 8 * 1024 * 1024, "{length}");
}

#[tokio::test]
async fn one_owner_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("palisade.db");
    let store = Sqlite::open(&database).unwrap();
    let link = directory.path().join("link.db");
    std::os::unix::fs::symlink(&database, &link).unwrap();
    for path in [&database, &link] {
        match Sqlite::open(path).unwrap_err() {
            StoreError::InUse { holder, .. } => assert_eq!(holder, format!("process {}", std::process::id())),
            other => panic!("{other}"),
        }
    }
    // The owner is not disturbed.
    store.commit(append(&session("a"), entries(1, 1))).await.unwrap();
    drop(store);
    Sqlite::open(&link).unwrap();
}

#[test]
fn a_newer_or_foreign_database_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let newer = directory.path().join("newer.db");
    drop(Sqlite::open(&newer).unwrap());
    let conn = rusqlite::Connection::open(&newer).unwrap();
    let known: u32 = conn.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    conn.pragma_update(None, "user_version", known + 1).unwrap();
    drop(conn);
    assert_eq!(Sqlite::open(&newer).unwrap_err(), StoreError::TooNew { found: known + 1, known });

    let foreign = directory.path().join("foreign.db");
    rusqlite::Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    let before = std::fs::read(&foreign).unwrap();
    for error in
        [Sqlite::open(&foreign).unwrap_err(), backup_file(&foreign, &directory.path().join("copy.db")).unwrap_err()]
    {
        assert!(error.to_string().contains("database"), "{error}");
    }
    assert!(std::fs::read(&foreign).unwrap() == before, "another program's database was changed");

    let text = directory.path().join("text.db");
    std::fs::write(&text, "this is no database, however long it may be".repeat(100)).unwrap();
    assert!(matches!(Sqlite::open(&text).unwrap_err(), StoreError::Storage { .. }));
    assert!(matches!(Sqlite::open(&directory.path().join("none/x.db")).unwrap_err(), StoreError::Storage { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_a_consistent_copy_of_a_working_store() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("palisade.db");
    let store = Sqlite::open(&database).unwrap();
    let (a, b) = (session("a"), session("b"));
    // Both logs grow in one batch, so that in every consistent copy they are as long as each other.
    let both = |n| append(&a, entries(n, n)).with(palisade_core::batch::Mutation::Append(b.clone(), entries(n, n)));
    for n in 1..=50 {
        store.commit(both(n)).await.unwrap();
    }
    let (whole, other) = (directory.path().join("whole.db"), directory.path().join("other.db"));
    let writing = async {
        for n in 51..=150 {
            store.commit(both(n)).await.unwrap();
        }
    };
    // One through the store, one as another process would.
    let (from, to) = (database.clone(), other.clone());
    let beside = tokio::task::spawn_blocking(move || backup_file(&from, &to));
    let ((), through, beside) = futures::future::join3(writing, store.backup(&whole), beside).await;
    through.unwrap();
    beside.unwrap().unwrap();
    for copy in [&whole, &other] {
        assert_eq!(mode(copy), 0o600);
        let copy = Sqlite::open(copy).unwrap();
        let tail = copy.tail(&a).await.unwrap();
        assert!((50..=150).contains(&tail));
        assert_eq!(copy.tail(&b).await.unwrap(), tail);
        assert_eq!(copy.events(&EventQuery::all(a.clone(), 1000)).await.unwrap(), entries(1, tail));
    }
    // What exists is never replaced, and a failed backup leaves nothing behind.
    let refused = store.backup(&whole).await.unwrap_err();
    assert!(refused.to_string().contains("exists"), "{refused}");
    store.backup(&directory.path().join("none/x.db")).await.unwrap_err();
    backup_file(&directory.path().join("none.db"), &directory.path().join("x.db")).unwrap_err();
    let left =
        std::fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    assert!(
        left.into_iter().all(|name| !name.contains("partial") && !name.starts_with('x') && !name.starts_with("none"))
    );

    // A database that no server has open is backed up as well.
    drop(store);
    let third = directory.path().join("third.db");
    backup_file(&database, &third).unwrap();
    assert_eq!(Sqlite::open(&third).unwrap().tail(&a).await.unwrap(), 150);
}

#[tokio::test]
async fn memory_has_nothing_to_back_up() {
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("copy.db");
    let refused = Memory::new().backup(&to).await.unwrap_err();
    assert!(refused.to_string().contains("in memory only"), "{refused}");
    assert!(!to.exists());
}
