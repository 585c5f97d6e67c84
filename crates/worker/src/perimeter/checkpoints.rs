//! Checkpoints of a live session, going back to one, and pausing.

use std::sync::Arc;

use axum::Json;
use axum::extract::{ConnectInfo, Path, State as Given};
use axum::http::StatusCode;
use palisade_checkpoint::{Checkpoint, Id};

use super::audit;
use super::gate::Peer;
use super::routes::{Refusal, State, served};
use super::wire::{CheckpointBody, HibernatedBody, RestoreBody, ResumedBody};
use crate::workspace::Home;

fn refused(why: String) -> Refusal {
    Refusal::new(StatusCode::CONFLICT, why)
}

pub(super) async fn take(
    Given(state): Given<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(session): Path<String>,
    body: axum::body::Bytes,
) -> Result<Json<Checkpoint>, Refusal> {
    let body: CheckpointBody = if body.is_empty() {
        CheckpointBody::default()
    } else {
        serde_json::from_slice(&body).map_err(|why| Refusal::bad(format!("the body is malformed: {why}")))?
    };
    let served = served(&state, &session)?;
    audit::note(peer, &session, "checkpoint", body.label.as_deref().unwrap_or_default());
    let captured = served.hands.checkpoint("asked for").await.map_err(refused)?;
    served.hands.foresee(captured.checkpoint.id);
    let Some(label) = body.label else { return Ok(Json(captured.checkpoint)) };
    served.hands.label(captured.checkpoint.id, label).await.map(Json).map_err(refused)
}

pub(super) async fn restore(
    Given(state): Given<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(session): Path<String>,
    body: axum::body::Bytes,
) -> Result<StatusCode, Refusal> {
    let body: RestoreBody =
        serde_json::from_slice(&body).map_err(|why| Refusal::bad(format!("the body is malformed: {why}")))?;
    let id: Id = body.checkpoint.parse().map_err(|why| Refusal::bad(format!("checkpoint: {why}")))?;
    let served = served(&state, &session)?;
    audit::note(peer, &session, "restore", &body.checkpoint);
    served.hands.restore(&id).await.map_err(refused)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn pause(
    Given(state): Given<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(session): Path<String>,
) -> Result<StatusCode, Refusal> {
    let served = served(&state, &session)?;
    audit::note(peer, &session, "pause", "");
    served.hands.pause().await.map_err(refused)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn hibernate(
    Given(state): Given<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(session): Path<String>,
) -> Result<Json<HibernatedBody>, Refusal> {
    let served = served(&state, &session)?;
    audit::note(peer, &session, "hibernate", "");
    let (captured, processes_kept) = served.hands.hibernate().await.map_err(refused)?;
    Ok(Json(HibernatedBody { checkpoint: captured.checkpoint, processes_kept }))
}

pub(super) async fn resume(
    Given(state): Given<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(session): Path<String>,
) -> Result<Json<ResumedBody>, Refusal> {
    let home = Home::of(&state.state_dir, &session);
    if state.registry.find(&session).is_none() && home.is_paused() {
        // It goes on as soon as a worker serves it again.
        audit::note(peer, &session, "resume", "");
        home.note_paused(false).map_err(|why| refused(why.to_string()))?;
        return Ok(Json(ResumedBody { processes_kept: None }));
    }
    let served = served(&state, &session)?;
    audit::note(peer, &session, "resume", "");
    let processes_kept = served.hands.resume().await.map_err(refused)?;
    Ok(Json(ResumedBody { processes_kept }))
}
