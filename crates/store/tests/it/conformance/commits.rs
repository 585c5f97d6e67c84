//! The write door: whole or not at all.

use std::collections::BTreeMap;

use palisade_api::EventId;
use palisade_core::batch::{Batch, Kind, Mutation, Precondition, Record};
use palisade_store::{CommitError, EventQuery, ListQuery, Store};

use crate::fixture::{
    append, conflict, entries, entry, fenced, key, put, put_all, record, session, tail, time, waiting,
};

pub(crate) async fn a_record_comes_back_as_it_was_put(store: &dyn Store) {
    let mut labels = BTreeMap::new();
    labels.insert("agent_id".to_owned(), "agent_1".to_owned());
    labels.insert("".to_owned(), "\"quotes\" and \u{1f512}\0".to_owned());
    let full = Record {
        revision: 99,
        parent: Some("env_1".into()),
        archived: true,
        status: Some("queued".into()),
        due_at: Some(time(-5)),
        labels,
        ..record(Kind::Work, "work_1", 7)
    };
    store.commit(put(full.clone())).await.unwrap();
    // The revision of a put is ignored.
    assert_eq!(store.get(&full.key()).await.unwrap(), Some(Record { revision: 1, ..full.clone() }));

    // Everything can be taken away again.
    let bare = record(Kind::Work, "work_1", 8);
    store.commit(put(bare.clone())).await.unwrap();
    assert_eq!(store.get(&full.key()).await.unwrap(), Some(Record { revision: 2, ..bare }));
    assert_eq!(store.get(&key(Kind::Work, "work_2")).await.unwrap(), None);
    assert_eq!(store.get(&key(Kind::Agent, "work_1")).await.unwrap(), None);
}

pub(crate) async fn revisions_count_puts(store: &dyn Store) {
    let agent = record(Kind::Agent, "agent_1", 1);
    for revision in 1..=3 {
        store.commit(put(agent.clone())).await.unwrap();
        assert_eq!(store.get(&agent.key()).await.unwrap().unwrap().revision, revision);
    }
    let twice = put(agent.clone()).with(Mutation::Put(agent.clone()));
    store.commit(twice.when(Precondition::Revision(agent.key(), 3))).await.unwrap();
    assert_eq!(store.get(&agent.key()).await.unwrap().unwrap().revision, 5);
    // A record made anew starts anew, also within one batch.
    store.commit(Batch::new().with(Mutation::Delete(agent.key())).with(Mutation::Put(agent.clone()))).await.unwrap();
    assert_eq!(store.get(&agent.key()).await.unwrap().unwrap().revision, 1);
}

pub(crate) async fn every_precondition_holds_or_refuses(store: &dyn Store) {
    let (known, unknown) = (key(Kind::Session, "sesn_a"), key(Kind::Session, "sesn_b"));
    let (a, b) = (session("a"), session("b"));
    let start = put(record(Kind::Session, "sesn_a", 1))
        .with(Mutation::Append(a.clone(), entries(1, 2)))
        .with(Mutation::TakeLease(a.clone(), 4));
    store.commit(start).await.unwrap();

    for holds in [
        Precondition::Absent(unknown.clone()),
        Precondition::Exists(known.clone()),
        Precondition::Revision(known.clone(), 1),
        Precondition::Epoch(a.clone(), 4),
        Precondition::Epoch(b.clone(), 0),
        Precondition::Tail(a.clone(), 2),
        Precondition::Tail(b.clone(), 0),
    ] {
        store.commit(Batch::new().when(holds)).await.unwrap();
    }
    for (refuses, error) in [
        (Precondition::Absent(known.clone()), conflict(Kind::Session, "sesn_a")),
        (Precondition::Exists(unknown.clone()), conflict(Kind::Session, "sesn_b")),
        (Precondition::Revision(known.clone(), 0), conflict(Kind::Session, "sesn_a")),
        (Precondition::Revision(known.clone(), 2), conflict(Kind::Session, "sesn_a")),
        // A record that is not there has no revision, not revision zero.
        (Precondition::Revision(unknown.clone(), 0), conflict(Kind::Session, "sesn_b")),
        (Precondition::Epoch(a.clone(), 3), fenced(&a, 3, 4)),
        (Precondition::Epoch(a.clone(), u64::MAX), fenced(&a, u64::MAX, 4)),
        (Precondition::Epoch(b.clone(), 1), fenced(&b, 1, 0)),
        (Precondition::Tail(a.clone(), 3), tail(&a, 3, 2)),
        (Precondition::Tail(b.clone(), 1), tail(&b, 1, 0)),
    ] {
        let batch = Batch::new().when(refuses).with(Mutation::Delete(known.clone()));
        assert_eq!(store.commit(batch).await, Err(error));
    }
    assert!(store.get(&known).await.unwrap().is_some());
    // The first that fails is the one that is told.
    let both = Batch::new().when(Precondition::Tail(a.clone(), 9)).when(Precondition::Epoch(a.clone(), 9));
    assert_eq!(store.commit(both).await, Err(tail(&a, 9, 2)));
}

