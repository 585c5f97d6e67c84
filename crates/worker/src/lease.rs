//! Keeping the lease on one work item.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::client::{Client, Credential};
use crate::pace::{Backoff, Pace, unit};

/// The longest that the answer to one beat is waited for. One that is given up may have been taken, and its repetition be refused.
const ANSWER: Duration = Duration::from_secs(30);

/// What is known about the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lease {
    /// The first heartbeat has not been answered; nothing may run yet.
    Claiming,
    /// It is ours.
    Held,
    /// An operator asked for a graceful end.
    Stopping,
    /// The control plane ended the item, or refuses our calls for good; it still has to be force-stopped.
    Over,
    /// Another worker may hold it: touch nothing any more, not even with a stop.
    Lost,
}

/// Beats until the lease ends, telling every change through `state`. Ends when the receiver is gone, too.
pub(crate) async fn keep(
    client: Arc<Client>,
    credential: Arc<Credential>,
    work: String,
    pace: Pace,
    state: watch::Sender<Lease>,
) {
    let (shortest, longest) = pace.heartbeat;
    let mut expected = "NO_HEARTBEAT".to_owned();
    let mut ttl = pace.assumed_ttl;
    let mut interval = longest;
    let mut backoff = Backoff::new(pace.retry);
    let mut last_success = Instant::now();
    loop {
        let started = Instant::now();
        let lapse = last_success + ttl;
        let deadline = (ttl / 2).clamp(shortest, ANSWER.max(shortest)).min(lapse.saturating_duration_since(started));
        let pause;
        match client.heartbeat(&credential, &work, &expected, deadline).await {
            Ok(beat) => {
                // It counts from when it was asked for at the latest: the answer may have been long on its way.
                last_success = started;
                backoff.reset();
                expected = beat.last_heartbeat;
                if let Some(seconds) = beat.ttl_seconds.filter(|seconds| *seconds > 0) {
                    ttl = Duration::from_secs(seconds.min(24 * 3600));
                }
                interval = (ttl / 2).clamp(shortest, longest);
                pause = interval;
                let now = match beat.state.as_str() {
                    "stopping" => Lease::Stopping,
                    "stopped" => Lease::Over,
                    _ if !beat.lease_extended => Lease::Over,
                    _ => Lease::Held,
                };
                state.send_if_modified(|lease| std::mem::replace(lease, now) != now);
                if now == Lease::Over {
                    return;
                }
            }
            Err(error) if error.status() == Some(412) => {
                tracing::warn!(work, "lease lost: another beat than ours is the last one; leaving the item alone");
                state.send_replace(Lease::Lost);
                return;
            }
            Err(error) if !error.is_transient() => {
                tracing::warn!(work, %error, "heartbeat refused for good; ending the item");
                state.send_replace(Lease::Over);
                return;
            }
            Err(error) => {
                tracing::debug!(work, %error, "heartbeat failed; trying again");
                pause = backoff.delay_after(unit(), error.retry_after()).min(interval);
            }
        }
        // Whoever is given the item after the lapse must not find us still working on it.
        let lapse = last_success + ttl;
        let next = (started + pause).max(Instant::now()).min(lapse);
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = state.closed() => return,
        }
        if Instant::now() >= lapse {
            tracing::warn!(work, "lease lost: no heartbeat was accepted for a whole time to live");
            state.send_replace(Lease::Lost);
            return;
        }
    }
}
