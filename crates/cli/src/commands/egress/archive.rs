//! `palisade egress archive`: room for more of the audit trail, while a worker writes it.

use std::path::PathBuf;

use clap::Args;
use palisade_worker::perimeter::ArchiveBody;
use serde_json::json;

use super::DONE;
use crate::commands::sandboxes::{self, WorkerAt};
use crate::output::{Context as _, Outcome, Output};

/// Move what is old out of the audit trail, which goes on.
#[derive(Debug, Args)]
#[command(
    after_help = "Whole segments are moved, of 64 MiB each, and a record of the trail says which. `palisade egress verify \
                        --archive DIR` verifies both together."
)]
pub(crate) struct ArchiveArgs {
    /// Records that are younger stay.
    #[arg(long, value_name = "DAYS")]
    older_than: u32,
    /// The directory that they go to. It must be one that the worker can write, and only for this trail.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    #[command(flatten)]
    worker: WorkerAt,
}

pub(super) async fn run(args: &ArchiveArgs, out: Output) -> Outcome {
    let to = std::path::absolute(&args.to).context("the directory cannot be named")?;
    let body = ArchiveBody { older_than_seconds: u64::from(args.older_than) * 24 * 60 * 60, to };
    let moved = args.worker.client()?.archive(&body).await;
    let moved = moved
        .map_err(|why| sandboxes::failed("the audit trail is as it was, or what had been moved is moved", &why))?;
    let value = json!({
        "type": "archived", "segments": moved.segments, "bytes": moved.bytes, "through": moved.through, "to": body.to,
    });
    let text = match moved.through {
        Some(through) => format!(
            "{} segments with {} MiB, up to record {through}, are in {}",
            moved.segments,
            moved.bytes >> 20,
            body.to.display()
        ),
        None => "nothing is old enough: only whole segments are moved, and the one that is written stays".to_owned(),
    };
    out.either(&value, text);
    Ok(DONE)
}
