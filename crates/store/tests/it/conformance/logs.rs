//! A session's log and its pending events.

use palisade_api::EventId;
use palisade_core::batch::{Kind, LogEntry, Mutation, PendingEntry};
use palisade_store::{EventQuery, Order, Store};

use crate::fixture::{append, conflict, entries, entry, session, tail, time, waiting};

pub(crate) async fn a_log_is_gapless(store: &dyn Store) {
    let a = session("a");
    assert_eq!(store.tail(&a).await.unwrap(), 0);
    assert_eq!(store.commit(append(&a, entries(2, 2))).await, Err(tail(&a, 1, 0)));
    store.commit(append(&a, entries(1, 3))).await.unwrap();
    for (batch, expected, current) in [
        (vec![entry(3, "x")], 2, 3),
        (vec![entry(5, "x")], 4, 3),
        (vec![entry(4, "x"), entry(6, "x")], 5, 4),
        (vec![entry(4, "x"), entry(4, "x")], 3, 4),
        (vec![entry(4, "x"), entry(3, "x")], 2, 4),
    ] {
        assert_eq!(store.commit(append(&a, batch)).await, Err(tail(&a, expected, current)));
        assert_eq!(store.tail(&a).await.unwrap(), 3);
    }
    store.commit(append(&a, entries(4, 4))).await.unwrap();
    assert_eq!(store.events(&EventQuery::all(a.clone(), 10)).await.unwrap(), entries(1, 4));
    assert_eq!(store.tail(&a).await.unwrap(), 4);
}

pub(crate) async fn a_log_is_read_by_page_type_and_time(store: &dyn Store) {
    let a = session("a");
    let kinds = ["user.message", "agent.message", "agent.tool_use"];
    let log: Vec<LogEntry> = (1..=12).map(|seq| entry(seq, kinds[usize::try_from(seq).unwrap() % 3])).collect();
    store.commit(append(&a, log.clone())).await.unwrap();

    let types = [vec![], vec![kinds[1].to_owned()], vec![kinds[0].into(), kinds[2].into()], vec!["none".into()]];
    let times = [(None, None), (Some(time(4)), None), (None, Some(time(9))), (Some(time(5)), Some(time(8)))];
    for types in &types {
        for (from, before) in times {
            for after in [None, Some(0), Some(1), Some(6), Some(12), Some(u64::MAX)] {
                for limit in [0, 2, 100] {
                    let wanted = |entry: &&LogEntry| {
                        (types.is_empty() || types.contains(&entry.kind))
                            && from.is_none_or(|from| entry.at >= from)
                            && before.is_none_or(|before| entry.at < before)
                    };
                    let up = EventQuery {
                        session: a.clone(),
                        types: types.clone(),
                        from,
                        before,
                        order: Order::Ascending,
                        after,
                        limit,
                    };
                    let rising: Vec<LogEntry> = log
                        .iter()
                        .filter(wanted)
                        .filter(|entry| after.is_none_or(|after| entry.seq > after))
                        .take(limit)
                        .cloned()
                        .collect();
                    assert_eq!(store.events(&up).await.unwrap(), rising, "{up:?}");
                    let down = EventQuery { order: Order::Descending, ..up };
                    let falling: Vec<LogEntry> = log
                        .iter()
                        .rev()
                        .filter(wanted)
                        .filter(|entry| after.is_none_or(|after| entry.seq < after))
                        .take(limit)
                        .cloned()
                        .collect();
                    assert_eq!(store.events(&down).await.unwrap(), falling, "{down:?}");
                }
            }
        }
    }
}

pub(crate) async fn events_are_found_by_id(store: &dyn Store) {
    let a = session("a");
    store.commit(append(&a, entries(1, 3))).await.unwrap();
    assert_eq!(store.event(&a, &EventId::from_tail("2")).await.unwrap(), Some(entry(2, "agent.message")));
    assert_eq!(store.event(&a, &EventId::from_tail("4")).await.unwrap(), None);
    assert_eq!(store.event(&session("b"), &EventId::from_tail("2")).await.unwrap(), None);
}

