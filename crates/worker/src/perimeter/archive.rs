//! The audit trail: making room for more of it.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{ConnectInfo, State as Given};
use axum::http::StatusCode;

use super::audit;
use super::credentials::egress;
use super::gate::Peer;
use super::routes::{Refusal, State};
use super::wire::{ArchiveBody, ArchivedBody};

pub(super) async fn archive(
    Given(state): Given<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    body: axum::body::Bytes,
) -> Result<Json<ArchivedBody>, Refusal> {
    let egress = egress(&state)?.clone();
    let body: ArchiveBody =
        serde_json::from_slice(&body).map_err(|why| Refusal::bad(format!("the body is malformed: {why}")))?;
    if !body.to.is_absolute() {
        return Err(Refusal::bad("`to` must be an absolute path: the worker has a working directory of its own"));
    }
    audit::note(peer, "-", "archive the audit trail", &body.to.display().to_string());
    // Done to its end, whether or not anybody waits for it.
    let done =
        tokio::spawn(async move { egress.archive(Duration::from_secs(body.older_than_seconds), &body.to).await });
    let done = done.await.map_err(|why| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, why.to_string()))?;
    let moved = done.map_err(|why| Refusal::new(StatusCode::CONFLICT, why.to_string()))?;
    Ok(Json(ArchivedBody { segments: moved.segments, bytes: moved.bytes, through: moved.through }))
}
