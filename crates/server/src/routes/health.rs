//! Whether the server lives, whether it can write, and what it has counted. Open to everyone; nothing here names an object.

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use http::{HeaderValue, header};
use palisade_core::batch::Kind;
use palisade_store::ListQuery;
use std::sync::Arc;

use super::{Shared, ok};
use crate::error::{Answer, Fault};
use crate::service::Service;

pub(super) fn routes() -> Router<Arc<Service>> {
    Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz)).route("/metrics", get(metrics))
}

async fn healthz() -> Answer {
    ok(&serde_json::json!({"status": "ok"}))
}

async fn readyz(State(service): Shared) -> Answer {
    if service.shutdown.is_cancelled() {
        return Err(Fault::unavailable("the server is shutting down", 5));
    }
    service.engine.store().check().await.map_err(|why| Fault::unavailable(why.to_string(), 5))?;
    ok(&serde_json::json!({"status": "ready"}))
}

async fn metrics(State(service): Shared) -> Answer {
    let queued = ListQuery { statuses: vec!["queued".to_owned()], ..ListQuery::new(Kind::Work) };
    let queued = service.engine.store().count(&queued).await?;
    let text = service
        .metrics
        .text(service.engine.metrics(), queued)
        .map_err(|_| Fault::new(palisade_api::ErrorType::Api, "the figures could not be written"))?;
    let mut response = Response::new(text.into());
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}
