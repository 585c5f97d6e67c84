//! The credentials of a live worker: how they stand, taking one from all sessions, and giving it back.

use clap::Args;
use palisade_worker::perimeter::{ClientError, CredentialBody, ReferenceBody, SourceBody};
use serde_json::json;

use super::DONE;
use crate::commands::sandboxes::{self, WorkerAt};
use crate::output::{Failure, GREEN, Outcome, Output, RED, note, plain};

/// A secret of a live worker.
#[derive(Debug, Args)]
pub(crate) struct ChangeArgs {
    /// A reference as `status` shows it, the same without its #FIELD for the whole record, or a credential's name.
    reference: String,
    #[command(flatten)]
    worker: WorkerAt,
}

/// Show a live worker's credentials, what is revoked, and how the sources fare.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    worker: WorkerAt,
}

fn failed(what: &str, why: &ClientError) -> Failure {
    match why {
        ClientError::Refused { status: 404, message } => {
            Failure::new(what).why(message).fix("`palisade vault status` shows the names and references")
        }
        why => sandboxes::failed(what, why),
    }
}

pub(super) async fn revoke(args: &ChangeArgs, out: Output) -> Outcome {
    let body = ReferenceBody { reference: args.reference.clone() };
    let done = args.worker.client()?.revoke(&body).await;
    let done = done.map_err(|why| failed("it cannot be revoked", &why))?;
    let text = format!("revoked {}: the next request with it is refused", plain(&done.revoked.join(", ")));
    out.either(
        &json!({
            "type": "credential_revoked", "references": done.revoked, "kept": done.kept, "leases_left": done.leases_left,
        }),
        text,
    );
    if !done.kept {
        note(
            "warning: it holds until the worker starts anew, as its state directory cannot be written; its log says why",
        );
    }
    for left in &done.leases_left {
        note(format!(
            "warning: the source has not taken back a lease of {} ({}); it is tried again, and ends by itself in {} s",
            plain(&left.of),
            plain(&left.why),
            left.ends_ms / 1000
        ));
    }
    Ok(DONE)
}

pub(super) async fn allow(args: &ChangeArgs, out: Output) -> Outcome {
    let body = ReferenceBody { reference: args.reference.clone() };
    let done = args.worker.client()?.allow(&body).await;
    let done = done.map_err(|why| failed("it cannot be allowed", &why))?;
    let text = format!("allowed {} again", plain(&done.allowed.join(", ")));
    out.either(&json!({"type": "credential_allowed", "references": done.allowed}), text);
    Ok(DONE)
}

pub(super) async fn status(args: &StatusArgs, out: Output) -> Outcome {
    let status = args.worker.client()?.credentials().await;
    let status = status.map_err(|why| failed("there is nothing to show", &why))?;
    out.object(&json!({
        "type": "vault_status", "sources": status.sources, "credentials": status.credentials, "revoked": status.revoked,
    }));
    let source = |it: &SourceBody| {
        let name = if it.name.is_empty() { it.kind.clone() } else { format!("{}:{}", it.kind, it.name) };
        let state = match &it.down {
            None => out.paint(GREEN, "ok"),
            Some(down) => {
                out.paint(RED, format!("asked again in {} s: {}", down.retry_ms.div_ceil(1000), plain(&down.why)))
            }
        };
        vec![plain(&name).into_owned(), plain(&it.description).into_owned(), state]
    };
    out.table(&["source", "is", "state"], &status.sources.iter().map(source).collect::<Vec<_>>());
    out.line("");
    let credential = |it: &CredentialBody| {
        let state = if it.revoked { out.paint(RED, "revoked") } else { String::new() };
        vec![plain(&it.name).into_owned(), plain(&it.reference).into_owned(), state]
    };
    out.table(&["credential", "reference", ""], &status.credentials.iter().map(credential).collect::<Vec<_>>());
    Ok(DONE)
}
