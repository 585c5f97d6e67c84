//! How commands find a worker and speak of its sandboxes.

use std::path::PathBuf;

use clap::Args;
use palisade_worker::perimeter::{Client, ClientError};

use crate::cli::StateDir;
use crate::output::{Failure, Outcome};

/// How a command finds the worker.
#[derive(Debug, Clone, Args)]
pub(crate) struct WorkerAt {
    /// The worker's state directory; otherwise that of `palisade up`.
    #[arg(long, value_name = "DIR", env = "PALISADE_WORKER_DIR", help_heading = "Connection")]
    worker_dir: Option<PathBuf>,
    #[command(flatten)]
    state: StateDir,
}

impl WorkerAt {
    /// A client of the worker that is meant.
    pub(crate) fn client(&self) -> Outcome<Client> {
        let directory = match &self.worker_dir {
            Some(directory) => directory.clone(),
            None => self.state.path()?.join("worker"),
        };
        Ok(Client::new(directory))
    }
}

/// Why the worker did not do it, and what to do about that.
pub(crate) fn failed(what: &str, why: &ClientError) -> Failure {
    let failure = Failure::new(what).why(why);
    match why {
        ClientError::Unreachable { .. } => failure.fix(
            "start `palisade up` or `palisade worker` on this machine, as the same user; name the worker's state directory \
             with --worker-dir",
        ),
        ClientError::Refused { status: 404, .. } => {
            failure.fix("see `palisade ps` for the sessions that this worker serves")
        }
        ClientError::Refused { .. } | ClientError::Broken(_) => failure,
    }
}
