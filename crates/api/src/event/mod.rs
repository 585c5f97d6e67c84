//! Events of a session: 42 types that are logged, and two that only streams carry.

mod agent;
mod client;
mod session;
mod span;
mod stream;
mod workflow;

pub use agent::*;
pub use client::*;
pub use session::*;
pub use span::*;
pub use stream::*;
pub use workflow::*;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::{EventId, Extra, Timestamp};

macro_rules! events {
    ($($name:literal $variant:ident($body:ident),)*) => {
        /// An event of a session. A type that this version does not know, or a known one whose fields are not as
        /// expected, is kept whole.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[serde(tag = "type")]
        pub enum Event {
            $(
                #[doc = concat!("`", $name, "`")]
                #[serde(rename = $name)]
                $variant($body),
            )*
            /// Anything else.
            #[serde(untagged)]
            Unknown(UnknownEvent),
        }

        impl Event {
            /// The event's id.
            pub fn id(&self) -> &EventId {
                match self {
                    $(Event::$variant(event) => &event.id,)*
                    Event::Unknown(event) => &event.id,
                }
            }

            /// The event's `type`.
            pub fn type_name(&self) -> &str {
                match self {
                    $(Event::$variant(_) => $name,)*
                    Event::Unknown(event) => event.rest.get("type").and_then(Value::as_str).unwrap_or(""),
                }
            }

            /// When the event was processed; none for a client event that still waits.
            pub fn processed_at(&self) -> Option<Timestamp> {
                match self {
                    $(Event::$variant(event) => event.processed_at,)*
                    Event::Unknown(event) => {
                        event.rest.get("processed_at")?.as_str()?.parse().ok()
                    }
                }
            }

            /// Says when the event was processed.
            pub fn set_processed_at(&mut self, at: Timestamp) {
                match self {
                    $(Event::$variant(event) => event.processed_at = Some(at),)*
                    Event::Unknown(event) => {
                        event.rest.insert("processed_at".to_owned(), Value::from(at.to_string()));
                    }
                }
            }

            fn typed(name: &str, body: Value) -> Option<Event> {
                match name {
                    $($name => serde_json::from_value(body).ok().map(Event::$variant),)*
                    _ => None,
                }
            }
        }

        /// Every type that a list of events may be filtered by, and `session.deleted`, which may not.
        pub const EVENT_TYPES: &[&str] = &[$($name,)*];
    };
}

events! {
    "user.message" UserMessage(UserMessageEvent),
    "user.interrupt" UserInterrupt(UserInterruptEvent),
    "user.tool_confirmation" UserToolConfirmation(UserToolConfirmationEvent),
    "user.tool_result" UserToolResult(UserToolResultEvent),
    "user.custom_tool_result" UserCustomToolResult(UserCustomToolResultEvent),
    "user.define_outcome" UserDefineOutcome(UserDefineOutcomeEvent),
    "system.message" SystemMessage(SystemMessageEvent),
    "agent.message" AgentMessage(AgentMessageEvent),
    "agent.thinking" AgentThinking(AgentThinkingEvent),
    "agent.tool_use" AgentToolUse(AgentToolUseEvent),
    "agent.tool_result" AgentToolResult(AgentToolResultEvent),
    "agent.mcp_tool_use" AgentMcpToolUse(AgentMcpToolUseEvent),
    "agent.mcp_tool_result" AgentMcpToolResult(AgentMcpToolResultEvent),
    "agent.custom_tool_use" AgentCustomToolUse(AgentCustomToolUseEvent),
    "agent.thread_message_sent" AgentThreadMessageSent(AgentThreadMessageSentEvent),
    "agent.thread_message_received" AgentThreadMessageReceived(AgentThreadMessageReceivedEvent),
    "agent.thread_context_compacted" AgentThreadContextCompacted(PlainEvent),
    "session.status_running" SessionStatusRunning(PlainEvent),
    "session.status_idle" SessionStatusIdle(SessionStatusIdleEvent),
    "session.status_rescheduled" SessionStatusRescheduled(PlainEvent),
    "session.status_terminated" SessionStatusTerminated(PlainEvent),
    "session.error" SessionError(SessionErrorEvent),
    "session.updated" SessionUpdated(SessionUpdatedEvent),
    "session.usage" SessionUsage(SessionUsageEvent),
    "session.deleted" SessionDeleted(PlainEvent),
    "session.thread_created" SessionThreadCreated(SessionThreadCreatedEvent),
    "session.thread_status_running" SessionThreadStatusRunning(ThreadStatusEvent),
    "session.thread_status_idle" SessionThreadStatusIdle(ThreadStatusIdleEvent),
    "session.thread_status_rescheduled" SessionThreadStatusRescheduled(ThreadStatusEvent),
    "session.thread_status_terminated" SessionThreadStatusTerminated(ThreadStatusEvent),
    "span.model_request_start" SpanModelRequestStart(PlainEvent),
    "span.model_request_end" SpanModelRequestEnd(SpanModelRequestEndEvent),
    "span.outcome_evaluation_start" SpanOutcomeEvaluationStart(SpanOutcomeEvaluationEvent),
    "span.outcome_evaluation_ongoing" SpanOutcomeEvaluationOngoing(SpanOutcomeEvaluationEvent),
    "span.outcome_evaluation_end" SpanOutcomeEvaluationEnd(SpanOutcomeEvaluationEndEvent),
    "workflow_run.created" WorkflowRunCreated(WorkflowRunCreatedEvent),
    "workflow_run.status_running" WorkflowRunStatusRunning(WorkflowRunEvent),
    "workflow_run.status_idle" WorkflowRunStatusIdle(WorkflowRunEvent),
    "workflow_run.status_ended" WorkflowRunStatusEnded(WorkflowRunEvent),
    "workflow_run.phase_started" WorkflowRunPhaseStarted(WorkflowRunEvent),
    "workflow_run.phase_ended" WorkflowRunPhaseEnded(WorkflowRunEvent),
    "workflow_run.error" WorkflowRunError(WorkflowRunEvent),
}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Event, D::Error> {
        let map = Extra::deserialize(deserializer)?;
        let name = map.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut body = map.clone();
        body.remove("type");
        if let Some(event) = Event::typed(&name, Value::Object(body)) {
            return Ok(event);
        }
        let mut rest = map;
        let id = match rest.remove("id") {
            Some(Value::String(id)) => EventId::from(id),
            _ => return Err(serde::de::Error::missing_field("id")),
        };
        Ok(Event::Unknown(UnknownEvent { id, rest }))
    }
}

/// An event of a type that this version does not know.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UnknownEvent {
    /// The event's id.
    pub id: EventId,
    /// Everything else, the type included.
    #[serde(flatten)]
    pub rest: Extra,
}

/// An event that says nothing beyond its type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlainEvent {
    /// The event's id.
    pub id: EventId,
    /// When it was processed.
    pub processed_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

impl PlainEvent {
    /// An event processed at this time.
    pub fn new(id: EventId, at: Timestamp) -> PlainEvent {
        PlainEvent { id, processed_at: Some(at), extra: Extra::new() }
    }
}