pub(crate) async fn preconditions_see_the_state_before_the_batch(store: &dyn Store) {
    let a = session("a");
    let batch = append(&a, entries(1, 1))
        .with(Mutation::Append(a.clone(), entries(2, 3)))
        .with(Mutation::TakeLease(a.clone(), 1))
        .with(Mutation::TakeLease(a.clone(), 2))
        .when(Precondition::Tail(a.clone(), 0))
        .when(Precondition::Epoch(a.clone(), 0));
    store.commit(batch).await.unwrap();
    assert_eq!((store.tail(&a).await.unwrap(), store.epoch(&a).await.unwrap()), (3, 2));
}

pub(crate) async fn a_failing_batch_leaves_nothing(store: &dyn Store) {
    let (a, b) = (session("a"), session("b"));
    let mut labelled = record(Kind::Session, "sesn_a", 1);
    labelled.labels.insert("x".into(), "1".into());
    let start = put(labelled.clone())
        .with(Mutation::Append(a.clone(), entries(1, 2)))
        .with(Mutation::Enqueue(a.clone(), vec![waiting("p"), waiting("q")]))
        .with(Mutation::TakeLease(a.clone(), 1));
    store.commit(start).await.unwrap();

    let everything = |store| async move { state(store).await };
    let before = everything(store).await;
    let mut relabelled = record(Kind::Session, "sesn_a", 9);
    relabelled.labels.insert("x".into(), "2".into());
    // Every kind of mutation, then one that fails.
    let all = put(record(Kind::Agent, "agent_1", 1))
        .with(Mutation::Put(relabelled))
        .with(Mutation::Append(a.clone(), entries(3, 4)))
        .with(Mutation::Enqueue(a.clone(), vec![waiting("r")]))
        .with(Mutation::Dequeue(a.clone(), vec![EventId::from_tail("p")]))
        .with(Mutation::TakeLease(a.clone(), 2))
        .with(Mutation::Enqueue(b.clone(), vec![waiting("p")]))
        .with(Mutation::Append(b.clone(), entries(1, 1)))
        .with(Mutation::Delete(labelled.key()))
        .with(Mutation::Append(a.clone(), entries(1, 1)))
        .with(Mutation::TakeLease(a.clone(), 1));
    for (last, error) in [
        (Mutation::TakeLease(a.clone(), 1), fenced(&a, 1, 1)),
        (Mutation::Append(a.clone(), entries(3, 3)), tail(&a, 2, 1)),
        (Mutation::Append(a.clone(), vec![entry(2, "x"), entry(4, "x")]), tail(&a, 3, 2)),
        (Mutation::Enqueue(b.clone(), vec![waiting("s"), waiting("p")]), conflict(Kind::Session, "sesn_b")),
    ] {
        assert_eq!(store.commit(all.clone().with(last)).await, Err(error));
        assert_eq!(everything(store).await, before);
    }
    store.commit(all).await.unwrap();
    assert_ne!(everything(store).await, before);
}

async fn state(store: &dyn Store) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for kind in Kind::ALL {
        let query = ListQuery { include_archived: true, limit: 100, ..ListQuery::new(kind) };
        writeln!(text, "{:?}", store.list(&query).await.unwrap()).unwrap();
    }
    let labels = vec![("x".to_owned(), "1".to_owned())];
    writeln!(text, "{}", store.count(&ListQuery { labels, ..ListQuery::new(Kind::Session) }).await.unwrap()).unwrap();
    for session in [session("a"), session("b")] {
        writeln!(
            text,
            "{:?} {:?} {:?} {:?}",
            store.tail(&session).await.unwrap(),
            store.epoch(&session).await.unwrap(),
            store.pending(&session).await.unwrap(),
            store.events(&EventQuery::all(session, 100)).await.unwrap(),
        )
        .unwrap();
    }
    text
}

pub(crate) async fn an_empty_batch_checks_only(store: &dyn Store) {
    store.commit(Batch::new()).await.unwrap();
    let a = session("a");
    let nothing = append(&a, Vec::new())
        .with(Mutation::Enqueue(a.clone(), Vec::new()))
        .with(Mutation::Dequeue(a.clone(), vec![EventId::from_tail("1")]));
    store.commit(nothing).await.unwrap();
    assert_eq!(store.tail(&a).await.unwrap(), 0);
    store.check().await.unwrap();
}

