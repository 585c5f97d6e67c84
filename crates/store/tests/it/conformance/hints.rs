//! Hints of what changed.

use palisade_api::EventId;
use palisade_core::batch::{Batch, Kind, Mutation, Precondition, Record};
use palisade_store::{Change, Store};

use crate::fixture::{append, entries, hints, key, put, record, session, waiting};

pub(crate) async fn hints_say_what_changed(store: &dyn Store) {
    let a = session("a");
    let work = Record { parent: Some("env_1".into()), ..record(Kind::Work, "work_1", 1) };
    let mut changes = store.watch();
    let session_put = put(record(Kind::Session, "sesn_a", 1));
    let works = Change::Record(Kind::Work, Some("env_1".into()));
    let (sessions, log) = (Change::Record(Kind::Session, None), Change::Session(a.clone()));
    for (batch, expected) in [
        (session_put.clone(), vec![sessions.clone()]),
        (put(work.clone()), vec![works.clone()]),
        (append(&a, entries(1, 2)), vec![log.clone()]),
        // Each hint once, in the order of the first.
        (
            session_put
                .with(Mutation::Enqueue(a.clone(), vec![waiting("p")]))
                .with(Mutation::Append(a.clone(), entries(3, 3)))
                .with(Mutation::Put(work.clone()))
                .with(Mutation::Put(work.clone())),
            vec![sessions.clone(), log.clone(), works.clone()],
        ),
        (Batch::new().with(Mutation::Dequeue(a.clone(), vec![EventId::from_tail("p")])), vec![log.clone()]),
        // Nothing changed.
        (Batch::new().with(Mutation::Dequeue(a.clone(), vec![EventId::from_tail("p")])), vec![]),
        (Batch::new().with(Mutation::Delete(key(Kind::Work, "none"))), vec![]),
        (append(&a, Vec::new()), vec![]),
        // A lease is nobody's news.
        (Batch::new().with(Mutation::TakeLease(a.clone(), 1)), vec![]),
        (Batch::new().with(Mutation::Delete(work.key())), vec![works]),
        (Batch::new().with(Mutation::Delete(key(Kind::Session, "sesn_a"))), vec![sessions, log]),
        (Batch::new().with(Mutation::Delete(key(Kind::Session, "sesn_a"))), vec![]),
    ] {
        store.commit(batch.clone()).await.unwrap();
        assert_eq!(hints(&mut changes), expected, "{batch:?}");
    }
}

pub(crate) async fn a_failed_batch_hints_nothing(store: &dyn Store) {
    let a = session("a");
    let mut changes = store.watch();
    let unmet = append(&a, entries(1, 1)).when(Precondition::Tail(a.clone(), 1));
    store.commit(unmet).await.unwrap_err();
    let gap = put(record(Kind::Agent, "agent_1", 1)).with(Mutation::Append(a, entries(2, 2)));
    store.commit(gap).await.unwrap_err();
    assert_eq!(hints(&mut changes), []);
}

pub(crate) async fn a_hint_comes_before_the_commit_returns(store: &dyn Store) {
    let (mut early, a) = (store.watch(), session("a"));
    store.commit(append(&a, entries(1, 1))).await.unwrap();
    // One who starts to watch now hears only of what comes.
    let mut late = store.watch();
    assert_eq!(early.try_recv(), Ok(Change::Session(a.clone())));
    assert!(late.try_recv().is_err());
    store.commit(append(&a, entries(2, 2))).await.unwrap();
    assert_eq!(late.recv().await, Ok(Change::Session(a.clone())));
    // What a hint tells of can be read.
    assert_eq!(store.tail(&a).await.unwrap(), 2);
}
