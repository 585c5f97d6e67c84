//! Models behind one trait.
//!
//! [`Anthropic`] speaks the Messages API to any base URL; [`Scripted`] plays a written script, for demos, tests and places
//! without a network. Both are stateless towards the conversation: what they are asked holds all of it.

mod anthropic;
mod assembly;
mod registry;
mod retry;
mod scripted;
mod secret;
mod sse;

pub use anthropic::{Anthropic, AnthropicError, AnthropicOptions, KeyHeader};
pub use palisade_api::Secret;
pub use registry::Models;
pub use retry::RetryPolicy;
pub use scripted::{Script, ScriptError, Scripted};
pub use secret::{KeyError, KeySource};

use std::time::Duration;

use futures::stream::BoxStream;
use serde_json::Value;

/// What is asked of a model.
#[derive(Debug, Clone)]
pub struct ModelRequest {
    /// The model's id.
    pub model: String,
    /// The system prompt.
    pub system: Option<String>,
    /// The conversation.
    pub messages: Vec<Message>,
    /// The tools that it may call.
    pub tools: Vec<ToolDefinition>,
    /// The longest reply, in tokens.
    pub max_tokens: u32,
    /// How hard it tries.
    pub effort: Option<String>,
    /// `fast`, when it is not the standard speed.
    pub speed: Option<String>,
    /// Where inference must run.
    pub inference_geo: Option<String>,
    /// The session, for the log.
    pub conversation: String,
}

/// A message of the conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Whose.
    pub role: Role,
    /// Blocks of the Messages API.
    pub content: Vec<Value>,
}

/// Whose message it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The user's, or results of tools.
    User,
    /// The model's.
    Assistant,
}

/// A tool that the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolDefinition {
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: String,
    /// JSON Schema of its input.
    pub input_schema: Value,
}

/// What a model's stream says.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelEvent {
    /// The reply has begun.
    Start,
    /// A block has begun.
    BlockStart {
        /// Its place in the reply.
        index: usize,
        /// Its kind.
        kind: BlockKind,
    },
    /// More text.
    TextDelta {
        /// The block's place.
        index: usize,
        /// The fragment.
        text: String,
    },
    /// A block is finished.
    Block {
        /// Its place.
        index: usize,
        /// The block, to be replayed unchanged.
        block: Value,
    },
    /// The reply is complete.
    Done(Completion),
}

/// The kind of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// Text.
    Text,
    /// Thinking.
    Thinking,
    /// A tool call.
    ToolUse,
    /// Anything else.
    Other,
}

/// How a reply ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// Why it ended.
    pub stop_reason: StopReason,
    /// More about it.
    pub stop_details: Option<Value>,
    /// What it used.
    pub usage: TokenUsage,
}

/// Why a reply ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the wire's own")]
pub enum StopReason {
    EndTurn,
    ToolUse,
    PauseTurn,
    MaxTokens,
    StopSequence,
    Refusal,
    ContextWindowExceeded,
    Other(String),
}

impl StopReason {
    /// The stop reason with this name in the Messages API.
    pub fn from_wire(name: &str) -> StopReason {
        match name {
            "end_turn" => StopReason::EndTurn,
            "tool_use" => StopReason::ToolUse,
            "pause_turn" => StopReason::PauseTurn,
            "max_tokens" => StopReason::MaxTokens,
            "stop_sequence" => StopReason::StopSequence,
            "refusal" => StopReason::Refusal,
            "model_context_window_exceeded" => StopReason::ContextWindowExceeded,
            other => StopReason::Other(other.to_owned()),
        }
    }
}

/// Tokens of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the wire's own")]
pub struct TokenUsage {
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cache_read_input_tokens: u64,
    pub cache_creation_input_tokens: u64,
    pub ephemeral_5m: u64,
    pub ephemeral_1h: u64,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ModelError {
    /// What happened.
    pub kind: ModelErrorKind,
    /// For people; never holds a credential.
    pub message: String,
    /// The provider's own wish.
    pub retry_after: Option<Duration>,
    /// Whether the same request may succeed later.
    pub retryable: bool,
}

impl ModelError {
    /// A failure of this kind; whether it can pass by itself follows from the kind.
    pub(crate) fn new(kind: ModelErrorKind, message: impl Into<String>) -> ModelError {
        ModelError { kind, message: message.into(), retry_after: None, retryable: kind.passes() }
    }
}

/// What happened to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelErrorKind {
    /// The provider has no capacity (529).
    Overloaded,
    /// The account sends too much (429).
    RateLimited,
    /// The account cannot pay, or has reached its spend limit.
    Billing,
    /// The provider could not be reached or failed.
    RequestFailed,
    /// The provider finds the request wrong, or does not know the model.
    InvalidRequest,
    /// The key is wrong or may not do this.
    Authentication,
    /// The stream was cut before the reply was complete.
    Disconnected,
    /// What came is not what the Messages API says, a call's input included.
    Malformed,
    /// Nothing came for too long.
    Idle,
    /// The conversation does not fit into the model's window.
    ContextTooLong,
}

impl ModelErrorKind {
    /// Whether the same request may succeed later. A malformed reply counts: the model may well do better next time.
    fn passes(self) -> bool {
        use ModelErrorKind::*;
        matches!(self, Overloaded | RateLimited | RequestFailed | Disconnected | Malformed | Idle)
    }
}

/// A model provider.
pub trait ModelClient: Send + Sync {
    /// Asks for a reply. Dropping the stream gives the request up.
    fn stream(&self, request: ModelRequest) -> BoxStream<'static, Result<ModelEvent, ModelError>>;

    /// How many tokens the model can hold.
    fn context_window(&self, model: &str) -> u32;
}
