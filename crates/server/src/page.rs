//! Pages of lists and the opaque cursors between them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use palisade_core::batch::Record;
use palisade_store::{Cursor, ListQuery, Order, Store};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::{Answer, Fault};
use crate::query::Query;

/// What a cursor says. It holds nothing that its reader could not know: a place in a list that was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place<P> {
    /// Of which list.
    list: String,
    at: P,
}

/// Names a list together with its filters and its order, so that a cursor of another one is refused.
pub(crate) fn fingerprint(parts: &[&dyn std::fmt::Debug]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(format!("{part:?}\n"));
    }
    URL_SAFE_NO_PAD.encode(&hash.finalize()[..9])
}

/// Writes a cursor.
pub(crate) fn encode<P: Serialize>(list: &str, at: P) -> Answer<String> {
    Ok(URL_SAFE_NO_PAD.encode(serde_json::to_vec(&Place { list: list.to_owned(), at })?))
}

/// Reads the cursor of a request, which must be one of this list.
pub(crate) fn decode<P: DeserializeOwned>(query: &Query, list: &str) -> Answer<Option<P>> {
    let Some(text) = query.one("page")? else { return Ok(None) };
    let place: Option<Place<P>> =
        URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    match place {
        None => Err(Fault::field("page", "is not a cursor of this server")),
        Some(place) if place.list != list => Err(Fault::field(
            "page",
            "is a cursor of another list, or of this list with other filters or another order: send the same parameters as with the first page",
        )),
        Some(place) => Ok(Some(place.at)),
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct At {
    micros: i64,
    id: String,
    /// Towards the beginning of the list.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    back: bool,
}

impl At {
    fn of(record: &Record, back: bool) -> At {
        At { micros: record.created_at.as_micros(), id: record.id.clone(), back }
    }
}

/// Records of a page, in the list's order.
pub(crate) struct Records {
    pub(crate) records: Vec<Record>,
    pub(crate) next: Option<String>,
    pub(crate) prev: Option<String>,
}

fn reversed(order: Order) -> Order {
    match order {
        Order::Ascending => Order::Descending,
        Order::Descending => Order::Ascending,
    }
}

/// Reads the page of `list` that the request asks for. The list's limit is that of the page.
pub(crate) async fn records(store: &dyn Store, query: &Query, mut list: ListQuery) -> Answer<Records> {
    let name = fingerprint(&[
        &list.kind,
        &list.parent,
        &list.statuses,
        &list.labels,
        &list.include_archived,
        &list.created_from,
        &list.created_before,
        &list.order,
    ]);
    let place: Option<At> = decode(query, &name)?;
    let limit = list.limit;
    let back = place.as_ref().is_some_and(|at| at.back);
    if let Some(at) = &place {
        list.after = Some(Cursor { created_at: palisade_api::Timestamp::from_micros(at.micros), id: at.id.clone() });
    }
    if back {
        list.order = reversed(list.order);
    }
    // One more than asked for tells whether there is more.
    list.limit = limit + 1;
    let mut records = store.list(&list).await?;
    let more = records.len() > limit;
    records.truncate(limit);
    if back {
        records.reverse();
    }
    // Where this page was entered from there is at least the record that the cursor names.
    let (has_next, has_prev) = if back { (true, more) } else { (more, place.is_some()) };
    let cursor = |record: Option<&Record>, wanted: bool, back: bool| match record {
        Some(record) if wanted => encode(&name, At::of(record, back)).map(Some),
        _ => Ok(None),
    };
    let next = cursor(records.last(), has_next, false)?;
    let prev = cursor(records.first(), has_prev, true)?;
    Ok(Records { records, next, prev })
}

/// Reads a page whose records' bodies are the API's objects.
pub(crate) async fn objects<T: DeserializeOwned>(
    store: &dyn Store,
    query: &Query,
    list: ListQuery,
) -> Answer<palisade_api::Page<T>> {
    let page = records(store, query, list).await?;
    let data = page.records.iter().map(Record::decode).collect::<Result<_, _>>()?;
    Ok(palisade_api::Page { data, next_page: page.next })
}
