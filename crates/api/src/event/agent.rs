//! What the agent does.

use serde::{Deserialize, Serialize};

use crate::{ContentBlock, EventId, Extra, ThreadId, Timestamp};

/// Whether a call may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvaluatedPermission {
    /// It may.
    Allow,
    /// A person must say.
    Ask,
    /// It must not.
    Deny,
}

/// How [`EvaluatedPermission`] came about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Evaluation {
    /// The policy allows always.
    AlwaysAllow {},
    /// The policy asks always.
    AlwaysAsk {},
    /// The server judged.
    Auto {
        /// Its verdict.
        evaluated_permission: AutoVerdict,
    },
    /// Anything else.
    #[serde(untagged)]
    Unknown(Extra),
}

/// A verdict of the server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AutoVerdict {
    /// The verdict.
    #[serde(rename = "type")]
    pub kind: EvaluatedPermission,
    /// `indeterminate` or `high_risk`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason_code: Option<String>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `agent.message`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentMessageEvent {
    /// The event's id.
    pub id: EventId,
    /// Its text.
    pub content: Vec<ContentBlock>,
    /// When it was processed.
    pub processed_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `agent.thinking`: a marker of progress, without the text.
pub type AgentThinkingEvent = super::PlainEvent;

/// `agent.tool_use`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentToolUseEvent {
    /// The event's id, by which the call is answered.
    pub id: EventId,
    /// The tool.
    pub name: String,
    /// Its input.
    pub input: Extra,
    /// Whether it may run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluated_permission: Option<EvaluatedPermission>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<Evaluation>,
    /// The child thread that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_thread_id: Option<ThreadId>,
    /// When it was processed.
    pub processed_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `agent.tool_result`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentToolResultEvent {
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
    /// When it was processed.
    pub processed_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `agent.mcp_tool_use`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentMcpToolUseEvent {
    /// The event's id, by which the call is answered.
    pub id: EventId,
    /// The MCP server's name.
    pub mcp_server_name: String,
    /// The tool.
    pub name: String,
    /// Its input.
    pub input: Extra,
    /// Whether it may run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluated_permission: Option<EvaluatedPermission>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<Evaluation>,
    /// The child thread that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_thread_id: Option<ThreadId>,
    /// When it was processed.
    pub processed_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `agent.mcp_tool_result`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentMcpToolResultEvent {
    /// The event's id.
    pub id: EventId,
    /// The call's event.
    pub mcp_tool_use_id: EventId,
    /// The result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Vec<ContentBlock>>,
    /// Whether it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_error: Option<bool>,
    /// When it was processed.
    pub processed_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `agent.custom_tool_use`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentCustomToolUseEvent {
    /// The event's id, by which the call is answered.
    pub id: EventId,
    /// The tool.
    pub name: String,
    /// Its input.
    pub input: Extra,
    /// The child thread that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_thread_id: Option<ThreadId>,
    /// When it was processed.
    pub processed_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `agent.thread_message_sent`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentThreadMessageSentEvent {
    /// The event's id.
    pub id: EventId,
    /// The thread that it went to.
    pub to_session_thread_id: ThreadId,
    /// The message.
    pub content: Vec<ContentBlock>,
    /// When it was processed.
    pub processed_at: Option<Timestamp>,
    /// `to_agent_name` and unknown fields, as they came.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `agent.thread_message_received`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentThreadMessageReceivedEvent {
    /// The event's id.
    pub id: EventId,
    /// The thread that it came from.
    pub from_session_thread_id: ThreadId,
    /// The message.
    pub content: Vec<ContentBlock>,
    /// When it was processed.
    pub processed_at: Option<Timestamp>,
    /// `from_agent_name` and unknown fields, as they came.
    #[serde(flatten)]
    pub extra: Extra,
}
