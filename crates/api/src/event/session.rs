//! What becomes of the session.

use serde::{Deserialize, Serialize};

use crate::{
    Budget, EventId, Extra, Metadata, Patch, SessionAgent, StopDetails, StopReason, ThreadId, Timestamp, Usage,
};

/// `session.status_idle`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionStatusIdleEvent {
    /// The event's id.
    pub id: EventId,
    /// Why.
    pub stop_reason: StopReason,
    /// More about it.
    pub stop_details: Option<StopDetails>,
    /// When it was processed.
    pub processed_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `session.error`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionErrorEvent {
    /// The event's id.
    pub id: EventId,
    /// What went wrong.
    pub error: SessionErrorBody,
    /// When it was processed.
    pub processed_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What went wrong in a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionErrorBody {
    /// `model_overloaded_error`, `mcp_connection_failed_error`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// For people.
    pub message: String,
    /// Whether the server keeps trying.
    pub retry_status: RetryStatus,
    /// What belongs to the type, and unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Whether the server keeps trying.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RetryStatus {
    /// `retrying`, `exhausted` or `terminal`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `session.updated`: only what changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionUpdatedEvent {
    /// The event's id.
    pub id: EventId,
    /// The new title.
    #[serde(default, skip_serializing_if = "Patch::is_absent")]
    pub title: Patch<String>,
    /// All pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Metadata>,
    /// The whole agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Box<SessionAgent>>,
    /// The new budget; null when it was removed.
    #[serde(default, skip_serializing_if = "Patch::is_absent")]
    pub budget: Patch<Budget>,
    /// When it was processed.
    pub processed_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `session.usage`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionUsageEvent {
    /// The event's id.
    pub id: EventId,
    /// What the session has used so far.
    pub usage: Usage,
    /// What it may cost.
    #[serde(default)]
    pub budget: Option<Budget>,
    /// When it was processed.
    pub processed_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `session.thread_created`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionThreadCreatedEvent {
    /// The event's id.
    pub id: EventId,
    /// The thread.
    pub session_thread_id: ThreadId,
    /// Its agent's name.
    pub agent_name: String,
    /// The workflow run that made it.
    pub workflow_run_id: Option<String>,
    /// When it was processed.
    pub processed_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A thread's status.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ThreadStatusEvent {
    /// The event's id.
    pub id: EventId,
    /// The thread.
    pub session_thread_id: ThreadId,
    /// Its agent's name.
    pub agent_name: String,
    /// When it was processed.
    pub processed_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `session.thread_status_idle`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ThreadStatusIdleEvent {
    /// The event's id.
    pub id: EventId,
    /// The thread.
    pub session_thread_id: ThreadId,
    /// Its agent's name.
    pub agent_name: String,
    /// Why.
    pub stop_reason: StopReason,
    /// More about it.
    pub stop_details: Option<StopDetails>,
    /// When it was processed.
    pub processed_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}
