//! The work queue of an environment: what workers poll.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, StatusCode};
use palisade_api::{Extra, Work, WorkId, WorkSecret, WorkStop, WorkUpdate};
use palisade_core::batch::{Key, Kind};
use palisade_core::work::{Item, Refused};
use palisade_engine::{PollOptions, StoppedBy};
use palisade_store::ListQuery;
use serde_json::Value;

use super::{RawBody, Shared, ok};
use crate::auth::Caller;
use crate::error::{Answer, Fault};
use crate::query::Query;
use crate::service::Service;
use crate::{body, page};

/// A handed-out item that is not acknowledged for so long is handed out again, in milliseconds.
const RECLAIM: i64 = 5_000;

pub(super) fn routes() -> Router<Arc<Service>> {
    // The router prefers fixed parts to parameters, so that poll and stats are never taken for ids.
    Router::new()
        .route("/v1/environments/{environment}/work", get(list))
        .route("/v1/environments/{environment}/work/poll", get(poll))
        .route("/v1/environments/{environment}/work/stats", get(stats))
        .route("/v1/environments/{environment}/work/{work}", get(retrieve).post(update))
        .route("/v1/environments/{environment}/work/{work}/ack", post(ack))
        .route("/v1/environments/{environment}/work/{work}/heartbeat", post(heartbeat))
        .route("/v1/environments/{environment}/work/{work}/stop", post(stop))
}

async fn environment(service: &Service, id: &str) -> Answer<palisade_api::EnvironmentId> {
    let missing = || Fault::missing("environment", id);
    let environment = palisade_api::EnvironmentId::parse(id).map_err(|_| missing())?;
    service.engine.store().get(&Key::new(Kind::Environment, id)).await?.ok_or_else(missing)?;
    Ok(environment)
}

fn missing(work: &WorkId) -> Fault {
    Fault::missing("work item", work.as_str())
}

async fn list(State(service): Shared, caller: Caller, Path(id): Path<String>, query: Query) -> Answer {
    caller.environment_only(&id)?;
    environment(&service, &id).await?;
    let list = ListQuery { parent: Some(id), limit: query.limit(20, 100)?, ..ListQuery::new(Kind::Work) };
    let page = page::objects::<Item>(&**service.engine.store(), &query, list).await?;
    let data: Vec<Work> = page.data.into_iter().map(|item| item.work).collect();
    ok(&palisade_api::Page { data, next_page: page.next_page })
}

async fn poll(
    State(service): Shared,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    query: Query,
) -> Answer {
    caller.environment_only(&id)?;
    let block = query.number("block_ms", 1, 999)?.unwrap_or(0);
    let reclaim = query.number("reclaim_older_than_ms", 0, i64::MAX)?.unwrap_or(RECLAIM);
    let environment = environment(&service, &id).await?;
    let options = PollOptions {
        block: Duration::from_millis(block.unsigned_abs()),
        reclaim: reclaim.saturating_mul(1000),
        worker: headers.get("anthropic-worker-id").and_then(|value| value.to_str().ok()).map(str::to_owned),
    };
    let Some(claimed) = service.engine.poll(&environment, &options).await? else {
        // The four bytes `null`: every other form of nothing stops one of the official workers.
        return ok(&Value::Null);
    };
    let mut work = claimed.work;
    let token = service.signer.issue(claimed.session, work.id.clone(), environment, service.now())?;
    let secret = WorkSecret { sessions_token: token, api_base_url: None, extra: Extra::new() };
    work.secret = Some(URL_SAFE_NO_PAD.encode(serde_json::to_vec(&secret)?));
    ok(&work)
}

async fn stats(State(service): Shared, caller: Caller, Path(id): Path<String>) -> Answer {
    caller.no_token(&id)?;
    let environment = environment(&service, &id).await?;
    ok(&service.engine.queue_stats(&environment).await?)
}

async fn retrieve(State(service): Shared, caller: Caller, Path((id, work)): Path<(String, String)>) -> Answer {
    caller.api_only()?;
    let (environment, work) = (environment(&service, &id).await?, WorkId::from(work));
    ok(&service.engine.work(&environment, &work).await?.ok_or_else(|| missing(&work))?)
}

async fn update(
    State(service): Shared,
    caller: Caller,
    Path((id, work)): Path<(String, String)>,
    RawBody(body): RawBody,
) -> Answer {
    caller.api_only()?;
    let change: WorkUpdate = body::json(&body)?;
    let (environment, work) = (environment(&service, &id).await?, WorkId::from(work));
    let changed = service.engine.update_work(&environment, &work, &change.metadata).await?;
    match changed.ok_or_else(|| missing(&work))? {
        Ok(work) => ok(&work),
        Err(why) => Err(Fault::field("metadata", why).code("invalid_metadata")),
    }
}

async fn ack(State(service): Shared, caller: Caller, Path((id, work)): Path<(String, String)>) -> Answer {
    caller.environment_only(&id)?;
    let (environment, work) = (environment(&service, &id).await?, WorkId::from(work));
    match service.engine.ack(&environment, &work).await?.ok_or_else(|| missing(&work))? {
        Ok(work) => ok(&work),
        Err(why) => Err(refused(why)?),
    }
}

async fn heartbeat(
    State(service): Shared,
    caller: Caller,
    Path((id, work)): Path<(String, String)>,
    query: Query,
) -> Answer {
    let work = WorkId::from(work);
    caller.holds(&id, &work)?;
    let environment = environment(&service, &id).await?;
    let expected = query.one("expected_last_heartbeat")?.filter(|value| *value != "NO_HEARTBEAT");
    let ttl = query.number("desired_ttl_seconds", 1, i64::MAX)?;
    let beat = service.engine.beat(&environment, &work, expected, ttl).await?;
    match beat.ok_or_else(|| missing(&work))? {
        Ok(heartbeat) => ok(&heartbeat),
        Err(why) => Err(refused(why)?),
    }
}

async fn stop(
    State(service): Shared,
    caller: Caller,
    Path((id, work)): Path<(String, String)>,
    RawBody(body): RawBody,
) -> Answer {
    let work = WorkId::from(work);
    let by = match caller {
        Caller::Api(_) => StoppedBy::Operator,
        Caller::Environment(..) | Caller::Session(_) => {
            caller.holds(&id, &work)?;
            StoppedBy::Worker
        }
    };
    let stop: WorkStop = body::json(&body)?;
    let environment = environment(&service, &id).await?;
    let stopped = service.engine.stop_work(&environment, &work, stop.force.unwrap_or(false), by).await?;
    match stopped.ok_or_else(|| missing(&work))? {
        Ok(work) => ok(&work),
        Err(why) => Err(refused(why)?),
    }
}

/// Says why a verb was refused. Only fails when the answer cannot be written.
fn refused(why: Refused) -> Answer<Fault> {
    Ok(match why {
        Refused::State(state) => Fault::conflict(format!("the work item is {}", state.as_str())),
        Refused::Range(field) => Fault::field(field, "is out of range"),
        Refused::Heartbeat(current) => {
            let mut state = serde_json::to_value(&current)?;
            if let Some(state) = state.as_object_mut() {
                state.remove("type");
                if current.last_heartbeat.is_empty() {
                    state.insert("last_heartbeat".to_owned(), Value::Null);
                }
            }
            let extra = Extra::from_iter([("current_state".to_owned(), state)]);
            Fault::invalid(
                "expected_last_heartbeat is not the last heartbeat: the lease was lost or taken by another worker",
            )
            .status(StatusCode::PRECONDITION_FAILED)
            .details("heartbeat_precondition_failed", extra)
        }
    })
}
