//! What is kept of each connection and request: an entry before anything goes out, an outcome afterwards, counters, a live tail.

use std::fmt;
use std::future::Future as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Waker};
use std::time::Instant;

use serde::Serialize;

use super::fault::Fault;
use super::session::Shared;
use crate::policy::{Refusal, RuleName};
use crate::seam::{Entry, Outcome};

/// A connection or request that has ended, as the live tail shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Record {
    /// Its number in the trail.
    pub number: u64,
    /// What was asked for and decided.
    pub entry: Entry,
    /// How it ended.
    pub outcome: Outcome,
}

/// What a session has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counters {
    /// Connections that were taken.
    pub connections: u64,
    /// Connections that are open now.
    pub open: u64,
    /// Requests that were read, allowed or not.
    pub requests: u64,
    /// Connections, requests and names that were refused.
    pub refused: u64,
    /// What was let through only because the policy observes.
    pub observed: u64,
    /// What went wrong outside: upstreams that do not answer, certificates that do not hold.
    pub failed: u64,
    /// Names that were asked for.
    pub names: u64,
    /// Bytes that left.
    pub sent: u64,
    /// Bytes that came.
    pub received: u64,
    /// Requests into which credentials were put.
    pub injected: u64,
    /// Values of credentials that were found in answers and replaced.
    pub redacted: u64,
    /// Placeholders that were sent where they do not belong.
    pub alerts: u64,
    /// TLS handshakes that the sandbox broke off because it does not take the session's certificate authority.
    pub pinned: u64,
}

macro_rules! tally {
    ($($name:ident),*) => {
        /// The same, being counted.
        #[derive(Debug, Default)]
        pub(super) struct Tally { $(pub(super) $name: AtomicU64,)* }

        impl Tally {
            pub(super) fn counters(&self) -> Counters {
                Counters { $($name: self.$name.load(Relaxed),)* }
            }
        }
    };
}

tally!(
    connections,
    open,
    requests,
    refused,
    observed,
    failed,
    names,
    sent,
    received,
    injected,
    redacted,
    alerts,
    pinned
);

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// Of an entry, what is known before it is decided.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) kind: &'static str,
    pub(super) to: String,
    pub(super) protocol: &'static str,
    pub(super) method: Option<String>,
    pub(super) path: Option<String>,
}

impl Asked {
    pub(super) fn connect(to: impl fmt::Display, protocol: &'static str) -> Asked {
        Asked { kind: "connect", to: to.to_string(), protocol, method: None, path: None }
    }

    /// Of a signature for SSH.
    pub(super) fn signature(to: impl fmt::Display) -> Asked {
        Asked { kind: "signature", to: to.to_string(), protocol: "ssh", method: None, path: None }
    }

    pub(super) fn allowed(
        self,
        session: &str,
        rule: &RuleName,
        observed: Option<&Refusal>,
        credentials: Vec<String>,
    ) -> Entry {
        Entry {
            session: session.to_owned(),
            kind: self.kind,
            to: self.to,
            protocol: self.protocol,
            method: self.method,
            path: self.path,
            allowed: true,
            observed: observed.is_some(),
            rule: Some(rule.to_string()),
            reason: observed.map(|refusal| refusal.reason.code()),
            credentials,
            alert: false,
        }
    }

    pub(super) fn refused(self, session: &str, fault: &Fault) -> Entry {
        Entry {
            session: session.to_owned(),
            kind: self.kind,
            to: self.to,
            protocol: self.protocol,
            method: self.method,
            path: self.path,
            allowed: false,
            observed: false,
            rule: fault.rule.clone(),
            reason: Some(fault.code),
            credentials: Vec::new(),
            alert: fault.alert,
        }
    }
}

