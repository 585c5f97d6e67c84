//! A reply, turned into the events of a stream.

use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::schema::{ErrorName, Failure, Item, Reply};
use super::template::{fill, fill_value};
use super::view::View;
use crate::model::{BlockKind, Completion, ModelError, ModelEvent, ModelRequest, StopReason};

/// Characters for each token that is estimated.
const CHARACTERS_PER_TOKEN: usize = 4;

/// A stream's events, each with the wait before it.
pub(super) struct Play {
    pub(super) events: Vec<(Duration, Result<ModelEvent, ModelError>)>,
    /// Whether nothing comes after them, not even the end.
    pub(super) hangs: bool,
}

/// Plays a reply; its failure, when `fails`.
pub(super) fn play(reply: &Reply, view: &View<'_>, request: &ModelRequest, fails: bool) -> Play {
    let mut play = Play { events: Vec::new(), hangs: false };
    let failure = reply.failure.as_ref().filter(|_| fails);
    if let Some(failure) = failure.filter(|failure| !failure.error.breaks_off()) {
        play.events.push((reply.delay, Err(error(failure))));
        return play;
    }
    play.events.push((reply.delay, Ok(ModelEvent::Start)));
    let mut said = 0;
    let last = reply.items.len().saturating_sub(1);
    for (index, item) in reply.items.iter().enumerate() {
        let cut = failure.is_some() && index == last;
        match item {
            Item::Text(text) => {
                let text = fill(text, view);
                said += text.len();
                play.start(index, BlockKind::Text);
                play.deltas(reply, index, &text, cut);
                if !cut {
                    play.block(index, json!({"type": "text", "text": text}));
                }
            }
            Item::Thinking(text) => {
                let text = fill(text, view);
                said += text.len();
                play.start(index, BlockKind::Thinking);
                if !cut {
                    let signature = mark(request, view, index, &text);
                    play.block(index, json!({"type": "thinking", "thinking": text, "signature": signature}));
                }
            }
            Item::Tool { name, input } => {
                let input = fill_value(input, view);
                said += name.len() + weight(&input);
                play.start(index, BlockKind::ToolUse);
                if !cut {
                    let id = format!("toolu_{}", mark(request, view, index, name));
                    play.block(index, json!({"type": "tool_use", "id": id, "name": name, "input": input}));
                }
            }
        }
    }
    match failure {
        Some(failure) if failure.error == ErrorName::Hang => play.hangs = true,
        Some(failure) => play.push(Err(error(failure))),
        None => {
            let calls = reply.items.iter().any(|item| matches!(item, Item::Tool { .. }));
            let stop_reason =
                reply.stop.clone().unwrap_or(if calls { StopReason::ToolUse } else { StopReason::EndTurn });
            let stop_details = reply.stop_details.clone().or_else(|| {
                (stop_reason == StopReason::Refusal)
                    .then(|| json!({"type": "refusal", "category": null, "explanation": null}))
            });
            let usage = reply.usage.or_estimate(tokens(request_weight(request)), tokens(said));
            play.push(Ok(ModelEvent::Done(Completion { stop_reason, stop_details, usage })));
        }
    }
    play
}

impl Play {
    fn push(&mut self, event: Result<ModelEvent, ModelError>) {
        self.events.push((Duration::ZERO, event));
    }

    fn start(&mut self, index: usize, kind: BlockKind) {
        self.push(Ok(ModelEvent::BlockStart { index, kind }));
    }

    fn block(&mut self, index: usize, block: Value) {
        self.push(Ok(ModelEvent::Block { index, block }));
    }

    /// A text's deltas; of a text that is cut, those of its first half.
    fn deltas(&mut self, reply: &Reply, index: usize, text: &str, cut: bool) {
        let characters: Vec<char> = text.chars().collect();
        let shown = if cut { characters.len().div_ceil(2) } else { characters.len() };
        for piece in characters[..shown].chunks(reply.chunk.unwrap_or(usize::MAX)) {
            let text = piece.iter().collect();
            self.events.push((reply.chunk_delay, Ok(ModelEvent::TextDelta { index, text })));
        }
    }
}

fn error(failure: &Failure) -> ModelError {
    let message =
        failure.message.clone().unwrap_or_else(|| format!("the script plays the failure {:?}", failure.error));
    let mut error = ModelError::new(failure.error.kind(), message);
    error.retry_after = failure.retry_after;
    error
}

/// The same for the same block of the same request, different for any other.
fn mark(request: &ModelRequest, view: &View<'_>, index: usize, what: &str) -> String {
    let mut hash = Sha256::new();
    for part in [request.conversation.as_bytes(), what.as_bytes()] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    for number in [view.replies, view.blocks, index] {
        hash.update((number as u64).to_be_bytes());
    }
    hash.finalize()[..12].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn tokens(characters: usize) -> u64 {
    u64::try_from(characters / CHARACTERS_PER_TOKEN).unwrap_or(u64::MAX).max(1)
}

fn request_weight(request: &ModelRequest) -> usize {
    let tools = request.tools.iter();
    let tools: usize = tools.map(|tool| tool.name.len() + tool.description.len() + weight(&tool.input_schema)).sum();
    let blocks: usize = request.messages.iter().flat_map(|message| &message.content).map(weight).sum();
    request.system.as_ref().map_or(0, String::len) + tools + blocks
}

/// Roughly a value's length in characters.
fn weight(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(weight).sum(),
        Value::Object(fields) => fields.iter().map(|(name, value)| name.len() + weight(value)).sum(),
        _ => 4,
    }
}
