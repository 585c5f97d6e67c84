//! The socket, and who may come in.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::net::{UnixListener, UnixStream};

/// Who is at the other end, as the kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) uid: u32,
    pub(crate) pid: i32,
}

/// Whether such a user may use the admin API of a worker that runs as `own`.
fn admits(own: u32, peer: u32) -> bool {
    peer == own || peer == 0
}

/// Accepts connections of the worker's own user and of root, and of nobody else.
pub(crate) struct Gate {
    listener: UnixListener,
    path: PathBuf,
    own: u32,
}

/// A path of a state directory that is short enough for an address of a socket, whatever the directory's name is.
pub(crate) fn short(state_dir: &Path) -> io::Result<(File, PathBuf)> {
    let directory = File::open(state_dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(super::SOCKET);
    Ok((directory, path))
}

impl Gate {
    pub(crate) fn bind(state_dir: &Path) -> io::Result<Gate> {
        let path = super::socket(state_dir);
        let (_directory, short) = short(state_dir)?;
        let listener = match std::os::unix::net::UnixListener::bind(&short) {
            Err(why) if why.kind() == io::ErrorKind::AddrInUse => {
                // One that nobody answers at was left by a worker that did not end in good order.
                if std::os::unix::net::UnixStream::connect(&short).is_ok() {
                    return Err(io::Error::new(why.kind(), "another worker serves this state directory"));
                }
                std::fs::remove_file(&short)?;
                std::os::unix::net::UnixListener::bind(&short)?
            }
            bound => bound?,
        };
        // Until now the directory, which is its owner's, has kept others out; and the gate asks everybody for their name.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let own = rustix::process::geteuid().as_raw();
        Ok(Gate { listener: UnixListener::from_std(listener)?, path, own })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Listener for Gate {
    type Io = UnixStream;
    type Addr = Peer;

    async fn accept(&mut self) -> (UnixStream, Peer) {
        loop {
            let accepted = self.listener.accept().await.and_then(|(stream, _)| {
                let credentials = stream.peer_cred()?;
                Ok((stream, Peer { uid: credentials.uid(), pid: credentials.pid().unwrap_or(0) }))
            });
            match accepted {
                Ok((stream, peer)) if admits(self.own, peer.uid) => return (stream, peer),
                Ok((_, peer)) => {
                    tracing::warn!(target: "audit", uid = peer.uid, pid = peer.pid, "admin connection refused");
                }
                Err(error) => {
                    tracing::warn!(%error, "an admin connection was not accepted");
                    // Mostly a want of descriptors, which passes.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Ok(Peer { uid: self.own, pid: 0 })
    }
}

impl Connected<IncomingStream<'_, Gate>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Gate>) -> Peer {
        *stream.remote_addr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_user_and_root_are_let_in() {
        assert!(admits(1000, 1000) && admits(1000, 0) && admits(0, 0));
        assert!(!admits(1000, 1001) && !admits(0, 1000) && !admits(1000, u32::MAX));
    }

    #[tokio::test]
    async fn a_socket_that_was_left_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let gate = Gate::bind(&deep).unwrap();
        assert_eq!(std::fs::metadata(gate.path()).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(Gate::bind(&deep).is_err());
        drop(gate);
        Gate::bind(&deep).unwrap();
    }
}
