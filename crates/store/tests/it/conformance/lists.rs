//! Lists of records: filters, order, cursors, counts.

use palisade_core::batch::{Batch, Kind, Mutation, Record};
use palisade_store::{Cursor, ListQuery, Order, Store};

use crate::fixture::{key, put, put_all, record, time};

async fn ids(store: &dyn Store, query: &ListQuery) -> Vec<String> {
    store.list(query).await.unwrap().into_iter().map(|record| record.id).collect()
}

pub(crate) async fn lists_are_by_creation_then_id(store: &dyn Store) {
    put_all(store, [("b", 2), ("c", 1), ("a", 2), ("d", 3), ("Z", 2)].map(|(id, at)| record(Kind::Agent, id, at)))
        .await;
    let newest = ListQuery::new(Kind::Agent);
    assert_eq!(ids(store, &newest).await, ["d", "b", "a", "Z", "c"]);
    let oldest = ListQuery { order: Order::Ascending, ..newest.clone() };
    assert_eq!(ids(store, &oldest).await, ["c", "Z", "a", "b", "d"]);
    assert_eq!(ids(store, &ListQuery { limit: 2, ..newest.clone() }).await, ["d", "b"]);
    assert!(ids(store, &ListQuery { limit: 0, ..newest.clone() }).await.is_empty());
    assert_eq!(ids(store, &ListQuery { limit: usize::MAX, ..newest.clone() }).await.len(), 5);
    // Where a record stands follows from what it says now.
    store.commit(put(record(Kind::Agent, "c", 9))).await.unwrap();
    assert_eq!(ids(store, &ListQuery { limit: 1, ..newest }).await, ["c"]);
}

pub(crate) async fn archived_records_are_left_out(store: &dyn Store) {
    let archived = Record { archived: true, ..record(Kind::Agent, "b", 2) };
    put_all(store, [record(Kind::Agent, "a", 1), archived]).await;
    let query = ListQuery::new(Kind::Agent);
    assert_eq!(ids(store, &query).await, ["a"]);
    assert_eq!(store.count(&query).await.unwrap(), 1);
    let all = ListQuery { include_archived: true, ..query };
    assert_eq!(ids(store, &all).await, ["b", "a"]);
    assert_eq!(store.count(&all).await.unwrap(), 2);
}

/// Sixteen sessions that differ in parent, status, two labels and time.
fn varied() -> impl Iterator<Item = Record> {
    (0..16_u8).map(|n| {
        let pick = |bit: u8, one: &str, other: &str| if n & bit == 0 { one.to_owned() } else { other.to_owned() };
        let mut record = record(Kind::Session, &format!("sesn_{n:02}"), i64::from(n / 2));
        record.parent = Some(pick(1, "p", "q"));
        record.status = (n & 6 != 6).then(|| pick(2, "idle", "running"));
        record.labels.insert("agent".into(), pick(4, "x", "y"));
        if n & 8 != 0 {
            record.labels.insert("team".into(), "red".into());
        }
        record
    })
}

pub(crate) async fn filters_narrow_alone_and_together(store: &dyn Store) {
    put_all(store, varied()).await;
    let all: Vec<Record> = varied().collect();
    let base = ListQuery { order: Order::Ascending, limit: 100, ..ListQuery::new(Kind::Session) };
    let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());

    let parents = [None, Some("p".to_owned()), Some("none".to_owned())];
    let statuses =
        [vec![], vec!["idle".to_owned()], vec!["running".into(), "idle".into(), "idle".into()], vec!["no".into()]];
    let labels = [
        vec![],
        vec![label("agent", "x")],
        vec![label("team", "red"), label("agent", "y")],
        vec![label("agent", "x"), label("agent", "y")],
        vec![label("agent", "x"), label("agent", "x")],
        vec![label("x", "agent")],
    ];
    let times = [(None, None), (Some(time(2)), None), (None, Some(time(5))), (Some(time(3)), Some(time(6)))];
    for parent in &parents {
        for statuses in &statuses {
            for labels in &labels {
                for (from, before) in times {
                    let query = ListQuery {
                        parent: parent.clone(),
                        statuses: statuses.clone(),
                        labels: labels.clone(),
                        created_from: from,
                        created_before: before,
                        ..base.clone()
                    };
                    let expected: Vec<&str> = all
                        .iter()
                        .filter(|record| parent.is_none() || record.parent == *parent)
                        .filter(|record| {
                            statuses.is_empty()
                                || record.status.as_ref().is_some_and(|status| statuses.contains(status))
                        })
                        .filter(|record| labels.iter().all(|(name, value)| record.labels.get(name) == Some(value)))
                        .filter(|record| from.is_none_or(|from| record.created_at >= from))
                        .filter(|record| before.is_none_or(|before| record.created_at < before))
                        .map(|record| record.id.as_str())
                        .collect();
                    assert_eq!(ids(store, &query).await, expected, "{query:?}");
                    assert_eq!(store.count(&query).await.unwrap(), expected.len() as u64, "{query:?}");
                }
            }
        }
    }
}

