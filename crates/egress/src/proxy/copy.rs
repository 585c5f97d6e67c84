//! Bytes between two TCP connections, unread.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::policy::Refusal;

/// One read. Large enough that system calls cost little beside the copying.
const BUFFER: usize = 128 * 1024;
/// Buffers that are kept for the next read, over all sessions.
const KEPT: usize = 32;

/// Buffers that connections share: one has a buffer only while it has bytes to pass on, so that a thousand idle ones have none.
#[derive(Debug, Default)]
pub(super) struct Buffers(Mutex<Vec<Box<[u8]>>>);

impl Buffers {
    fn take(&self) -> Box<[u8]> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice())
    }

    fn give(&self, buffer: Box<[u8]>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(buffer);
        }
    }
}

/// Bytes of one connection, in both directions.
#[derive(Debug, Default)]
pub(super) struct Meter {
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
}

impl Meter {
    fn total(&self) -> u64 {
        self.sent.load(Ordering::Relaxed).wrapping_add(self.received.load(Ordering::Relaxed))
    }
}

/// Why copying stopped before both sides had closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stop {
    /// Nothing came from either side for too long.
    #[error("nothing was sent in either direction for too long")]
    Idle,
    /// A budget is used up.
    #[error("{0}")]
    Refused(Refusal),
    /// One side broke off.
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
}

/// Copies both ways until both have closed. `spend` is asked for each piece before it is passed on, and `hear` is told each that
/// comes from `up`.
pub(super) async fn both(
    (down, up): (&TcpStream, &TcpStream),
    buffers: &Buffers,
    meter: &Meter,
    idle: Duration,
    spend: impl Fn(u64) -> Result<(), Refusal>,
    hear: impl Fn(&[u8]),
) -> Result<(), Stop> {
    let out = one_way(down, up, buffers, (&meter.sent, meter), idle, (&spend, &|_| {}));
    let back = one_way(up, down, buffers, (&meter.received, meter), idle, (&spend, &hear));
    tokio::try_join!(out, back).map(|_| ())
}

async fn one_way(
    from: &TcpStream,
    to: &TcpStream,
    buffers: &Buffers,
    (count, meter): (&AtomicU64, &Meter),
    idle: Duration,
    (spend, hear): (&impl Fn(u64) -> Result<(), Refusal>, &impl Fn(&[u8])),
) -> Result<(), Stop> {
    loop {
        let before = meter.total();
        match tokio::time::timeout(idle, from.readable()).await {
            Ok(ready) => ready?,
            // The other direction may be busy.
            Err(_) if meter.total() != before => continue,
            Err(_) => return Err(Stop::Idle),
        }
        let mut buffer = buffers.take();
        let read = from.try_read(&mut buffer);
        let passed = match read {
            Ok(0) => {
                buffers.give(buffer);
                // The other side may already be gone, and then there is nobody to tell.
                let _ = rustix::net::shutdown(to, rustix::net::Shutdown::Write);
                return Ok(());
            }
            Ok(length) => {
                hear(&buffer[..length]);
                pass(&buffer[..length], to, (count, meter), idle, spend).await
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        };
        buffers.give(buffer);
        passed?;
    }
}

pub(super) async fn pass(
    mut bytes: &[u8],
    to: &TcpStream,
    (count, meter): (&AtomicU64, &Meter),
    idle: Duration,
    spend: &impl Fn(u64) -> Result<(), Refusal>,
) -> Result<(), Stop> {
    spend(bytes.len() as u64).map_err(Stop::Refused)?;
    while !bytes.is_empty() {
        match to.try_write(bytes) {
            Ok(written) => {
                count.fetch_add(written as u64, Ordering::Relaxed);
                bytes = &bytes[written..];
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let before = meter.total();
                match tokio::time::timeout(idle, to.writable()).await {
                    Ok(ready) => ready?,
                    Err(_) if meter.total() != before => {}
                    Err(_) => return Err(Stop::Idle),
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Ends a connection with a reset, so that the other side does not take what it has for the whole.
pub(super) fn reset(stream: TcpStream) {
    // Without the option it is closed in the ordinary way, which is all that can be done.
    let _ = stream.set_zero_linger();
    drop(stream);
}

/// Whether nothing more can be told to the other side.
pub(super) fn gone(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof)
}
