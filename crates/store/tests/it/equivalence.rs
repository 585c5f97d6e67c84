//! Random batches, valid and not, on the memory and the SQLite back-end: the same answers, hints and state.

use palisade_api::{EventId, SessionId};
use palisade_core::batch::{Batch, Kind, LogEntry, Mutation, Precondition, Record};
use palisade_store::{DueQuery, EventQuery, ListQuery, Memory, Order, Sqlite, Store};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use crate::fixture::{entry, hints, key, record, session, time, waiting};

const CASES: u32 = 64;

/// A step whose numbers are relative to what is stored, so that most batches are valid and some are off by one.
#[derive(Debug, Clone)]
enum Step {
    Absent(usize),
    Exists(usize),
    Revision(usize, i64),
    Epoch(usize, i64),
    Tail(usize, i64),
    Put(Box<Record>),
    Delete(usize),
    Append { session: usize, count: u64, skew: i64, id: Option<u64> },
    Enqueue(usize, Vec<u8>),
    Dequeue(usize, Vec<u8>),
    TakeLease(usize, i64),
}

fn name(n: usize) -> SessionId {
    session(["a", "b", "c"][n % 3])
}

/// Few names, so that they meet.
fn place(n: usize) -> (Kind, String) {
    match n % 6 {
        n @ 0..=2 => (Kind::Session, name(n).as_str().to_owned()),
        n => ([Kind::Work, Kind::Agent][n % 2], format!("x{}", n / 4)),
    }
}

/// Zero in most cases.
fn skew() -> impl Strategy<Value = i64> {
    prop_oneof![8 => Just(0_i64), 1 => Just(1), 1 => Just(-1)]
}

fn put() -> impl Strategy<Value = Step> {
    let small = || proptest::option::of(0..3_u8);
    (
        0..6_usize,
        0..4_i64,
        small(),
        any::<bool>(),
        small(),
        proptest::option::of(0..5_i64),
        proptest::collection::btree_map(0..2_u8, 0..2_u8, 0..3),
        ".{0,12}",
    )
        .prop_map(|(place_number, created, parent, archived, status, due, labels, body)| {
            let (kind, id) = place(place_number);
            Step::Put(Box::new(Record {
                parent: parent.map(|n| format!("p{n}")),
                archived,
                status: status.map(|n| format!("s{n}")),
                due_at: due.map(time),
                labels: labels.into_iter().map(|(name, value)| (format!("n{name}"), format!("v{value}"))).collect(),
                body: serde_json::Value::String(body).to_string(),
                ..record(kind, &id, created)
            }))
        })
}

fn step() -> impl Strategy<Value = Step> {
    let ids = || proptest::collection::vec(0..12_u8, 0..3);
    prop_oneof![
        1 => (0..6_usize).prop_map(Step::Absent),
        1 => (0..6_usize).prop_map(Step::Exists),
        2 => (0..6_usize, skew()).prop_map(|(n, skew)| Step::Revision(n, skew)),
        2 => (0..3_usize, skew()).prop_map(|(n, skew)| Step::Epoch(n, skew)),
        2 => (0..3_usize, skew()).prop_map(|(n, skew)| Step::Tail(n, skew)),
        8 => put(),
        2 => (0..6_usize).prop_map(Step::Delete),
        8 => (0..3_usize, 0..4_u64, skew(), prop_oneof![9 => Just(None), 1 => (0..6_u64).prop_map(Some)])
            .prop_map(|(session, count, skew, id)| Step::Append { session, count, skew, id }),
        3 => (0..3_usize, ids()).prop_map(|(n, ids)| Step::Enqueue(n, ids)),
        3 => (0..3_usize, ids()).prop_map(|(n, ids)| Step::Dequeue(n, ids)),
        2 => (0..3_usize, skew()).prop_map(|(n, skew)| Step::TakeLease(n, skew)),
    ]
}

/// The batch for these steps, after what the store holds and what came earlier in the batch.
async fn batch(store: &dyn Store, steps: &[Step]) -> Batch {
    let mut tails = [0; 3];
    for (n, tail) in tails.iter_mut().enumerate() {
        *tail = store.tail(&name(n)).await.unwrap();
    }
    let mut batch = Batch::new();
    for step in steps {
        let place = |n: &usize| {
            let (kind, id) = place(*n);
            key(kind, &id)
        };
        batch = match step {
            Step::Absent(n) => batch.when(Precondition::Absent(place(n))),
            Step::Exists(n) => batch.when(Precondition::Exists(place(n))),
            Step::Revision(n, skew) => {
                let now = store.get(&place(n)).await.unwrap().map_or(0, |record| record.revision);
                batch.when(Precondition::Revision(place(n), now.saturating_add_signed(*skew)))
            }
            Step::Epoch(n, skew) => {
                let now = store.epoch(&name(*n)).await.unwrap();
                batch.when(Precondition::Epoch(name(*n), now.saturating_add_signed(*skew)))
            }
            Step::Tail(n, skew) => {
                let now = store.tail(&name(*n)).await.unwrap();
                batch.when(Precondition::Tail(name(*n), now.saturating_add_signed(*skew)))
            }
            Step::Put(record) => batch.with(Mutation::Put((**record).clone())),
            Step::Delete(n) => {
                let key = place(n);
                if key.kind == Kind::Session {
                    tails[*n % 3] = 0;
                }
                batch.with(Mutation::Delete(key))
            }
            Step::Append { session, count, skew, id } => {
                let first = tails[*session].saturating_add_signed(*skew) + 1;
                let mut entries: Vec<LogEntry> = (first..first + count)
                    .map(|seq| entry(seq, ["user.message", "agent.message"][usize::from(seq.is_multiple_of(2))]))
                    .collect();
                if let (Some(id), Some(last)) = (id, entries.last_mut()) {
                    last.id = EventId::from_tail(&id.to_string());
                }
                tails[*session] += count;
                batch.with(Mutation::Append(name(*session), entries))
            }
            Step::Enqueue(n, ids) => {
                let entries = ids.iter().map(|id| waiting(&id.to_string())).collect();
                batch.with(Mutation::Enqueue(name(*n), entries))
            }
            Step::Dequeue(n, ids) => {
                let ids = ids.iter().map(|id| EventId::from_tail(&id.to_string())).collect();
                batch.with(Mutation::Dequeue(name(*n), ids))
            }
            Step::TakeLease(n, skew) => {
                let next = store.epoch(&name(*n)).await.unwrap() + 1;
                batch.with(Mutation::TakeLease(name(*n), next.saturating_add_signed(*skew)))
            }
        };
    }
    batch
}

