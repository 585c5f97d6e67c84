//! What clients send.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{ContentBlock, EventId, Extra, OutcomeId, ThreadId, Timestamp};

/// The body that sends events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SendEvents {
    /// The events, in order; all are taken or none is.
    pub events: Vec<ClientEvent>,
}

/// An event as a client sends it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum ClientEvent {
    /// A message to the agent.
    #[serde(rename = "user.message")]
    UserMessage(UserMessage),
    /// Ends the current turn.
    #[serde(rename = "user.interrupt")]
    UserInterrupt(UserInterrupt),
    /// Allows or denies a tool call.
    #[serde(rename = "user.tool_confirmation")]
    UserToolConfirmation(UserToolConfirmation),
    /// Answers a tool call of a self-hosted environment.
    #[serde(rename = "user.tool_result")]
    UserToolResult(UserToolResult),
    /// Answers a custom tool call.
    #[serde(rename = "user.custom_tool_result")]
    UserCustomToolResult(UserCustomToolResult),
    /// Asks for an outcome.
    #[serde(rename = "user.define_outcome")]
    UserDefineOutcome(UserDefineOutcome),
    /// A message of the operator.
    #[serde(rename = "system.message")]
    SystemMessage(SystemMessage),
}

/// A message to the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserMessage {
    /// Text, images and documents.
    pub content: Vec<ContentBlock>,
}

/// Ends the current turn.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserInterrupt {
    /// Only this thread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_thread_id: Option<ThreadId>,
}

/// A person's verdict on a tool call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolConfirmationResult {
    /// It may run.
    Allow,
    /// It must not.
    Deny,
}

/// Allows or denies a tool call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserToolConfirmation {
    /// The call's event.
    pub tool_use_id: EventId,
    /// The verdict.
    pub result: ToolConfirmationResult,
    /// Why it is denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deny_message: Option<String>,
}

/// Answers a tool call of a self-hosted environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserToolResult {
    /// The call's event.
    pub tool_use_id: EventId,
    /// The result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Vec<ContentBlock>>,
    /// Whether it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_error: Option<bool>,
}

/// Answers a custom tool call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserCustomToolResult {
    /// The call's event.
    pub custom_tool_use_id: EventId,
    /// The result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Vec<ContentBlock>>,
    /// Whether it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_error: Option<bool>,
}

/// Asks for an outcome.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserDefineOutcome {
    /// What is wanted.
    pub description: String,
    /// How it is judged.
    pub rubric: Value,
    /// How often it may be tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_iterations: Option<u32>,
}

/// A message of the operator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemMessage {
    /// Text blocks.
    pub content: Vec<ContentBlock>,
}

/// `user.message`, as returned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UserMessageEvent {
    /// The event's id.
    pub id: EventId,
    /// Text, images and documents.
    pub content: Vec<ContentBlock>,
    /// When it was processed; null while it waits.
    pub processed_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `user.interrupt`, as returned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UserInterruptEvent {
    /// The event's id.
    pub id: EventId,
    /// Only this thread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_thread_id: Option<ThreadId>,
    /// When it was processed; null while it waits.
    pub processed_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `user.tool_confirmation`, as returned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UserToolConfirmationEvent {
    /// The event's id.
    pub id: EventId,
    /// The call's event.
    pub tool_use_id: EventId,
    /// The verdict.
    pub result: ToolConfirmationResult,
    /// Why it is denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deny_message: Option<String>,
    /// The child thread that it was routed to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_thread_id: Option<ThreadId>,
    /// When it was processed; null while it waits.
    pub processed_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `user.tool_result`, as returned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UserToolResultEvent {
    /// The event's id.
    pub id: EventId,
    /// The call's event.
    pub tool_use_id: EventId,
    /// The result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Vec<ContentBlock>>,
    /// Whether it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_error: Option<bool>,
    /// The child thread that it was routed to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_thread_id: Option<ThreadId>,
    /// When it was processed.
    pub processed_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `user.custom_tool_result`, as returned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UserCustomToolResultEvent {
    /// The event's id.
    pub id: EventId,
    /// The call's event.
    pub custom_tool_use_id: EventId,
    /// The result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Vec<ContentBlock>>,
    /// Whether it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_error: Option<bool>,
    /// The child thread that it was routed to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_thread_id: Option<ThreadId>,
    /// When it was processed.
    pub processed_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `user.define_outcome`, as returned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UserDefineOutcomeEvent {
    /// The event's id.
    pub id: EventId,
    /// The outcome's id.
    pub outcome_id: OutcomeId,
    /// What is wanted.
    pub description: String,
    /// How it is judged.
    pub rubric: Value,
    /// How often it may be tried.
    pub max_iterations: Option<u32>,
    /// When it was processed.
    pub processed_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `system.message`, as returned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SystemMessageEvent {
    /// The event's id.
    pub id: EventId,
    /// Text blocks.
    pub content: Vec<ContentBlock>,
    /// When it was processed; null while it waits.
    pub processed_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}
