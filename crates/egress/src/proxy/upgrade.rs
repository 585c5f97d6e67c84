//! Connections that stop speaking HTTP: WebSockets.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::evidence::Open;
use super::session::{Shared, Slot};
use crate::broker::Redactor;
use crate::policy::{Meter, Refusal};

/// One read.
const PIECE: usize = 16 * 1024;

/// Both sides of a connection that is about to change, and what is known of it.
pub(super) struct Upgrade {
    pub(super) down: OnUpgrade,
    pub(super) up: OnUpgrade,
    pub(super) open: Open,
    pub(super) meter: Meter,
    /// What takes values of credentials out of what the upstream says.
    pub(super) redactor: Redactor,
    pub(super) slot: Slot,
}

/// Carries an upgraded connection, as a task of its session.
pub(super) fn carry(shared: &Arc<Shared>, upgrade: Upgrade) {
    let idle = shared.common.limits.tunnel_idle;
    shared.spawn(async move {
        let Upgrade { down, up, open, meter, redactor, slot } = upgrade;
        let (down, up) = match tokio::try_join!(down, up) {
            Ok(both) => both,
            Err(error) => {
                tracing::debug!(%error, "a connection was to change its protocol and ended");
                return;
            }
        };
        let mut tunnel = Tunnel { open, sent: AtomicU64::new(0), received: AtomicU64::new(0), redacted: 0 };
        let ended = tunnel.run(TokioIo::new(down), TokioIo::new(up), (&meter, redactor), idle).await;
        match ended {
            Ok(()) => tunnel.open.outcome.error = None,
            Err(End::Refused(refusal)) => tunnel.open.fail(&refusal.into()),
            Err(End::Idle) => tunnel.open.outcome.error = Some("idle"),
            Err(End::Broken(error)) => {
                tracing::debug!(%error, "an upgraded connection broke");
                tunnel.open.outcome.error = Some("reset");
            }
        }
        drop(slot);
    });
}

enum End {
    Refused(Refusal),
    Idle,
    Broken(io::Error),
}

struct Tunnel {
    open: Open,
    sent: AtomicU64,
    received: AtomicU64,
    redacted: u64,
}

impl Tunnel {
    async fn run(
        &mut self,
        down: impl AsyncRead + AsyncWrite,
        up: impl AsyncRead + AsyncWrite,
        (meter, redactor): (&Meter, Redactor),
        idle: Duration,
    ) -> Result<(), End> {
        let (mut down_read, mut down_write) = tokio::io::split(down);
        let (mut up_read, mut up_write) = tokio::io::split(up);
        let Tunnel { sent, received, redacted, .. } = self;
        // Frames have lengths, so what is put in must be as long as what is taken out.
        let mut redactor = redactor.keeping_length();
        let total = || sent.load(Relaxed).wrapping_add(received.load(Relaxed));
        let out = async {
            while let Some(piece) = piece(&mut down_read, idle, total).await? {
                meter.bytes(piece.len() as u64).map_err(End::Refused)?;
                up_write.write_all(&piece).await.map_err(End::Broken)?;
                up_write.flush().await.map_err(End::Broken)?;
                sent.fetch_add(piece.len() as u64, Relaxed);
            }
            up_write.shutdown().await.map_err(End::Broken)
        };
        let back = async {
            while let Some(piece) = piece(&mut up_read, idle, total).await? {
                meter.bytes(piece.len() as u64).map_err(End::Refused)?;
                received.fetch_add(piece.len() as u64, Relaxed);
                let piece = redactor.push(piece);
                *redacted = redactor.found();
                down_write.write_all(&piece).await.map_err(End::Broken)?;
                down_write.flush().await.map_err(End::Broken)?;
            }
            let rest = redactor.finish();
            *redacted = redactor.found();
            down_write.write_all(&rest).await.map_err(End::Broken)?;
            down_write.shutdown().await.map_err(End::Broken)
        };
        tokio::try_join!(out, back).map(|_| ())
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let outcome = &mut self.open.outcome;
        (outcome.sent, outcome.received) = (self.sent.load(Relaxed), self.received.load(Relaxed));
        outcome.redacted += self.redacted;
    }
}

/// What comes next, or nothing more.
async fn piece(
    from: &mut (impl AsyncRead + Unpin),
    idle: Duration,
    total: impl Fn() -> u64,
) -> Result<Option<Bytes>, End> {
    let mut buffer = BytesMut::with_capacity(PIECE);
    loop {
        let before = total();
        match tokio::time::timeout(idle, from.read_buf(&mut buffer)).await {
            Ok(Ok(0)) => return Ok(None),
            Ok(Ok(_)) => return Ok(Some(buffer.freeze())),
            Ok(Err(error)) => return Err(End::Broken(error)),
            Err(_) if total() != before => {}
            Err(_) => return Err(End::Idle),
        }
    }
}