/// Everything that can be asked of a store, as text.
async fn everything(store: &dyn Store) -> Vec<String> {
    let mut all = Vec::new();
    for kind in [Kind::Session, Kind::Work, Kind::Agent] {
        for labels in [vec![], vec![("n0".to_owned(), "v1".to_owned())]] {
            for parent in [None, Some("p1".to_owned())] {
                for statuses in [vec![], vec!["s0".to_owned(), "s2".to_owned()]] {
                    for order in [Order::Ascending, Order::Descending] {
                        let query = ListQuery {
                            labels: labels.clone(),
                            parent: parent.clone(),
                            statuses: statuses.clone(),
                            include_archived: order == Order::Ascending,
                            order,
                            ..ListQuery::new(kind)
                        };
                        let found = store.list(&query).await.unwrap();
                        all.push(format!("{query:?}: {found:?} {}", store.count(&query).await.unwrap()));
                    }
                    let query = DueQuery { kind, parent: parent.clone(), statuses, before: time(3), limit: 3 };
                    all.push(format!("{query:?}: {:?}", store.due(&query).await.unwrap()));
                }
            }
        }
    }
    for session in (0..3).map(name) {
        let types = EventQuery { types: vec!["user.message".into()], ..EventQuery::all(session.clone(), 4) };
        all.push(format!(
            "{session}: {:?} {:?} {:?} {:?} {:?} {:?}",
            store.tail(&session).await.unwrap(),
            store.epoch(&session).await.unwrap(),
            store.pending(&session).await.unwrap(),
            store.event(&session, &EventId::from_tail("2")).await.unwrap(),
            store.events(&types).await.unwrap(),
            store.events(&EventQuery::all(session.clone(), 1000)).await.unwrap(),
        ));
    }
    all.push(format!("{:?}", store.sessions_with_pending().await.unwrap()));
    all
}

/// Groups are handed to SQLite at once, so that batches that fail stand between batches that do not, in one transaction.
async fn compare(groups: &[Vec<Vec<Step>>]) -> Result<(), TestCaseError> {
    let directory = tempfile::tempdir().unwrap();
    let sqlite = Sqlite::open(&directory.path().join("palisade.db")).unwrap();
    let memory = Memory::new();
    let (mut from_sqlite, mut from_memory) = (sqlite.watch(), memory.watch());
    for group in groups {
        let (mut batches, mut expected) = (Vec::new(), Vec::new());
        for steps in group {
            let batch = batch(&memory, steps).await;
            expected.push(memory.commit(batch.clone()).await);
            batches.push(batch);
        }
        let outcomes = futures::future::join_all(batches.iter().cloned().map(|batch| sqlite.commit(batch))).await;
        prop_assert_eq!(outcomes, expected, "{:?}", batches);
        prop_assert_eq!(hints(&mut from_sqlite), hints(&mut from_memory), "{:?}", batches);
    }
    let kept = everything(&memory).await;
    prop_assert_eq!(everything(&sqlite).await, kept.clone());
    // And it is still so for the one who opens it next.
    drop(sqlite);
    let sqlite = Sqlite::open(&directory.path().join("palisade.db")).unwrap();
    prop_assert_eq!(everything(&sqlite).await, kept);
    Ok(())
}

#[test]
fn memory_and_sqlite_agree() {
    let seed = std::env::var("PALISADE_SEED").map_or(0x5EED, |text| text.parse().expect("PALISADE_SEED is a number"));
    eprintln!("PALISADE_SEED={seed}");
    let config =
        Config { cases: CASES, rng_seed: RngSeed::Fixed(seed), failure_persistence: None, ..Config::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let batch = proptest::collection::vec(step(), 0..5);
    let group = proptest::collection::vec(batch, 1..8);
    let groups = proptest::collection::vec(group, 0..12);
    TestRunner::new(config).run(&groups, |groups| runtime.block_on(compare(&groups))).unwrap();
}