pub(crate) async fn an_event_id_is_used_once(store: &dyn Store) {
    let a = session("a");
    let start = append(&a, entries(1, 1)).with(Mutation::Enqueue(a.clone(), vec![waiting("p")]));
    store.commit(start).await.unwrap();
    let again = |seq: u64, id: &str| LogEntry { id: EventId::from_tail(id), ..entry(seq, "x") };
    for batch in [
        append(&a, vec![again(2, "1")]),
        append(&a, vec![again(2, "n"), again(3, "n")]),
        append(&a, Vec::new()).with(Mutation::Enqueue(a.clone(), vec![waiting("p")])),
        append(&a, Vec::new()).with(Mutation::Enqueue(a.clone(), vec![waiting("n"), waiting("n")])),
        append(&a, Vec::new()).with(Mutation::Enqueue(a.clone(), vec![waiting("1")])),
    ] {
        assert_eq!(store.commit(batch).await, Err(conflict(Kind::Session, "sesn_a")));
    }
    // Another session may use it.
    store.commit(append(&session("b"), entries(1, 1))).await.unwrap();
    assert_eq!((store.tail(&a).await.unwrap(), store.pending(&a).await.unwrap()), (1, vec![waiting("p")]));
}

pub(crate) async fn pending_events_keep_their_order(store: &dyn Store) {
    let (a, b) = (session("a"), session("b"));
    let enqueue = |session: &palisade_api::SessionId, ids: &[&str]| {
        let entries: Vec<PendingEntry> = ids.iter().map(|id| waiting(id)).collect();
        append(session, Vec::new()).with(Mutation::Enqueue(session.clone(), entries))
    };
    store.commit(enqueue(&a, &["z", "y"])).await.unwrap();
    store.commit(enqueue(&b, &["z"])).await.unwrap();
    store.commit(enqueue(&a, &["x", "a", "b"])).await.unwrap();
    assert_eq!(store.pending(&a).await.unwrap(), ["z", "y", "x", "a", "b"].map(waiting));
    assert_eq!(store.sessions_with_pending().await.unwrap(), [a.clone(), b.clone()]);

    let dequeue = Mutation::Dequeue(a.clone(), ["b", "y", "none", "y"].map(EventId::from_tail).to_vec());
    store.commit(append(&a, Vec::new()).with(dequeue)).await.unwrap();
    // What comes after a removal comes last, also when it was there before.
    store.commit(enqueue(&a, &["y"])).await.unwrap();
    assert_eq!(store.pending(&a).await.unwrap(), ["z", "x", "a", "y"].map(waiting));
    assert_eq!(store.pending(&b).await.unwrap(), [waiting("z")]);

    let all = Mutation::Dequeue(a.clone(), ["z", "x", "a", "y"].map(EventId::from_tail).to_vec());
    store.commit(append(&a, Vec::new()).with(all)).await.unwrap();
    assert_eq!(store.sessions_with_pending().await.unwrap(), [b]);
}

pub(crate) async fn promotion_moves_an_event_into_the_log(store: &dyn Store) {
    let a = session("a");
    let arrive = append(&a, entries(1, 1)).with(Mutation::Enqueue(a.clone(), vec![waiting("p"), waiting("q")]));
    store.commit(arrive).await.unwrap();
    let promoted = LogEntry { id: EventId::from_tail("p"), ..entry(2, "user.message") };
    let promote = append(&a, vec![promoted.clone()]).with(Mutation::Dequeue(a.clone(), vec![promoted.id.clone()]));
    store.commit(promote).await.unwrap();
    assert_eq!(store.pending(&a).await.unwrap(), [waiting("q")]);
    assert_eq!(store.event(&a, &promoted.id).await.unwrap(), Some(promoted));
}

pub(crate) async fn sessions_do_not_mix(store: &dyn Store) {
    let (a, b) = (session("a"), session("b"));
    for round in 0..4 {
        store.commit(append(&a, entries(round * 2 + 1, round * 2 + 2))).await.unwrap();
        store.commit(append(&b, entries(round + 1, round + 1))).await.unwrap();
    }
    assert_eq!(store.events(&EventQuery::all(a.clone(), 100)).await.unwrap(), entries(1, 8));
    assert_eq!(store.events(&EventQuery::all(b.clone(), 100)).await.unwrap(), entries(1, 4));
    assert_eq!(store.events(&EventQuery::all(session("c"), 100)).await.unwrap(), []);
    assert_eq!((store.tail(&a).await.unwrap(), store.tail(&b).await.unwrap()), (8, 4));
}
