//! Work items: a session that asks for a pair of hands.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{EnvironmentId, Extra, Metadata, MetadataPatch, SessionId, Timestamp, WorkId};

/// The state of a work item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkState {
    /// Waiting for a worker, or handed out and not yet acknowledged.
    Queued,
    /// Acknowledged; no heartbeat yet.
    Starting,
    /// A worker holds its lease.
    Active,
    /// The worker has been asked to stop.
    Stopping,
    /// Over.
    Stopped,
    /// A state that this version does not know.
    #[serde(other)]
    Unknown,
}

impl WorkState {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            WorkState::Queued => "queued",
            WorkState::Starting => "starting",
            WorkState::Active => "active",
            WorkState::Stopping => "stopping",
            WorkState::Stopped => "stopped",
            WorkState::Unknown => "unknown",
        }
    }
}

/// A work item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Its id.
    pub id: WorkId,
    /// Always `work`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its environment.
    pub environment_id: EnvironmentId,
    /// Its state.
    pub state: WorkState,
    /// What is to be served.
    pub data: WorkData,
    /// Base64url of a [`WorkSecret`]; only in the answer to a poll.
    pub secret: Option<String>,
    /// Free pairs.
    #[serde(default)]
    pub metadata: Metadata,
    /// When it was queued first.
    pub created_at: Timestamp,
    /// When a worker took it off the queue.
    pub acknowledged_at: Option<Timestamp>,
    /// When the first heartbeat came.
    pub started_at: Option<Timestamp>,
    /// When the last heartbeat came.
    pub latest_heartbeat_at: Option<Timestamp>,
    /// When it was asked to stop.
    pub stop_requested_at: Option<Timestamp>,
    /// When it stopped.
    pub stopped_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Work {
    /// A queued item.
    pub fn new(
        id: WorkId,
        environment_id: EnvironmentId,
        data: WorkData,
        metadata: Metadata,
        created_at: Timestamp,
    ) -> Work {
        Work {
            id,
            kind: "work".to_owned(),
            environment_id,
            state: WorkState::Queued,
            data,
            secret: None,
            metadata,
            created_at,
            acknowledged_at: None,
            started_at: None,
            latest_heartbeat_at: None,
            stop_requested_at: None,
            stopped_at: None,
            extra: Extra::new(),
        }
    }
}

/// What a work item is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkData {
    /// `session`, `healthcheck`, or something that this version does not know.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The session's id.
    pub id: String,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

impl WorkData {
    /// A session to serve.
    pub fn session(id: SessionId) -> WorkData {
        WorkData { kind: "session".to_owned(), id: id.as_str().to_owned(), extra: Extra::new() }
    }

    /// The id of what is to be served.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The session to serve, if it is one.
    pub fn session_id(&self) -> Option<SessionId> {
        (self.kind == "session").then(|| SessionId::from(self.id.as_str()))
    }
}

/// The answer to a heartbeat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Always `work_heartbeat`.
    #[serde(rename = "type")]
    pub kind: String,
    /// To be sent back byte for byte with the next heartbeat; empty when there was none.
    pub last_heartbeat: String,
    /// Whether the lease goes on.
    pub lease_extended: bool,
    /// The item's state.
    pub state: WorkState,
    /// How long the lease lasts, in seconds.
    pub ttl_seconds: i64,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Heartbeat {
    /// An answer.
    pub fn new(last_heartbeat: String, lease_extended: bool, state: WorkState, ttl_seconds: i64) -> Heartbeat {
        Heartbeat {
            kind: "work_heartbeat".to_owned(),
            last_heartbeat,
            lease_extended,
            state,
            ttl_seconds,
            extra: Extra::new(),
        }
    }
}

/// How full a queue is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QueueStats {
    /// Always `work_queue_stats`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Items that wait for a worker.
    pub depth: u64,
    /// Items handed out and not acknowledged.
    pub pending: u64,
    /// When the oldest waiting item was queued.
    pub oldest_queued_at: Option<Timestamp>,
    /// Distinct workers that polled in the last 30 s; null when none gave an id.
    pub workers_polling: Option<u64>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Asks an item to stop.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkStop {
    /// At once, without waiting for the worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force: Option<bool>,
}

/// Changes an item's metadata.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkUpdate {
    /// Keys to set and to remove.
    pub metadata: MetadataPatch,
}

/// What a work item's `secret` holds.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkSecret {
    /// The credential for this item's session and nothing else.
    pub sessions_token: String,
    /// Where the session is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_base_url: Option<String>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

impl fmt::Debug for WorkSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkSecret(redacted)")
    }
}
