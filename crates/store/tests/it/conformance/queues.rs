//! What is due, and whose turn it is.

use palisade_core::batch::{Batch, Kind, Mutation, Precondition, Record};
use palisade_store::{CommitError, DueQuery, Store};

use crate::fixture::{append, entries, fenced, put, put_all, record, session, time};

async fn ids(store: &dyn Store, query: &DueQuery) -> Vec<String> {
    store.due(query).await.unwrap().into_iter().map(|record| record.id).collect()
}

fn work(id: &str, created: i64, due: i64) -> Record {
    Record { due_at: Some(time(due)), status: Some("queued".into()), ..record(Kind::Work, id, created) }
}

fn query(before: i64) -> DueQuery {
    DueQuery { kind: Kind::Work, parent: None, statuses: Vec::new(), before: time(before), limit: 100 }
}

pub(crate) async fn due_is_by_time_creation_and_id(store: &dyn Store) {
    let never = Record { due_at: None, ..work("never", 0, 0) };
    let archived = Record { archived: true, ..work("archived", 9, 4) };
    let items =
        [work("c", 2, 5), work("b", 2, 5), work("d", 1, 5), work("e", 9, 1), work("late", 0, 8), never, archived];
    put_all(store, items).await;
    put_all(store, [Record { due_at: Some(time(1)), ..record(Kind::Session, "sesn_1", 1) }]).await;
    // Archived or not is the list's concern, not the queue's.
    assert_eq!(ids(store, &query(5)).await, ["e", "archived", "d", "b", "c"]);
    assert_eq!(ids(store, &query(4)).await, ["e", "archived"]);
    assert_eq!(ids(store, &DueQuery { limit: 3, ..query(100) }).await, ["e", "archived", "d"]);
    assert!(ids(store, &DueQuery { limit: 0, ..query(100) }).await.is_empty());
    assert!(ids(store, &query(0)).await.is_empty());
    // Done: no longer due.
    let done = Record { due_at: None, ..work("e", 9, 1) };
    store.commit(put(done).with(Mutation::Put(work("d", 1, 99)))).await.unwrap();
    assert_eq!(ids(store, &query(5)).await, ["archived", "b", "c"]);
}

pub(crate) async fn due_filters_by_parent_and_status(store: &dyn Store) {
    let statuses = ["queued", "acked", "done"];
    put_all(
        store,
        (0..18_i64).map(|n| Record {
            parent: (n % 2 == 0).then(|| "env_1".into()),
            status: (n % 4 != 3).then(|| statuses[usize::try_from(n).unwrap() % 3].into()),
            ..work(&format!("{n:02}"), n, 20 - n)
        }),
    )
    .await;
    let expect = |parent: bool, wanted: &[&str]| -> Vec<String> {
        (0..18_i64)
            .rev()
            .filter(|n| !parent || n % 2 == 0)
            .filter(|n| {
                wanted.is_empty() || (n % 4 != 3 && wanted.contains(&statuses[usize::try_from(*n).unwrap() % 3]))
            })
            .map(|n| format!("{n:02}"))
            .collect()
    };
    for wanted in [&[][..], &["queued"], &["acked", "queued"], &["done", "done", "none"], &["none"]] {
        for parent in [false, true] {
            let query = DueQuery {
                parent: parent.then(|| "env_1".into()),
                statuses: wanted.iter().map(|&status| status.into()).collect(),
                ..query(100)
            };
            let expected = expect(parent, wanted);
            assert_eq!(ids(store, &query).await, expected, "{query:?}");
            let few = DueQuery { limit: 2, ..query };
            assert_eq!(ids(store, &few).await, expected[..expected.len().min(2)], "{few:?}");
        }
    }
}

pub(crate) async fn leases_only_grow(store: &dyn Store) {
    let a = session("a");
    let take = |epoch| Batch::new().with(Mutation::TakeLease(a.clone(), epoch));
    assert_eq!(store.epoch(&a).await.unwrap(), 0);
    assert_eq!(store.commit(take(0)).await, Err(fenced(&a, 0, 0)));
    store.commit(take(1)).await.unwrap();
    store.commit(take(7)).await.unwrap();
    for epoch in [1, 6, 7] {
        assert_eq!(store.commit(take(epoch)).await, Err(fenced(&a, epoch, 7)));
    }
    assert_eq!(store.epoch(&a).await.unwrap(), 7);
    // The one before is fenced off, the holder is not.
    let write = |epoch| append(&a, entries(1, 1)).when(Precondition::Epoch(a.clone(), epoch));
    assert_eq!(store.commit(write(1)).await, Err(fenced(&a, 1, 7)));
    store.commit(write(7)).await.unwrap();
    assert_eq!((store.epoch(&a).await.unwrap(), store.tail(&a).await.unwrap()), (7, 1));
}

pub(crate) async fn only_one_claims_a_lease(store: &dyn Store) {
    let a = session("a");
    let race = (0..16).map(|_| {
        store.commit(Batch::new().when(Precondition::Epoch(a.clone(), 0)).with(Mutation::TakeLease(a.clone(), 1)))
    });
    let outcomes = futures::future::join_all(race).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(()) | Err(CommitError::Fenced { current: 1, .. }))));
}