pub(crate) async fn concurrent_commits_to_one_record_are_serial(store: &dyn Store) {
    let agent = record(Kind::Agent, "agent_1", 1);
    store.commit(put(agent.clone())).await.unwrap();
    let race = (0..32).map(|_| {
        let batch = put(agent.clone()).when(Precondition::Revision(agent.key(), 1));
        store.commit(batch)
    });
    let outcomes = futures::future::join_all(race).await;
    // One of all those who saw revision 1 wins; each other is told so and nothing else.
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(()) | Err(CommitError::Conflict(_)))));
    assert_eq!(store.get(&agent.key()).await.unwrap().unwrap().revision, 2);
}

pub(crate) async fn deleting_a_session_takes_its_log_with_it(store: &dyn Store) {
    let (a, b) = (session("a"), session("b"));
    for session in [&a, &b] {
        let start = put(record(Kind::Session, session.as_str(), 1))
            .with(Mutation::Put(record(Kind::SessionAgent, session.as_str(), 1)))
            .with(Mutation::Append(session.clone(), entries(1, 3)))
            .with(Mutation::Enqueue(session.clone(), vec![waiting("p")]))
            .with(Mutation::TakeLease(session.clone(), 5));
        store.commit(start).await.unwrap();
    }
    store.commit(Batch::new().with(Mutation::Delete(key(Kind::Session, "sesn_a")))).await.unwrap();

    assert_eq!(store.get(&key(Kind::Session, "sesn_a")).await.unwrap(), None);
    assert_eq!(store.events(&EventQuery::all(a.clone(), 10)).await.unwrap(), []);
    assert_eq!(store.event(&a, &EventId::from_tail("1")).await.unwrap(), None);
    assert_eq!(store.pending(&a).await.unwrap(), []);
    assert_eq!((store.tail(&a).await.unwrap(), store.epoch(&a).await.unwrap()), (0, 0));
    assert_eq!(store.sessions_with_pending().await.unwrap(), std::slice::from_ref(&b));
    // Who still holds the lease of the deleted session is fenced off.
    let late = append(&a, entries(4, 4)).when(Precondition::Epoch(a.clone(), 5));
    assert_eq!(store.commit(late).await, Err(fenced(&a, 5, 0)));
    // Other records of the session and other sessions stay.
    assert!(store.get(&key(Kind::SessionAgent, "sesn_a")).await.unwrap().is_some());
    assert_eq!((store.tail(&b).await.unwrap(), store.epoch(&b).await.unwrap()), (3, 5));

    // The same batch can begin a session of the same name from nothing.
    let again = Batch::new()
        .with(Mutation::Delete(key(Kind::Session, "sesn_b")))
        .with(Mutation::Append(b.clone(), entries(1, 1)));
    store.commit(again).await.unwrap();
    assert_eq!((store.tail(&b).await.unwrap(), store.epoch(&b).await.unwrap()), (1, 0));
}

pub(crate) async fn deleting_what_is_not_there_is_no_error(store: &dyn Store) {
    put_all(store, [record(Kind::Agent, "x", 1)]).await;
    store.commit(Batch::new().with(Mutation::Delete(key(Kind::Session, "x")))).await.unwrap();
    assert!(store.get(&key(Kind::Agent, "x")).await.unwrap().is_some());
}

pub(crate) async fn texts_and_numbers_come_back_whole(store: &dyn Store) {
    let a = session("a");
    let big = format!(r#"{{"text":"{}"}}"#, "\u{1f512}ß\\u0000 ".repeat(100_000));
    let mut large = entry(1, "user.message");
    large.body.clone_from(&big);
    large.private = Some(big.clone());
    large.at = time(i64::MIN);
    let mut wide = record(Kind::Session, "sesn_a", i64::MAX);
    wide.body.clone_from(&big);
    let batch = put(wide)
        .with(Mutation::Append(a.clone(), vec![large.clone()]))
        .with(Mutation::TakeLease(a.clone(), u64::MAX - 1));
    store.commit(batch).await.unwrap();
    assert_eq!(store.events(&EventQuery::all(a.clone(), usize::MAX)).await.unwrap(), [large]);
    let stored = store.get(&key(Kind::Session, "sesn_a")).await.unwrap().unwrap();
    assert_eq!((stored.body, stored.created_at), (big, time(i64::MAX)));
    assert_eq!(store.epoch(&a).await.unwrap(), u64::MAX - 1);
    // Numbers at the edge are refused by comparison, never by overflow.
    assert_eq!(store.commit(append(&a, entries(0, 0))).await, Err(tail(&a, 0, 1)));
    let last = vec![entry(u64::MAX, "x")];
    assert_eq!(store.commit(append(&a, last)).await, Err(tail(&a, u64::MAX - 1, 1)));
}
