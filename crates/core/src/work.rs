//! The state machine of a work item: queued → starting → active → stopping → stopped, and back to queued when a worker
//! that had it falls silent.

use palisade_api::{EnvironmentId, Heartbeat, Metadata, SessionId, Timestamp, Work, WorkData, WorkId, WorkState};
use serde::{Deserialize, Serialize};

use crate::batch::{Kind, Record};

/// How long things may take, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leases {
    /// The lease that a heartbeat extends, unless it asks for another.
    pub ttl: i64,
    /// The longest lease that may be asked for.
    pub max_ttl: i64,
    /// From the acknowledgement to the first heartbeat.
    pub start: i64,
    /// From the request to stop to the worker's own stop.
    pub stop: i64,
}

impl Default for Leases {
    fn default() -> Leases {
        Leases { ttl: 30_000_000, max_ttl: 600_000_000, start: 20_000_000, stop: 180_000_000 }
    }
}

/// A work item as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// The API object; its secret is always null here.
    pub work: Work,
    /// When it was last handed to a worker that has not acknowledged it.
    pub claimed_at: Option<Timestamp>,
    /// Not to be handed out before this time.
    pub not_before: Option<Timestamp>,
    /// The lease in force, in microseconds.
    pub ttl: i64,
}

/// Why a verb was refused.
#[derive(Debug, Clone, PartialEq)]
pub enum Refused {
    /// The item is past the state in which this makes sense.
    State(WorkState),
    /// The heartbeat does not follow the last one: somebody else holds the lease.
    Heartbeat(Heartbeat),
    /// A number is out of its range.
    Range(&'static str),
}

/// What became of an item whose time had run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lapse {
    /// Its time has not run out.
    Held,
    /// It waits for another worker.
    Requeued,
    /// It was being stopped and is stopped now.
    Stopped,
}

impl Item {
    /// A new item that asks for hands for `session`.
    pub fn new(
        id: WorkId,
        environment: EnvironmentId,
        session: &SessionId,
        now: Timestamp,
        not_before: Option<Timestamp>,
    ) -> Item {
        let work = Work::new(id, environment, WorkData::session(session.clone()), Metadata::default(), now);
        Item { work, claimed_at: None, not_before, ttl: 0 }
    }

    /// The record to store: `due_at` says when something is next to be done about the item.
    ///
    /// # Errors
    /// Never for an item made by this crate.
    pub fn record(&self, leases: &Leases) -> Result<Record, serde_json::Error> {
        let mut record = Record::new(Kind::Work, self.work.id.as_str(), self.work.created_at, self)?;
        record.parent = Some(self.work.environment_id.as_str().to_owned());
        record.status = Some(self.work.state.as_str().to_owned());
        record.labels.insert("session_id".to_owned(), self.work.data.id().to_owned());
        record.due_at = match self.work.state {
            WorkState::Queued => Some(self.claimed_at.or(self.not_before).unwrap_or(Timestamp::from_micros(0))),
            WorkState::Starting => self.work.acknowledged_at.map(|at| at.plus(leases.start)),
            WorkState::Active => self.work.latest_heartbeat_at.map(|at| at.plus(self.ttl)),
            WorkState::Stopping => self.work.stop_requested_at.map(|at| at.plus(leases.stop)),
            _ => None,
        };
        Ok(record)
    }

    /// Whether a poll may hand the item out.
    pub fn claimable(&self, now: Timestamp, reclaim: i64) -> bool {
        self.work.state == WorkState::Queued
            && self.not_before.is_none_or(|at| at <= now)
            && self.claimed_at.is_none_or(|at| at.plus(reclaim) <= now)
    }

    /// Hands the item to a worker.
    pub fn claim(&mut self, now: Timestamp) {
        self.claimed_at = Some(now);
    }

