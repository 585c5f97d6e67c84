//! The model has answered.

use palisade_api::{EventId, StopDetails, StopReason};
use serde_json::Value;

use crate::session::step::TokenUse;
use crate::session::{Env, Failure, FailureKind, Outcome, Phase, Purpose, State, Step, lifecycle};

/// How the model's reply ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Ended {
    /// The agent is done, or a stop sequence was met.
    EndTurn,
    /// Tools are asked for.
    ToolUse,
    /// The provider paused a long reply: ask again with what is there.
    Pause,
    /// The reply was cut off at its length limit.
    MaxTokens,
    /// The model refused.
    Refusal(Option<StopDetails>),
    /// The conversation no longer fits.
    WindowExceeded,
}

/// A finished part of a reply. The id is the one under which its preview was streamed.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// The id of the event it becomes.
    pub id: EventId,
    /// Its content.
    pub content: PartContent,
}

/// What a part holds.
#[derive(Debug, Clone, PartialEq)]
pub enum PartContent {
    /// Text for the user; the block is kept for replay.
    Text {
        /// The text.
        text: String,
    },
    /// A thinking block, to be replayed unchanged.
    Thinking(Value),
    /// A tool call.
    ToolUse {
        /// The model's own id of the call.
        id: String,
        /// The tool.
        name: String,
        /// Its input.
        input: serde_json::Map<String, Value>,
    },
}

/// A whole reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// Its parts in order.
    pub parts: Vec<Part>,
    /// How it ended.
    pub ended: Ended,
    /// What it cost.
    pub usage: TokenUse,
}

/// Takes the model's reply to the request `request`. A reply to any other request is late and changes nothing.
pub fn complete(state: &mut State, request: &EventId, reply: Reply, env: &mut Env<'_>) -> Outcome {
    let purpose = match &state.phase {
        Phase::Sampling { request: open, purpose } if open == request => *purpose,
        _ => return Outcome::default(),
    };
    // A call whose input was cut off must never run.
    let cut = reply.ended == Ended::MaxTokens
        && reply.parts.iter().any(|part| matches!(part.content, PartContent::ToolUse { .. }));
    if cut || (reply.ended == Ended::WindowExceeded && purpose == Purpose::Compaction) {
        let kind = if cut { FailureKind::Request } else { FailureKind::ContextTooLong };
        let message = "the model's reply was cut off before it was complete".to_owned();
        let failure = Failure { kind, message, retry: true, after: None, usage: Some(reply.usage) };
        return lifecycle::fail(state, request, failure, env);
    }
    let mut step = Step::new(state, env);
    step.state.failures = 0;
    step.state.window_used = reply.usage.input + reply.usage.cache_read + reply.usage.cache_write + reply.usage.output;
    if purpose == Purpose::Compaction {
        let summary: Vec<String> = reply
            .parts
            .into_iter()
            .filter_map(|part| match part.content {
                PartContent::Text { text } => Some(text),
                _ => None,
            })
            .collect();
        step.close_request(request.clone(), false, Some(reply.usage));
        step.compacted(summary.join("\n\n"));
        step.state.window_used = 0;
        step.next_request(Purpose::Reply);
        return step.finish();
    }
    step.state.calls.clear();
    for part in reply.parts {
        match part.content {
            PartContent::Text { text } => step.message(part.id, text),
            PartContent::Thinking(block) => step.thinking(part.id, block),
            // What follows is a summary: a call would never be answered.
            PartContent::ToolUse { .. } if reply.ended == Ended::WindowExceeded => {}
            PartContent::ToolUse { id, name, input } => step.tool_use(part.id, id, name, input),
        }
    }
    step.close_request(request.clone(), false, Some(reply.usage));
    step.refuse_denied();
    match reply.ended {
        Ended::Refusal(details) => step.end_turn(StopReason::Refusal, details),
        Ended::Pause => step.next_request(Purpose::Reply),
        Ended::WindowExceeded => step.next_request(Purpose::Compaction),
        _ if !step.state.calls.is_empty() => step.settle(),
        _ => step.turn_done(),
    }
    step.finish()
}
