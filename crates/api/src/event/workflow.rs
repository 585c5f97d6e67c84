//! Workflow runs.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{EventId, Extra, Timestamp, WorkflowRunId};

/// `workflow_run.created`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkflowRunCreatedEvent {
    /// The event's id.
    pub id: EventId,
    /// The run.
    pub workflow_run_id: WorkflowRunId,
    /// Its name.
    pub name: String,
    /// Its phases.
    pub phases: Vec<Value>,
    /// When it was processed.
    pub processed_at: Option<Timestamp>,
    /// `description` and unknown fields, as they came.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Any other event of a workflow run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkflowRunEvent {
    /// The event's id.
    pub id: EventId,
    /// The run.
    pub workflow_run_id: WorkflowRunId,
    /// When it was processed.
    pub processed_at: Option<Timestamp>,
    /// What belongs to the type, and unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}
