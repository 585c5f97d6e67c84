//! The routes, and what is answered when something cannot be done.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, Path, State as Given};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use palisade_sandbox::{Process, Sandbox};
use serde_json::{Value, json};

use super::gate::Peer;
use super::registry::{Registry, Served};
use super::wire::{SessionBody, SignalBody};
use super::{archive, audit, checkpoints, credentials, exec, files};
use crate::egress::Egress;
use crate::pace::unix_now;
use crate::ssh::{Authority, Issued};

/// How long a sandbox may take to say what it uses.
const PATIENCE: Duration = Duration::from_secs(2);

/// What all routes share.
pub(crate) struct State {
    /// Where sessions live.
    pub(crate) state_dir: PathBuf,
    pub(crate) registry: Registry,
    pub(crate) allow_preview: bool,
    /// Who lets people in by SSH, where that is served.
    pub(crate) ssh: Option<Arc<Authority>>,
    /// What lets sessions reach the outside, where there is a policy for it.
    pub(crate) egress: Option<Arc<Egress>>,
}

pub(crate) fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/perimeter/v1/sessions", get(sessions))
        .route("/perimeter/v1/sessions/{session}", get(session))
        .route("/perimeter/v1/sessions/{session}/processes", get(processes))
        .route("/perimeter/v1/sessions/{session}/signal", post(signal))
        .route("/perimeter/v1/sessions/{session}/exec", post(exec::exec))
        .route("/perimeter/v1/sessions/{session}/attach", post(exec::attach))
        .route("/perimeter/v1/sessions/{session}/connect", post(exec::connect))
        .route("/perimeter/v1/sessions/{session}/ssh-certificate", post(ssh_certificate))
        .route("/perimeter/v1/sessions/{session}/checkpoints", post(checkpoints::take))
        .route("/perimeter/v1/sessions/{session}/restore", post(checkpoints::restore))
        .route("/perimeter/v1/sessions/{session}/pause", post(checkpoints::pause))
        .route("/perimeter/v1/sessions/{session}/hibernate", post(checkpoints::hibernate))
        .route("/perimeter/v1/sessions/{session}/resume", post(checkpoints::resume))
        .route("/perimeter/v1/trail/archive", post(archive::archive))
        .route("/perimeter/v1/credentials", get(credentials::status))
        .route("/perimeter/v1/credentials/revoke", post(credentials::revoke))
        .route("/perimeter/v1/credentials/allow", post(credentials::allow))
        .route("/perimeter/v1/sessions/{session}/files", get(files::get).put(files::put))
        .fallback(async || Refusal::new(StatusCode::NOT_FOUND, "there is no such route"))
        .with_state(state)
}

/// Why something cannot be done, in the API's envelope.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Refusal {
        Refusal { status, message: message.into() }
    }

    pub(crate) fn bad(message: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn ended(why: palisade_sandbox::Error) -> Refusal {
        Refusal::new(StatusCode::CONFLICT, why.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let kind = match self.status {
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::FORBIDDEN => "permission_error",
            _ => "invalid_request_error",
        };
        let body = json!({"type": "error", "error": {"type": kind, "message": self.message}});
        (self.status, Json(body)).into_response()
    }
}

pub(super) fn served(state: &State, session: &str) -> Result<Served, Refusal> {
    state.registry.find(session).ok_or_else(|| {
        let message = format!(
            "this worker does not serve a session {session} at this moment; it does once there is something to do for it: \
             `palisade sessions send {session} …`"
        );
        Refusal::new(StatusCode::NOT_FOUND, message)
    })
}

/// A session's sandbox. What is done with it must not hold on to it: the session's own end must be able to end it.
pub(crate) async fn sandbox(state: &State, session: &str, start: bool) -> Result<Arc<Sandbox>, Refusal> {
    let served = served(state, session)?;
    if served.hands.is_paused() {
        let message = format!("session {session} is paused: `palisade resume {session}` lets it go on");
        return Err(Refusal::new(StatusCode::CONFLICT, message));
    }
    if start {
        return served.hands.ready().await.map_err(|why| Refusal::new(StatusCode::CONFLICT, why));
    }
    served.hands.live().await.ok_or_else(|| {
        let message = format!("session {session} has no sandbox at this moment; ask for one to be started to have it");
        Refusal::new(StatusCode::CONFLICT, message)
    })
}

async fn look(session: &str, served: &Served) -> SessionBody {
    let sandbox = served.hands.live().await;
    let body = SessionBody {
        id: session.to_owned(),
        driver: served.hands.driver().to_owned(),
        served_ms: u64::try_from(served.since.elapsed().as_millis()).unwrap_or(u64::MAX),
        sandbox: sandbox.is_some(),
        paused: served.hands.is_paused(),
        cpu_ms: None,
        memory_bytes: None,
        memory_peak_bytes: None,
        processes: None,
    };
    match sandbox {
        Some(sandbox) => match tokio::time::timeout(PATIENCE, sandbox.usage()).await {
            Ok(Ok(usage)) => body.measured(&usage),
            // What it uses is not known, which is what the fields say.
            _ => body,
        },
        None => body,
    }
}

async fn sessions(Given(state): Given<Arc<State>>) -> Json<Value> {
    let mut data = Vec::new();
    for (session, served) in state.registry.all() {
        data.push(look(&session, &served).await);
    }
    Json(json!({ "data": data }))
}

async fn session(Given(state): Given<Arc<State>>, Path(session): Path<String>) -> Result<Json<SessionBody>, Refusal> {
    let served = served(&state, &session)?;
    Ok(Json(look(&session, &served).await))
}

async fn processes(Given(state): Given<Arc<State>>, Path(session): Path<String>) -> Result<Json<Value>, Refusal> {
    let sandbox = sandbox(&state, &session, false).await?;
    let data: Vec<Process> = sandbox.processes().await.map_err(Refusal::ended)?;
    Ok(Json(json!({ "data": data })))
}

async fn signal(
    Given(state): Given<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(session): Path<String>,
    body: axum::body::Bytes,
) -> Result<StatusCode, Refusal> {
    let body: SignalBody =
        serde_json::from_slice(&body).map_err(|why| Refusal::bad(format!("the body is malformed: {why}")))?;
    if !(1..=64).contains(&body.signal) {
        return Err(Refusal::bad(format!("{} is not the number of a signal", body.signal)));
    }
    audit::note(peer, &session, "signal", &format!("{} to {}", body.signal, body.process));
    let sandbox = sandbox(&state, &session, false).await?;
    sandbox.signal(body.process, body.signal).await.map_err(Refusal::ended)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn ssh_certificate(
    Given(state): Given<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(session): Path<String>,
) -> Result<Json<Issued>, Refusal> {
    served(&state, &session)?;
    let authority = state.ssh.as_ref().ok_or_else(|| {
        let message = "SSH is off on this worker: start it with --ssh to have it";
        Refusal::new(StatusCode::FORBIDDEN, message)
    })?;
    audit::note(peer, &session, "ssh certificate", "");
    let holder = format!("uid {} pid {}", peer.uid, peer.pid);
    let issued = authority.issue(&session, &holder, unix_now());
    issued.map(Json).map_err(|why| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, why.to_string()))
}
