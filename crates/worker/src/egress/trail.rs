//! The audit trail as the egress service needs it.
//!
//! What lets something new out is durable before it does: a connection that is made, a request in the clear or with a credential put
//! in, an alert. Each further request of a connection that is on the trail, each refusal and each name is handed to the writer before
//! the answer or the request goes out, and is on the disk within 50 ms: a power cut or the end of the worker's process may take
//! the last of them, never the connection that they belong to. Once a write has failed everything waits for the disk, and what
//! cannot be written does not happen.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use async_trait::async_trait;
use palisade_egress::{Entry, Outcome, TrailError};
use serde::Serialize;

/// Keeps entries in the worker's trail.
#[derive(Debug)]
pub(super) struct Kept {
    trail: palisade_audit::Trail,
    /// The number of the next entry. Others than those of earlier processes, as it begins with the time.
    next: AtomicU64,
}

/// What began.
#[derive(Serialize)]
struct Begin<'a> {
    entry: u64,
    #[serde(flatten)]
    what: &'a Entry,
}

/// How it has ended.
#[derive(Serialize)]
struct End<'a> {
    entry: u64,
    #[serde(flatten)]
    outcome: &'a Outcome,
}

impl Kept {
    pub(super) fn new(trail: palisade_audit::Trail, now: SystemTime) -> Kept {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let first = u64::try_from(since.as_micros()).unwrap_or_default();
        Kept { trail, next: AtomicU64::new(first) }
    }
}

#[async_trait]
impl palisade_egress::Trail for Kept {
    async fn begin(&self, what: &Entry) -> Result<u64, TrailError> {
        if what.alert {
            let Entry { session, to, reason, .. } = what;
            tracing::warn!(target: "alert", session, to, reason, "a credential was used where it does not belong");
        }
        let entry = self.next.fetch_add(1, Ordering::Relaxed);
        let session = Some(what.session.as_str());
        // A request in the clear has no entry of its connection before it.
        let new = what.kind == "connect" || what.protocol == "http" || !what.credentials.is_empty();
        let weighty = what.allowed && new || what.alert;
        let begin = Begin { entry, what };
        let kept = if weighty || self.trail.failing() {
            self.trail.append("egress.begin", session, begin).await.map(drop)
        } else {
            self.trail.note("egress.begin", session, begin).await
        };
        kept.map(|()| entry).map_err(|why| TrailError(why.to_string()))
    }

    async fn end(&self, session: &str, entry: u64, outcome: &Outcome) -> Result<(), TrailError> {
        let noted = self.trail.note("egress.end", Some(session), End { entry, outcome }).await;
        noted.map_err(|why| TrailError(why.to_string()))
    }
}