    /// The worker has it: it leaves the queue. Acknowledging again changes nothing.
    ///
    /// # Errors
    /// When the item is being stopped or is stopped.
    pub fn ack(&mut self, now: Timestamp) -> Result<(), Refused> {
        match self.work.state {
            WorkState::Queued => {
                self.work.state = WorkState::Starting;
                self.work.acknowledged_at = Some(now);
                Ok(())
            }
            WorkState::Starting | WorkState::Active => Ok(()),
            other => Err(Refused::State(other)),
        }
    }

    /// Extends the lease. `expected` is the value of the last heartbeat, or none for the first; `ttl` is in seconds.
    ///
    /// # Errors
    /// When the value is not that of the last heartbeat: the lease was lost.
    pub fn beat(
        &mut self,
        expected: Option<&str>,
        ttl: Option<i64>,
        leases: &Leases,
        now: Timestamp,
    ) -> Result<Heartbeat, Refused> {
        if matches!(self.work.state, WorkState::Stopping | WorkState::Stopped) {
            return Ok(self.heartbeat(self.work.state == WorkState::Stopping));
        }
        let last = self.work.latest_heartbeat_at.map(|at| at.to_string());
        let claimed = self.work.state != WorkState::Queued || self.claimed_at.is_some();
        if last.as_deref() != expected || !claimed {
            return Err(Refused::Heartbeat(self.heartbeat(false)));
        }
        let ttl = match ttl {
            None => leases.ttl,
            Some(seconds) if seconds >= 1 => (seconds.saturating_mul(1_000_000)).min(leases.max_ttl),
            Some(_) => return Err(Refused::Range("desired_ttl_seconds")),
        };
        // Two beats within one microsecond must still differ, as the value is what tells one lease from another.
        let now = match self.work.latest_heartbeat_at {
            Some(at) if at >= now => at.plus(1),
            _ => now,
        };
        self.ttl = ttl;
        self.work.state = WorkState::Active;
        self.work.acknowledged_at.get_or_insert(now);
        self.work.started_at.get_or_insert(now);
        self.work.latest_heartbeat_at = Some(now);
        Ok(self.heartbeat(true))
    }

    fn heartbeat(&self, extended: bool) -> Heartbeat {
        let last = self.work.latest_heartbeat_at.map(|at| at.to_string()).unwrap_or_default();
        Heartbeat::new(last, extended, self.work.state, self.ttl / 1_000_000)
    }

    /// Asks the worker to stop, or ends the item at once.
    ///
    /// # Errors
    /// When the item is stopped already.
    pub fn stop(&mut self, force: bool, now: Timestamp) -> Result<(), Refused> {
        if self.work.state == WorkState::Stopped {
            return Err(Refused::State(WorkState::Stopped));
        }
        self.work.stop_requested_at.get_or_insert(now);
        // Nobody who could stop has the item yet.
        if force || self.work.state == WorkState::Queued {
            self.work.state = WorkState::Stopped;
            self.work.stopped_at = Some(now);
        } else {
            self.work.state = WorkState::Stopping;
        }
        Ok(())
    }

    /// Looks whether the item's time has run out: a worker that acknowledged but never beat, or whose lease lapsed, loses
    /// the item to the queue.
    pub fn lapse(&mut self, leases: &Leases, now: Timestamp) -> Lapse {
        let due = match self.work.state {
            WorkState::Starting => self.work.acknowledged_at.map(|at| at.plus(leases.start)),
            WorkState::Active => self.work.latest_heartbeat_at.map(|at| at.plus(self.ttl)),
            WorkState::Stopping => self.work.stop_requested_at.map(|at| at.plus(leases.stop)),
            _ => None,
        };
        if due.is_none_or(|at| at > now) {
            return Lapse::Held;
        }
        if self.work.state == WorkState::Stopping {
            self.work.state = WorkState::Stopped;
            self.work.stopped_at = Some(now);
            return Lapse::Stopped;
        }
        self.work.state = WorkState::Queued;
        self.work.acknowledged_at = None;
        self.work.started_at = None;
        self.work.latest_heartbeat_at = None;
        self.claimed_at = None;
        Lapse::Requeued
    }
}
