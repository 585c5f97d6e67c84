//! A disk without room: writes are refused and say so, reads go on, nothing acknowledged is lost.

use std::path::Path;

use palisade_core::batch::{Batch, Kind, LogEntry, Mutation};
use palisade_store::{CommitError, EventQuery, Options, Sqlite, Store, StoreError};
use palisade_testkit::storage;

use crate::fixture::{append, entry, key, put, record, session};

fn large(seq: u64, bytes: usize) -> LogEntry {
    LogEntry { body: "x".repeat(bytes), ..entry(seq, "agent.message") }
}

/// Appends to session `a` until the store refuses; how far it got and what it said.
async fn fill(store: &Sqlite, bytes: usize) -> (u64, StoreError) {
    let a = session("a");
    for seq in store.tail(&a).await.unwrap() + 1.. {
        match store.commit(append(&a, vec![large(seq, bytes)])).await {
            Ok(()) => assert!(seq < 10_000, "the limit does not hold"),
            Err(CommitError::Store(why)) => return (seq - 1, why),
            Err(why) => panic!("{why}"),
        }
    }
    unreachable!()
}

async fn holds(store: &Sqlite, tail: u64) {
    let a = session("a");
    assert_eq!(store.tail(&a).await.unwrap(), tail);
    let log = store.events(&EventQuery::all(a, usize::MAX)).await.unwrap();
    assert_eq!(log.iter().map(|entry| entry.seq).collect::<Vec<_>>(), (1..=tail).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_quota_refuses_writes_and_keeps_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("palisade.db");
    let store = Sqlite::open_with(&database, Options { max_bytes: Some(512 * 1024), ..Options::default() }).unwrap();
    let b = session("b");
    let start = put(record(Kind::Session, b.as_str(), 1)).with(Mutation::Append(b.clone(), vec![large(1, 100_000)]));
    store.commit(start).await.unwrap();
    store.check().await.unwrap();
    let (tail, why) = fill(&store, 4000).await;
    assert_eq!(why, StoreError::Full);
    assert!(tail > 50);
    holds(&store, tail).await;
    assert_eq!(store.check().await, Err(StoreError::Full));

    // Many at once: each is stored whole or refused, and what was refused is not there.
    let rush = (0..16).map(|n| {
        let name = session(&format!("rush{n}"));
        let batch = append(&name, (1..=4).map(|seq| large(seq, 8000)).collect());
        let store = &store;
        async move { (store.commit(batch).await, store.tail(&name).await.unwrap()) }
    });
    for (outcome, tail) in futures::future::join_all(rush).await {
        assert_eq!((outcome, tail), (Err(CommitError::Store(StoreError::Full)), 0));
    }
    holds(&store, tail).await;

    // Room again, without a restart: what is deleted gives its pages back.
    store.commit(Batch::new().with(Mutation::Delete(key(Kind::Session, b.as_str())))).await.unwrap();
    let (further, why) = fill(&store, 4000).await;
    assert!(further > tail);
    assert_eq!(why, StoreError::Full);
    drop(store);

    // A larger quota: all is there and writing goes on.
    let store = Sqlite::open_with(&database, Options { max_bytes: Some(1024 * 1024), ..Options::default() }).unwrap();
    holds(&store, further).await;
    store.check().await.unwrap();
    assert!(fill(&store, 4000).await.0 > further);
}

/// The other half of the test below, in a mount namespace with a file system of 2 MiB. Elsewhere there is nothing to fill.
#[tokio::test]
async fn process_on_a_small_disk() {
    let Some(disk) = storage::place() else { return };
    let (database, ballast) = (disk.join("palisade.db"), disk.join("ballast"));
    std::fs::write(&ballast, vec![1; 512 * 1024]).unwrap();
    let store = Sqlite::open(&database).unwrap();
    let (tail, why) = fill(&store, 20_000).await;
    assert_eq!(why, StoreError::Full);
    assert!(tail > 5);
    holds(&store, tail).await;
    // Not even a little is left.
    std::fs::write(disk.join("rest"), vec![1; 2 * 1024 * 1024]).unwrap_err();
    assert_eq!(store.check().await, Err(StoreError::Full));
    assert_eq!(store.backup(&disk.join("copy.db")).await, Err(StoreError::Full));
    assert!(!disk.join("copy.db").exists());

    std::fs::remove_file(disk.join("rest")).unwrap();
    std::fs::remove_file(&ballast).unwrap();
    store.check().await.unwrap();
    let (further, why) = fill(&store, 20_000).await;
    assert_eq!(why, StoreError::Full);
    assert!(further > tail);
    holds(&store, further).await;
    drop(store);
    let store = Sqlite::open(&database).unwrap();
    holds(&store, further).await;
    println!("\nfilled twice");
}

#[test]
fn a_full_disk_refuses_writes_and_keeps_the_rest() {
    let said = storage::on_a_small_disk("full::process_on_a_small_disk", 2);
    assert!(said.contains("filled twice"), "{said}");
}

/// The other half of the test below: sets the limit for itself, then takes it away.
#[tokio::test]
async fn process_with_short_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Some(directory) = storage::place() else { return };
    let database = Path::new(&directory).join("palisade.db");
    let store = Sqlite::open(&database).unwrap();
    let before = getrlimit(Resource::Fsize);
    setrlimit(Resource::Fsize, Rlimit { current: Some(1024 * 1024), ..before }).unwrap();
    let (tail, why) = fill(&store, 20_000).await;
    // The disk has room, so the storage's own words are given instead of advice that would not help.
    assert!(matches!(&why, StoreError::Storage { cause, .. } if cause.contains("I/O")), "{why}");
    holds(&store, tail).await;
    setrlimit(Resource::Fsize, before).unwrap();
    let a = session("a");
    store.commit(append(&a, vec![large(tail + 1, 20_000)])).await.unwrap();
    drop(store);
    holds(&Sqlite::open(&database).unwrap(), tail + 1).await;
    println!("\nwrote on");
}

#[test]
fn a_failing_write_is_told_and_keeps_the_rest() {
    let said = storage::with_short_files("full::process_with_short_files");
    assert!(said.contains("wrote on"), "{said}");
}
