//! Credentials: what there is, taking one from all sessions, and giving it back.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{ConnectInfo, State as Given};
use axum::http::StatusCode;
use palisade_vault::Reference;
use serde_json::json;

use super::audit;
use super::gate::Peer;
use super::routes::{Refusal, State};
use super::wire::{
    AllowedBody, CredentialBody, CredentialsBody, DownBody, LeaseBody, ReferenceBody, RevokedBody, SourceBody,
};
use crate::egress::Egress;

/// How long the audit trail may take before a secret is revoked without it: the log has it in any case.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) fn egress(state: &State) -> Result<&Arc<Egress>, Refusal> {
    state.egress.as_ref().ok_or_else(|| {
        let message = "this worker lets nothing out, and so has neither credentials nor an audit trail of it: start it with \
                       --egress and --credentials";
        Refusal::new(StatusCode::CONFLICT, message)
    })
}

/// What a request names. Text that names nothing is not repeated: somebody may have put a secret there.
fn named(egress: &Egress, body: &[u8]) -> Result<Vec<Reference>, Refusal> {
    let body: ReferenceBody = serde_json::from_slice(body)
        .map_err(|_| Refusal::bad("the body is malformed: it must be {\"reference\": \"…\"}"))?;
    let meant = egress.credentials().meant(&body.reference);
    if meant.is_empty() {
        // A mistyped reference must not look revoked.
        let message = "no credential of this worker has that name or comes from there";
        return Err(Refusal::new(StatusCode::NOT_FOUND, message));
    }
    Ok(meant)
}

fn shown(references: &[Reference]) -> Vec<String> {
    references.iter().map(ToString::to_string).collect()
}

/// Into the log, and into the audit trail, which says whether it is there.
async fn record(egress: &Egress, peer: Peer, action: &str, references: &[Reference]) -> Result<(), String> {
    let names = shown(references);
    audit::note(peer, "-", &format!("credential {action}"), &names.join(" "));
    let body = json!({"uid": peer.uid, "pid": peer.pid, "references": names});
    let kind = format!("credential.{action}");
    match tokio::time::timeout(PATIENCE, egress.trail().append(&kind, None, body)).await {
        Ok(kept) => kept.map(drop).map_err(|why| why.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

pub(super) async fn status(Given(state): Given<Arc<State>>) -> Result<Json<CredentialsBody>, Refusal> {
    let egress = egress(&state)?;
    let revoked = egress.vault().revoked();
    let source = |source: palisade_vault::SourceState| SourceBody {
        kind: source.kind.to_string(),
        name: source.name,
        description: source.description,
        down: source.down.map(|(why, retry)| DownBody { why: why.to_string(), retry_ms: millis(retry) }),
    };
    let credential = |(name, reference): (&str, &Reference)| CredentialBody {
        name: name.to_owned(),
        reference: reference.to_string(),
        revoked: revoked.iter().any(|revoked| revoked.covers(reference)),
    };
    Ok(Json(CredentialsBody {
        sources: egress.vault().sources().into_iter().map(source).collect(),
        credentials: egress.credentials().references().map(credential).collect(),
        revoked: shown(&revoked),
    }))
}

pub(super) async fn revoke(
    Given(state): Given<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    body: axum::body::Bytes,
) -> Result<Json<RevokedBody>, Refusal> {
    let egress = egress(&state)?;
    let references = named(egress, &body)?;
    if let Err(error) = record(egress, peer, "revoke", &references).await {
        // Nobody keeps a secret because of a full disk.
        tracing::error!(%error, "revoking a credential is not in the audit trail; it is revoked all the same");
    }
    let (leases_left, kept) = egress.revoke(&references).await;
    if let Err(error) = &kept {
        tracing::error!(%error, "a credential is revoked, but only until the worker starts anew");
    }
    let lease = |left: palisade_vault::LeaseLeft| LeaseBody {
        of: left.of,
        why: left.error.to_string(),
        ends_ms: millis(left.ends_in),
    };
    let leases_left = leases_left.into_iter().map(lease).collect();
    Ok(Json(RevokedBody { revoked: shown(&references), kept: kept.is_ok(), leases_left }))
}

pub(super) async fn allow(
    Given(state): Given<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    body: axum::body::Bytes,
) -> Result<Json<AllowedBody>, Refusal> {
    let egress = egress(&state)?;
    let revoked = egress.vault().revoked();
    let mut references = named(egress, &body)?;
    references.retain(|reference| revoked.contains(reference));
    if references.is_empty() {
        let message = match &*shown(&revoked) {
            [] => "it is not revoked; nothing is".to_owned(),
            revoked => format!("it is not revoked in that form; revoked are {}", revoked.join(", ")),
        };
        return Err(Refusal::new(StatusCode::CONFLICT, message));
    }
    record(egress, peer, "allow", &references).await.map_err(|why| {
        let message = format!("it stays revoked, as the audit trail cannot keep that it is allowed: {why}");
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message)
    })?;
    egress.allow(&mut references).await.map_err(|why| {
        let message = format!("it stays revoked, as the state directory cannot keep that it is allowed: {why}");
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message)
    })?;
    Ok(Json(AllowedBody { allowed: shown(&references) }))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
