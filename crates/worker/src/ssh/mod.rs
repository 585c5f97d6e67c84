//! SSH into a live session, through a server of the worker's own. Off unless it is asked for.
//!
//! Nobody gets in with a password or a plain key: only with a certificate that this worker has issued, through its local admin
//! API, for one session and a few minutes. What is run, forwarded and refused is in the log under the target `audit`.
//!
//! Architecture invariant: a connection never keeps a sandbox alive or starts one, and reaches nothing but the sandbox that
//! its certificate names: commands inside it, and ports of its loopback device.

mod authority;
mod session;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use russh::server::Config;
use russh::{MethodKind, MethodSet};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) use authority::Authority;
pub use authority::Issued;

use crate::perimeter::Registry;

/// Connections at the same time.
const MOST: usize = 64;
/// One on which nothing happens is closed.
const SILENCE: Duration = Duration::from_secs(3600);

/// The server.
pub(crate) struct Ssh {
    listener: TcpListener,
    config: Arc<Config>,
    authority: Arc<Authority>,
    registry: Registry,
}

impl Ssh {
    /// Listens. The host's key is in the state directory, and made when it is not there.
    pub(crate) async fn bind(address: SocketAddr, state_dir: &Path, registry: Registry) -> io::Result<Ssh> {
        let host_key = authority::host_key(state_dir)?;
        let listener = TcpListener::bind(address).await?;
        let authority = Arc::new(Authority::new(&host_key, listener.local_addr()?)?);
        let config = Config {
            methods: MethodSet::from(&[MethodKind::PublicKey][..]),
            auth_rejection_time: Duration::from_secs(1),
            auth_rejection_time_initial: Some(Duration::ZERO),
            keys: vec![host_key],
            max_auth_attempts: 3,
            inactivity_timeout: Some(SILENCE),
            nodelay: true,
            ..Config::default()
        };
        Ok(Ssh { listener, config: Arc::new(config), authority, registry })
    }

    /// Who issues certificates for it.
    pub(crate) fn authority(&self) -> Arc<Authority> {
        self.authority.clone()
    }

    /// Serves until `stop` is cancelled; then connections are cut.
    pub(crate) async fn serve(self, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept(), if connections.len() < MOST => match accepted {
                    Ok((stream, peer)) => {
                        let handler = session::Handler::new(peer, self.authority.clone(), self.registry.clone());
                        let config = self.config.clone();
                        connections.spawn(async move {
                            let ended = match russh::server::run_stream(config, stream, handler).await {
                                Ok(running) => running.await,
                                Err(error) => Err(error),
                            };
                            if let Err(error) = ended {
                                tracing::debug!(%peer, %error, "an SSH connection ended");
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "an SSH connection was not accepted");
                        // Mostly a want of descriptors, which passes.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
            }
        }
    }
}
