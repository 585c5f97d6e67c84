//! A session's events: send, list, stream.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use http::{HeaderName, HeaderValue, header};
use palisade_api::{EVENT_TYPES, Page, SendEvents, SessionId};
use palisade_core::batch::PendingEntry;
use palisade_store::{EventQuery, Order, Store};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{RawBody, Shared, ok};
use crate::auth::Caller;
use crate::error::{Answer, Fault};
use crate::query::Query;
use crate::service::Service;
use crate::stream::{EventStream, Pace, Previews};
use crate::{body, page};

/// The default and the most of a page (J7).
const LIMIT: usize = 1000;
/// Values of `event_deltas[]` (D10).
const MAX_DELTAS: usize = 100;

pub(super) fn routes() -> Router<Arc<Service>> {
    Router::new()
        .route("/v1/sessions/{session}/events", get(list).post(send))
        .route("/v1/sessions/{session}/events/stream", get(stream))
}

async fn send(State(service): Shared, caller: Caller, Path(id): Path<String>, RawBody(body): RawBody) -> Answer {
    let (session, _) = caller.session(&service, &id).await?;
    let send: SendEvents = body::json(&body)?;
    drop(body);
    let data = service.engine.send(&session, send.events).await?;
    #[derive(Serialize)]
    struct Sent {
        data: Vec<palisade_api::Event>,
    }
    ok(&Sent { data })
}

/// Where a page of events ends: in the log, or among the events that wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum At {
    /// After this sequence number, in the list's direction.
    Seq(u64),
    /// After this waiting event, in the list's direction.
    Waiting(String),
}

struct Filter {
    types: Vec<String>,
    ranged: bool,
}

impl Filter {
    fn admits(&self, entry: &PendingEntry) -> bool {
        // A range compares `processed_at`, which an event that waits does not have.
        if self.ranged {
            return false;
        }
        #[derive(Deserialize)]
        struct Head<'a> {
            #[serde(rename = "type", borrow)]
            kind: std::borrow::Cow<'a, str>,
        }
        self.types.is_empty()
            || serde_json::from_str::<Head<'_>>(&entry.body)
                .is_ok_and(|head| self.types.iter().any(|name| *name == head.kind))
    }
}

async fn list(State(service): Shared, caller: Caller, Path(id): Path<String>, query: Query) -> Answer {
    let (session, _) = caller.session(&service, &id).await?;
    let limit = query.limit(LIMIT, LIMIT)?;
    let order = order(&query, Order::Ascending)?;
    let range = query.created()?;
    let mut types: Vec<String> = Vec::new();
    for name in query.many("types") {
        if name == "session.deleted" || !EVENT_TYPES.contains(&name) {
            return Err(Fault::field("types", format!("{name:?} is not an event type that lists can be filtered by")));
        }
        types.push(name.to_owned());
    }
    types.sort();
    types.dedup();
    let name = page::fingerprint(&[&"events", &session, &types, &range.from, &range.before, &order]);
    let place: Option<At> = page::decode(&query, &name)?;
    let filter = Filter { types: types.clone(), ranged: range.from.is_some() || range.before.is_some() };
    let events = EventQuery {
        session,
        types,
        from: range.from,
        before: range.before,
        order,
        after: None,
        // One more than asked for tells whether there is more.
        limit: limit + 1,
    };
    let store = &**service.engine.store();
    let found = match order {
        Order::Ascending => ascending(store, events, &filter, place).await?,
        Order::Descending => descending(store, events, &filter, place).await?,
    };
    let next_page = match found.get(limit - 1) {
        Some((at, _)) if found.len() > limit => Some(page::encode(&name, at.clone())?),
        _ => None,
    };
    let data = found.into_iter().take(limit).map(|(_, body)| RawValue::from_string(body));
    ok(&Page { data: data.collect::<Result<Vec<_>, _>>()?, next_page })
}

type Found = Vec<(At, String)>;

async fn logged(store: &dyn Store, events: &EventQuery) -> Answer<Found> {
    let entries = store.events(events).await?;
    Ok(entries.into_iter().map(|entry| (At::Seq(entry.seq), entry.body)).collect())
}

