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
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use russh::server::Config;
use russh::{MethodKind, MethodSet};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

pub(crate) use authority::Authority;
pub use authority::Issued;

use crate::perimeter::Registry;

/// Connections at the same time.
const MOST: usize = 64;
/// One on which nothing happens is closed.
const SILENCE: Duration = Duration::from_secs(3600);

/// Whoever has not shown a certificate by then is not kept any longer: before that, anybody of this machine takes a place.
const LOGIN: Duration = Duration::from_secs(20);

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
                        let admitted = CancellationToken::new();
                        let (authority, registry) = (self.authority.clone(), self.registry.clone());
                        let handler = session::Handler::new(peer, authority, registry, admitted.clone());
                        let config = self.config.clone();
                        connections.spawn(async move {
                            let login = Instant::now() + LOGIN;
                            if let Err(error) = attend(config, stream, handler, admitted, login).await {
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

/// Serves one connection to its end; `admitted` is cancelled when it has logged in, which it has to do before `login`.
async fn attend(
    config: Arc<Config>,
    stream: TcpStream,
    handler: session::Handler,
    admitted: CancellationToken,
    login: Instant,
) -> Result<(), russh::Error> {
    let late = |_| russh::Error::ConnectionTimeout;
    // Where a connection is set up, russh does not hear what it is asked.
    let cut = std::net::TcpStream::from(stream.as_fd().try_clone_to_owned()?);
    let mut running = timeout_at(login, russh::server::run_stream(config, stream, handler)).await.map_err(late)??;
    tokio::select! {
        ended = &mut running => return ended,
        in_time = timeout_at(login, admitted.cancelled()) => if in_time.is_err() {
            cut.shutdown(Shutdown::Both)?;
        },
    }
    drop(cut);
    running.await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn whoever_does_not_log_in_is_not_kept() {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry::default();
        let ssh = Ssh::bind("127.0.0.1:0".parse().unwrap(), directory.path(), registry.clone()).await.unwrap();
        let address = ssh.listener.local_addr().unwrap();
        for said in ["", "SSH-2.0-silent\r\n"] {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(said.as_bytes()).await.unwrap();
            let (stream, peer) = ssh.listener.accept().await.unwrap();
            let admitted = CancellationToken::new();
            let handler = session::Handler::new(peer, ssh.authority(), registry.clone(), admitted.clone());
            let login = Instant::now() + Duration::from_millis(100);
            let ended = attend(ssh.config.clone(), stream, handler, admitted, login);
            let _ = tokio::time::timeout(Duration::from_secs(10), ended).await.expect("it is not waited for");
            let mut rest = Vec::new();
            let closed = tokio::time::timeout(Duration::from_secs(10), client.read_to_end(&mut rest)).await;
            closed.expect("the connection is closed").unwrap();
        }
    }
}