pub(crate) async fn labels_follow_the_record(store: &dyn Store) {
    let mut agent = record(Kind::Agent, "a", 5);
    agent.labels.insert("k".into(), "1".into());
    put_all(store, [agent.clone()]).await;
    let with = |value: &str| ListQuery { labels: vec![("k".into(), value.into())], ..ListQuery::new(Kind::Agent) };
    assert_eq!(ids(store, &with("1")).await, ["a"]);
    agent.labels.insert("k".into(), "2".into());
    put_all(store, [agent.clone()]).await;
    assert_eq!((ids(store, &with("1")).await.len(), ids(store, &with("2")).await.len()), (0, 1));
    // A record that moves in time moves in its labels' lists too.
    agent.created_at = time(1);
    put_all(store, [agent.clone()]).await;
    assert!(ids(store, &ListQuery { created_from: Some(time(2)), ..with("2") }).await.is_empty());
    assert_eq!(ids(store, &with("2")).await, ["a"]);
    store.commit(Batch::new().with(Mutation::Delete(agent.key()))).await.unwrap();
    assert!(ids(store, &with("2")).await.is_empty());
    agent.labels.clear();
    put_all(store, [agent]).await;
    assert!(ids(store, &with("2")).await.is_empty());
}

pub(crate) async fn a_cursor_goes_on_where_the_page_ended(store: &dyn Store) {
    put_all(store, varied()).await;
    let label = vec![("agent".to_owned(), "x".to_owned())];
    for order in [Order::Ascending, Order::Descending] {
        for parent in [None, Some("q".to_owned())] {
            for labels in [vec![], label.clone()] {
                let whole =
                    ListQuery { parent: parent.clone(), labels, order, limit: 100, ..ListQuery::new(Kind::Session) };
                let expected = ids(store, &whole).await;
                let mut query = ListQuery { limit: 3, ..whole };
                let mut seen = Vec::new();
                loop {
                    let page = store.list(&query).await.unwrap();
                    let Some(last) = page.last() else { break };
                    query.after = Some(Cursor { created_at: last.created_at, id: last.id.clone() });
                    seen.extend(page.into_iter().map(|record| record.id));
                }
                assert_eq!(seen, expected);
                // The cursor is no filter of a count.
                assert_eq!(store.count(&query).await.unwrap(), expected.len() as u64);
            }
        }
    }
}

pub(crate) async fn a_cursor_holds_while_records_come_and_go(store: &dyn Store) {
    put_all(store, (1..=6).map(|n| record(Kind::Agent, &n.to_string(), n))).await;
    let mut query = ListQuery { limit: 3, ..ListQuery::new(Kind::Agent) };
    assert_eq!(ids(store, &query).await, ["6", "5", "4"]);
    query.after = Some(Cursor { created_at: time(4), id: "4".into() });
    // The record that the cursor names goes, and newer ones come: the next page is what it would have been.
    store.commit(put(record(Kind::Agent, "7", 7)).with(Mutation::Delete(key(Kind::Agent, "4")))).await.unwrap();
    assert_eq!(ids(store, &query).await, ["3", "2", "1"]);
    // Beside the place of a cursor the id decides.
    put_all(store, [record(Kind::Agent, "39", 4), record(Kind::Agent, "41", 4)]).await;
    assert_eq!(ids(store, &query).await, ["39", "3", "2"]);
}

pub(crate) async fn counts_agree_with_lists(store: &dyn Store) {
    put_all(store, varied()).await;
    let query = ListQuery { limit: 1, ..ListQuery::new(Kind::Session) };
    assert_eq!(store.count(&query).await.unwrap(), 16);
    assert_eq!(store.count(&ListQuery { limit: 0, ..query }).await.unwrap(), 16);
    assert_eq!(store.count(&ListQuery::new(Kind::Work)).await.unwrap(), 0);
}

pub(crate) async fn kinds_do_not_mix(store: &dyn Store) {
    put_all(store, Kind::ALL.into_iter().map(|kind| record(kind, "same", 1))).await;
    for kind in Kind::ALL {
        let found = store.list(&ListQuery::new(kind)).await.unwrap();
        assert_eq!(found.iter().map(Record::key).collect::<Vec<_>>(), [key(kind, "same")]);
        assert_eq!(found[0].revision, 1);
    }
}
