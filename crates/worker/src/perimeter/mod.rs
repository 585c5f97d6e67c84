//! The local admin API, `/perimeter/v1`: what an operator of this machine may do with the live sandboxes of a worker.
//!
//! It is served on a Unix socket in the worker's state directory that only the worker's own user can open, and answers nobody
//! but that user and root, whom the kernel names. Nothing of it listens on a network. docs/reference/perimeter-api.md
//! describes it.
//!
//! Architecture invariant: what an operator does never keeps a sandbox alive or starts one unasked; it ends with the item
//! that the sandbox belongs to. Every action is in the log under the target `audit` before it is done.

mod archive;
mod audit;
mod body;
mod checkpoints;
mod client;
mod credentials;
mod exec;
mod files;
mod frame;
mod gate;
mod registry;
mod routes;
mod wire;

use std::future::IntoFuture as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::egress::Egress;
use crate::ssh::Authority;

pub use crate::ssh::Issued;
pub(crate) use audit::redacted;
pub use client::{Client, ClientError, Stream};
pub use frame::{Frame, Kind};
pub(crate) use registry::Registry;
pub use wire::{
    AllowedBody, ArchiveBody, ArchivedBody, CheckpointBody, ConnectBody, CredentialBody, CredentialsBody, DownBody,
    ExecBody, ExitBody, HibernatedBody, LeaseBody, Purpose, ReferenceBody, RestoreBody, ResumedBody, RevokedBody,
    SessionBody, SignalBody, SourceBody, TerminalSize,
};

/// The socket's name in the state directory.
const SOCKET: &str = "perimeter.sock";

/// Where the socket of a worker with this state directory is.
pub fn socket(state_dir: &Path) -> PathBuf {
    state_dir.join(SOCKET)
}

/// Serves until `stop` is cancelled.
pub(crate) struct Perimeter {
    gate: gate::Gate,
    state: Arc<routes::State>,
}

impl Perimeter {
    /// Takes the socket's place. Another worker that lives on the same state directory keeps it.
    pub(crate) fn bind(
        state_dir: &Path,
        registry: Registry,
        allow_preview: bool,
        ssh: Option<Arc<Authority>>,
        egress: Option<Arc<Egress>>,
    ) -> std::io::Result<Perimeter> {
        let gate = gate::Gate::bind(state_dir)?;
        Ok(Perimeter {
            gate,
            state: Arc::new(routes::State { state_dir: state_dir.to_owned(), registry, allow_preview, ssh, egress }),
        })
    }

    pub(crate) async fn serve(self, stop: CancellationToken) {
        let path = self.gate.path().to_owned();
        let router = routes::router(self.state).into_make_service_with_connect_info::<gate::Peer>();
        let served = axum::serve(self.gate, router);
        // Streams under way end with their sandboxes; they are not waited for.
        tokio::select! {
            served = served.into_future() => if let Err(error) = served {
                tracing::error!(%error, "the local admin API ended");
            },
            () = stop.cancelled() => {}
        }
        let _ = std::fs::remove_file(path);
    }
}