async fn waiting(store: &dyn Store, session: &SessionId, filter: &Filter) -> Answer<Found> {
    let entries = store.pending(session).await?.into_iter().filter(|entry| filter.admits(entry));
    Ok(entries.map(|entry| (At::Waiting(entry.id.as_str().to_owned()), entry.body)).collect())
}

/// The log, and then what waits.
async fn ascending(store: &dyn Store, mut events: EventQuery, filter: &Filter, place: Option<At>) -> Answer<Found> {
    // What waits is read first: an event that is processed in between is then found twice rather than never, and the log's
    // form of it wins.
    let waiting = waiting(store, &events.session, filter).await?;
    let (mut found, skip) = match place {
        Some(At::Waiting(id)) => {
            let skip = waiting.iter().position(|(at, _)| *at == At::Waiting(id.clone())).map_or(0, |at| at + 1);
            (Vec::new(), skip)
        }
        place => {
            events.after = place.map(|at| if let At::Seq(seq) = at { seq } else { 0 });
            (logged(store, &events).await?, 0)
        }
    };
    if found.len() < events.limit {
        let seen: Vec<String> = found.iter().filter_map(|(_, body)| id_of(body)).collect();
        let unseen = |(at, _): &(At, String)| !matches!(at, At::Waiting(id) if seen.contains(id));
        found.extend(waiting.into_iter().skip(skip).filter(unseen));
    }
    Ok(found)
}

/// What waits, the newest first, and then the log backwards.
async fn descending(store: &dyn Store, mut events: EventQuery, filter: &Filter, place: Option<At>) -> Answer<Found> {
    let mut found = Vec::new();
    match place {
        Some(At::Seq(seq)) => events.after = Some(seq),
        place => {
            found = waiting(store, &events.session, filter).await?;
            found.reverse();
            if let Some(after) = place {
                let skip = found.iter().position(|(at, _)| *at == after).map_or(found.len(), |at| at + 1);
                found.drain(..skip);
            }
        }
    }
    if found.len() < events.limit {
        events.limit -= found.len();
        let log = logged(store, &events).await?;
        let seen: Vec<String> = log.iter().filter_map(|(_, body)| id_of(body)).collect();
        found.retain(|(at, _)| !matches!(at, At::Waiting(id) if seen.contains(id)));
        found.extend(log);
    }
    Ok(found)
}

fn id_of(body: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Head {
        id: String,
    }
    serde_json::from_str::<Head>(body).ok().map(|head| head.id)
}

/// `order`.
pub(super) fn order(query: &Query, default: Order) -> Answer<Order> {
    match query.one("order")? {
        None => Ok(default),
        Some("asc") => Ok(Order::Ascending),
        Some("desc") => Ok(Order::Descending),
        Some(_) => Err(Fault::field("order", "must be asc or desc")),
    }
}

async fn stream(State(service): Shared, caller: Caller, Path(id): Path<String>, query: Query) -> Answer {
    let (session, _) = caller.session(&service, &id).await?;
    let mut previews = Previews::default();
    let deltas = query.many("event_deltas");
    if deltas.len() > MAX_DELTAS {
        return Err(Fault::field("event_deltas", format!("may hold at most {MAX_DELTAS} values")));
    }
    for name in deltas {
        match name {
            "agent.message" => previews.message = true,
            "agent.thinking" => previews.thinking = true,
            _ => return Err(Fault::field("event_deltas", "must be agent.message or agent.thinking")),
        }
    }
    let subscription = service.engine.subscribe(&session).await?;
    // A session that was deleted while we subscribed would leave the stream open for ever.
    caller.session(&service, &id).await?;
    let pace = Pace {
        ping: service.ping,
        // A new connection is the only thing that makes a worker list again, which heals calls that it has missed.
        end: service.rotate.filter(|_| caller.is_worker()),
        shutdown: service.shutdown.clone(),
    };
    let store = service.engine.store().clone();
    let body = EventStream::new(store, session, subscription, previews, pace);
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Asks buffering proxies to pass on each message at once.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(response)
}
