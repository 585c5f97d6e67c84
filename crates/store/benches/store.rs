//! Throughput of the SQLite back-end: `cargo bench -p palisade-store`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use divan::Bencher;
use divan::counter::ItemsCount;
use palisade_api::{EventId, SessionId, Timestamp};
use palisade_core::batch::{Batch, Key, Kind, LogEntry, Mutation, Precondition, Record};
use palisade_store::{ListQuery, Sqlite, Store};
use tokio::runtime::Runtime;

/// Batches that each session commits in one iteration.
const ROUNDS: u64 = 50;

fn main() {
    divan::main();
}

struct Bench {
    runtime: Runtime,
    store: Arc<Sqlite>,
    _directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store = Sqlite::open(&directory.path().join("palisade.db")).expect("a new database");
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        Bench { runtime, store: Arc::new(store), _directory: directory }
    }
}

/// A session's object with a realistic body, of about 2 KiB.
fn own(id: &str) -> Record {
    let body = serde_json::json!({ "id": id, "type": "session", "state": "x".repeat(2000) });
    let mut record = Record::new(Kind::Session, id, Timestamp::from_micros(1), &body).expect("JSON from a value");
    record.status = Some("running".into());
    record.labels.insert("agent_id".into(), "agent_1".into());
    record
}

/// 1 to 4 events of about 400 bytes.
fn events(session: &SessionId, first: u64, count: u64) -> Vec<LogEntry> {
    (first..first + count)
        .map(|seq| LogEntry {
            seq,
            id: EventId::from_tail(&format!("01{seq:020}{}", session.as_str().len())),
            kind: "agent.message".into(),
            at: Timestamp::from_micros(seq.cast_signed()),
            body: format!(r#"{{"type":"agent.message","seq":{seq},"text":"{}"}}"#, "x".repeat(350)),
            private: None,
        })
        .collect()
}

/// One session's turn: batches of a session put and 1 to 4 events, one after the other, as an actor commits them.
async fn turn(store: Arc<Sqlite>, session: SessionId) -> u64 {
    let start = Batch::new().with(Mutation::TakeLease(session.clone(), 1));
    store.commit(start).await.expect("a lease");
    let mut tail = 0;
    for round in 0..ROUNDS {
        let count = round % 4 + 1;
        let batch = Batch::new()
            .when(Precondition::Epoch(session.clone(), 1))
            .with(Mutation::Put(own(session.as_str())))
            .with(Mutation::Append(session.clone(), events(&session, tail + 1, count)));
        store.commit(batch).await.expect("a commit");
        tail += count;
    }
    tail
}

/// Durable events per second, by the number of sessions that commit at the same time.
#[divan::bench(args = [1, 16, 64], sample_count = 8, sample_size = 1)]
fn append(bencher: Bencher, sessions: u64) {
    let bench = Bench::new();
    let fresh = AtomicU64::new(0);
    let total = sessions * (0..ROUNDS).map(|round| round % 4 + 1).sum::<u64>();
    bencher.counter(ItemsCount::new(total)).bench(|| {
        bench.runtime.block_on(async {
            let turns: Vec<_> = (0..sessions)
                .map(|_| {
                    let session = SessionId::from_tail(&fresh.fetch_add(1, Ordering::Relaxed).to_string());
                    tokio::spawn(turn(bench.store.clone(), session))
                })
                .collect();
            let mut written = 0;
            for turn in turns {
                written += turn.await.expect("a turn");
            }
            assert_eq!(written, total);
        });
    });
}

fn with_sessions(count: i64) -> Bench {
    let bench = Bench::new();
    let puts = (0..count).map(|n| {
        let mut record = own(&format!("sesn_{n}"));
        record.created_at = Timestamp::from_micros(n);
        record.labels.insert("team".into(), (n % 50).to_string());
        Mutation::Put(record)
    });
    let batch = Batch { preconditions: Vec::new(), mutations: puts.collect() };
    bench.runtime.block_on(bench.store.commit(batch)).expect("a commit");
    bench
}

/// One record of 10,000.
#[divan::bench]
fn get(bencher: Bencher) {
    let bench = with_sessions(10_000);
    let key = Key::new(Kind::Session, "sesn_5000");
    bencher.bench(|| bench.runtime.block_on(bench.store.get(&key)).expect("a read"));
}

/// A page of 20 of 10,000.
#[divan::bench]
fn list(bencher: Bencher) {
    let bench = with_sessions(10_000);
    let query = ListQuery::new(Kind::Session);
    bencher.bench(|| bench.runtime.block_on(bench.store.list(&query)).expect("a read"));
}

/// A page of 20 of the 200 that carry a label, among 10,000.
#[divan::bench]
fn list_by_label(bencher: Bencher) {
    let bench = with_sessions(10_000);
    let query = ListQuery { labels: vec![("team".into(), "7".into())], ..ListQuery::new(Kind::Session) };
    bencher.bench(|| bench.runtime.block_on(bench.store.list(&query)).expect("a read"));
}
