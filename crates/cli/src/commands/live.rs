//! Commands that change where a live session stands: checkpoints of it, going back, forks, pauses.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use palisade_checkpoint::Checkpoint;
use palisade_worker::perimeter::{CheckpointBody, RestoreBody};
use serde_json::{Value, json};

use crate::cli::Connection;
use crate::commands::sandboxes::{WorkerAt, failed, worker_at};
use crate::commands::text;
use crate::output::{Outcome, Output};

/// Take a checkpoint of a live session's workspace. Everything in its sandbox stands still meanwhile.
#[derive(Debug, Args)]
pub(crate) struct CheckpointArgs {
    /// The session's id.
    session: String,
    /// What to call it; a checkpoint with a label is kept when others are pruned.
    #[arg(long)]
    label: Option<String>,
    #[command(flatten)]
    worker: WorkerAt,
}

/// Bring a live session's workspace back to a checkpoint. All processes in its sandbox end.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The session's id.
    session: String,
    /// The checkpoint's name, as `palisade checkpoints list` prints it.
    checkpoint: String,
    #[command(flatten)]
    worker: WorkerAt,
}

/// Create sessions that start from the state of a live one, in the same environment and with the same agent.
#[derive(Debug, Args)]
#[command(
    after_help = "The checkpoint is in the worker's store, so the sessions have to be served by the same worker, or by one \
                        that it was pushed to."
)]
pub(crate) struct ForkArgs {
    /// The session's id.
    session: String,
    /// How many.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: u32,
    /// The first message of each, which starts it.
    #[arg(long)]
    prompt: Option<String>,
    /// The worker's state directory; otherwise that of `palisade up`.
    #[arg(long, value_name = "DIR", env = "PALISADE_WORKER_DIR", help_heading = "Connection")]
    worker_dir: Option<PathBuf>,
    #[command(flatten)]
    connection: Connection,
}

/// Stop everything in a live session's sandbox where it is. No call is started until it is resumed.
#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    /// The session's id.
    session: String,
    /// Put it to disk, which frees its memory: its files always, its processes where the driver can (oci with gVisor's runsc); else
    /// they end.
    #[arg(long)]
    to_disk: bool,
    #[command(flatten)]
    worker: WorkerAt,
}

/// Let a paused session go on.
#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    /// The session's id.
    session: String,
    #[command(flatten)]
    worker: WorkerAt,
}

fn object(session: &str, checkpoint: &Checkpoint) -> Value {
    json!({"type": "checkpoint", "session": session, "id": checkpoint.id, "label": checkpoint.label})
}

pub(crate) async fn checkpoint(args: &CheckpointArgs, out: Output) -> Outcome {
    let body = CheckpointBody { label: args.label.clone() };
    let taken = args.worker.client()?.checkpoint(&args.session, &body).await;
    let taken = taken.map_err(|why| failed("the checkpoint cannot be taken", &why))?;
    out.either(&object(&args.session, &taken), taken.id);
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn restore(args: &RestoreArgs, out: Output) -> Outcome {
    let body = RestoreBody { checkpoint: args.checkpoint.clone() };
    let done = args.worker.client()?.restore(&args.session, &body).await;
    done.map_err(|why| failed("the session cannot be brought back", &why))?;
    let told = json!({"type": "restored", "session": args.session, "checkpoint": args.checkpoint});
    out.either(&told, format!("{} is back at {}", args.session, args.checkpoint));
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn fork(args: &ForkArgs, out: Output) -> Outcome {
    let (step, what) = ("fork the session", "the session cannot be forked");
    let api = args.connection.client()?;
    let path = format!("/v1/sessions/{}", args.session);
    let origin = api.get(step, &path).await?;
    let worker = worker_at(args.worker_dir.as_deref(), &args.connection.state)?;
    let taken = worker.checkpoint(&args.session, &CheckpointBody::default()).await;
    let taken = taken.map_err(|why| failed(what, &why))?;
    for _ in 0..args.count {
        let mut body = json!({
            "agent": {"type": "agent", "id": origin["agent"]["id"], "version": origin["agent"]["version"]},
            "environment_id": origin["environment_id"],
            "metadata": {"palisade.checkpoint": taken.id, "palisade.forked_from": args.session},
        });
        if let Some(prompt) = &args.prompt {
            body["initial_events"] = json!([super::sessions::message(prompt)]);
        }
        let session = api.post(step, "/v1/sessions", &body).await?;
        out.either(&session, text(&session, "id"));
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn pause(args: &PauseArgs, out: Output) -> Outcome {
    let client = args.worker.client()?;
    let what = "the session cannot be paused";
    if args.to_disk {
        let taken = client.hibernate(&args.session).await.map_err(|why| failed(what, &why))?;
        let id = taken.checkpoint.id;
        let said = match taken.processes_kept {
            true => format!("{} is on disk with its processes, its files as {id}", args.session),
            false => format!("{} is on disk as {id}; its processes have ended", args.session),
        };
        let mut body = object(&args.session, &taken.checkpoint);
        body["processes_kept"] = taken.processes_kept.into();
        out.either(&body, said);
    } else {
        client.pause(&args.session).await.map_err(|why| failed(what, &why))?;
        out.either(&json!({"type": "paused", "session": args.session}), format!("{} is paused", args.session));
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn resume(args: &ResumeArgs, out: Output) -> Outcome {
    let done = args.worker.client()?.resume(&args.session).await;
    let done = done.map_err(|why| failed("the session cannot be resumed", &why))?;
    let said = match done.processes_kept {
        Some(true) | None => format!("{} goes on", args.session),
        Some(false) => format!("{} goes on without its processes: the worker's log says why", args.session),
    };
    let body = json!({"type": "resumed", "session": args.session, "processes_kept": done.processes_kept});
    out.either(&body, said);
    Ok(ExitCode::SUCCESS)
}
