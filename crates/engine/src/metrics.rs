//! Counters of the engine.

use std::sync::atomic::{AtomicU64, Ordering};

/// What is counted.
#[derive(Debug, Default)]
pub struct Metrics {
    events: AtomicU64,
    polls: AtomicU64,
    claims: AtomicU64,
    requeued: AtomicU64,
}

/// A reading of the counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Events made durable.
    pub events: u64,
    /// Polls of work queues.
    pub polls: u64,
    /// Work items handed out.
    pub claims: u64,
    /// Work items taken back from silent workers.
    pub requeued: u64,
    /// Sessions in memory.
    pub live_sessions: usize,
    /// Open streams.
    pub streams: usize,
}

impl Metrics {
    pub(crate) fn events(&self, count: usize) {
        self.events.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(crate) fn poll(&self, claimed: bool) {
        self.polls.fetch_add(1, Ordering::Relaxed);
        self.claims.fetch_add(u64::from(claimed), Ordering::Relaxed);
    }

    pub(crate) fn requeue(&self) {
        self.requeued.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self, live_sessions: usize, streams: usize) -> Snapshot {
        Snapshot {
            events: self.events.load(Ordering::Relaxed),
            polls: self.polls.load(Ordering::Relaxed),
            claims: self.claims.load(Ordering::Relaxed),
            requeued: self.requeued.load(Ordering::Relaxed),
            live_sessions,
            streams,
        }
    }
}
