//! Connections to the outside that wait for their next request. One session's own: nothing that it said or was told on them is
//! ever in reach of another.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::client::conn::{http1, http2};

use super::body::Upload;
use crate::name::Authority;
use crate::policy::Scheme;

/// Idle connections to one upstream.
const MAX_IDLE: usize = 64;
/// Upstreams with idle connections.
const MAX_UPSTREAMS: usize = 64;

/// What connections have in common that can be used for the same requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) scheme: Scheme,
    pub(super) authority: Authority,
    /// Whether HTTP/2 was asked for.
    pub(super) two: bool,
    /// The client certificate that it was opened with, by the reference of its credential.
    pub(super) identity: Option<String>,
}

/// A connection over which requests can be sent.
#[derive(Debug)]
pub(super) enum Sender {
    One(http1::SendRequest<Upload>),
    Two(http2::SendRequest<Upload>),
}

/// A connection and where it leads.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) sender: Sender,
    pub(super) address: SocketAddr,
}

#[derive(Debug)]
struct Idle {
    line: Line,
    since: Instant,
}

/// The idle connections of a session.
#[derive(Debug)]
pub(super) struct Pool {
    idle: Mutex<HashMap<Key, Vec<Idle>>>,
    keep: Duration,
}

impl Sender {
    fn is_closed(&self) -> bool {
        match self {
            Sender::One(sender) => sender.is_closed(),
            Sender::Two(sender) => sender.is_closed(),
        }
    }
}

impl Pool {
    pub(super) fn new(keep: Duration) -> Pool {
        Pool { idle: Mutex::default(), keep }
    }

    /// The connection that was used last. One that speaks HTTP/2 also stays where it is.
    pub(super) fn take(&self, key: &Key) -> Option<Line> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = idle.get_mut(key)?;
        while let Some(mut last) = lines.pop() {
            if last.line.sender.is_closed() || last.since.elapsed() > self.keep {
                continue;
            }
            if let Sender::Two(sender) = &last.line.sender {
                let line = Line { sender: Sender::Two(sender.clone()), address: last.line.address };
                last.since = Instant::now();
                lines.push(last);
                return Some(line);
            }
            return Some(last.line);
        }
        None
    }

    /// Keeps a connection for the next request.
    pub(super) fn give(&self, key: Key, line: Line) {
        if line.sender.is_closed() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() >= MAX_UPSTREAMS && !idle.contains_key(&key) {
            return;
        }
        let lines = idle.entry(key).or_default();
        if lines.len() < MAX_IDLE {
            lines.push(Idle { line, since: Instant::now() });
        }
    }

    /// Closes what has not been used for too long.
    pub(super) fn sweep(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, lines| {
            lines.retain(|idle| !idle.line.sender.is_closed() && idle.since.elapsed() <= self.keep);
            !lines.is_empty()
        });
    }

    /// Closes all.
    pub(super) fn clear(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