/// An entry that is durable and whose outcome is not known yet. The outcome is written when this is dropped, on whatever way that
/// comes about; unless it says otherwise, it was cut off.
#[derive(Debug)]
pub(super) struct Open {
    shared: Arc<Shared>,
    number: u64,
    entry: Option<Entry>,
    pub(super) outcome: Outcome,
    began: Instant,
    /// What was found when the entry was durable already, and must be raised.
    alert: Option<Entry>,
}

impl Shared {
    /// Makes an entry durable. What it allows happens only afterwards.
    pub(super) async fn begin(self: &Arc<Self>, entry: Entry) -> Result<Open, Fault> {
        let began = Instant::now();
        let number = self.common.trail.begin(&entry).await?;
        if !entry.allowed {
            count(&self.tally.refused);
        }
        if entry.observed {
            count(&self.tally.observed);
        }
        if entry.alert {
            count(&self.tally.alerts);
        }
        if !entry.credentials.is_empty() {
            count(&self.tally.injected);
        }
        let outcome = Outcome {
            address: None,
            status: None,
            sent: 0,
            received: 0,
            duration: began.elapsed(),
            redacted: 0,
            error: Some("cut_off"),
        };
        Ok(Open { shared: Arc::clone(self), number, entry: Some(entry), outcome, began, alert: None })
    }

    /// Keeps that something was refused. Gives back what is told: the refusal, or that not even that can be kept.
    pub(super) async fn refuse(self: &Arc<Self>, asked: Asked, fault: Fault) -> Fault {
        let entry = asked.refused(&self.id, &fault);
        match self.begin(entry).await {
            Ok(mut open) => {
                open.outcome.error = None;
                open.outcome.status = (open.kind() == "request").then_some(fault.status.as_u16());
                fault
            }
            Err(unavailable) => unavailable,
        }
    }
}

impl Open {
    fn kind(&self) -> &'static str {
        self.entry.as_ref().map_or("", |entry| entry.kind)
    }

    /// It went wrong.
    pub(super) fn fail(&mut self, fault: &Fault) {
        self.outcome.error = Some(fault.code);
        let tally = &self.shared.tally;
        count(if fault.refused { &tally.refused } else { &tally.failed });
        if let (true, Some(entry)) = (fault.alert, &self.entry) {
            count(&tally.alerts);
            self.alert = Some(Entry {
                allowed: false,
                observed: false,
                reason: Some(fault.code),
                credentials: Vec::new(),
                alert: true,
                ..entry.clone()
            });
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Some(entry) = self.entry.take() else { return };
        self.outcome.duration = self.began.elapsed();
        let tally = &self.shared.tally;
        tally.sent.fetch_add(self.outcome.sent, Relaxed);
        tally.received.fetch_add(self.outcome.received, Relaxed);
        tally.redacted.fetch_add(self.outcome.redacted, Relaxed);
        let (shared, number, outcome) = (Arc::clone(&self.shared), self.number, self.outcome.clone());
        let alert = self.alert.take();
        if shared.live.receiver_count() > 0 {
            // Only listeners that have gone away are an error, and those that are slow lose the oldest records.
            let _ = shared.live.send(Arc::new(Record { number, entry, outcome: outcome.clone() }));
        }
        let end = async move {
            let trail = &shared.common.trail;
            let mut kept = trail.end(&shared.id, number, &outcome).await;
            if let (Ok(()), Some(alert)) = (&kept, alert) {
                kept = match trail.begin(&alert).await {
                    Ok(number) => {
                        trail
                            .end(
                                &shared.id,
                                number,
                                &Outcome { sent: 0, received: 0, redacted: 0, error: None, ..outcome },
                            )
                            .await
                    }
                    Err(error) => Err(error),
                };
            }
            if let Err(error) = kept {
                tracing::error!(%error, number, "the outcome of an entry is not in the audit trail");
            }
        };
        // Most trails only put it in a queue, and then no task is needed.
        let mut end = Box::pin(end);
        if end.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            self.shared.tasks.spawn(end);
        }
    }
}
