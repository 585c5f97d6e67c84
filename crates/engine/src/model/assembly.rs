//! A reply, put together from the events of its stream.

use std::collections::BTreeMap;

use palisade_api::Timestamp;
use reqwest::header::HeaderMap;
use serde_json::{Map, Value};

use super::retry::refusal;
use super::sse::SseMessage;
use super::{BlockKind, Completion, ModelError, ModelErrorKind, ModelEvent, StopReason, TokenUsage};

/// More blocks than any reply has; a provider that numbers them higher is broken.
const MOST_BLOCKS: u64 = 4096;

/// A reply under way.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    open: BTreeMap<usize, Block>,
    /// The last finished call, kept back: only the stop reason tells a broken input from one that was cut off.
    held: Option<Held>,
    stop_reason: Option<StopReason>,
    stop_details: Option<Value>,
    usage: TokenUsage,
}

#[derive(Debug)]
struct Block {
    value: Map<String, Value>,
    /// The input's JSON as far as it has come.
    input: String,
}

#[derive(Debug)]
struct Held {
    index: usize,
    value: Map<String, Value>,
    /// Why its input is not an object, if so.
    broken: Option<String>,
}

fn malformed(what: impl std::fmt::Display) -> ModelError {
    ModelError::new(ModelErrorKind::Malformed, format!("the model provider sent a reply that cannot be read: {what}"))
}

impl Assembly {
    /// Takes the next message of the stream; what it amounts to is added to `events`. Unknown ones amount to nothing.
    pub(super) fn apply(
        &mut self,
        message: &SseMessage,
        now: Timestamp,
        events: &mut Vec<ModelEvent>,
    ) -> Result<(), ModelError> {
        let named = message.event.as_str();
        let known = [
            "",
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
            "error",
        ];
        if !known.contains(&named) {
            return Ok(());
        }
        let mut data: Value = serde_json::from_slice(&message.data)
            .map_err(|why| malformed(format_args!("the data of a {named:?} event is not JSON: {why}")))?;
        let kind =
            if named.is_empty() { data["type"].as_str().unwrap_or_default().to_owned() } else { named.to_owned() };
        match kind.as_str() {
            "message_start" => {
                self.count(&data["message"]["usage"]);
                events.push(ModelEvent::Start);
            }
            "content_block_start" => {
                self.release(events)?;
                let index = index(&data)?;
                let Value::Object(value) = data["content_block"].take() else {
                    return Err(malformed("a block starts without a block"));
                };
                let kind = match value.get("type").and_then(Value::as_str) {
                    Some("text") => BlockKind::Text,
                    Some("thinking" | "redacted_thinking") => BlockKind::Thinking,
                    Some("tool_use") => BlockKind::ToolUse,
                    _ => BlockKind::Other,
                };
                events.push(ModelEvent::BlockStart { index, kind });
                // Some providers start a block with its first words.
                if kind == BlockKind::Text
                    && let Some(text) = value.get("text").and_then(Value::as_str).filter(|text| !text.is_empty())
                {
                    events.push(ModelEvent::TextDelta { index, text: text.to_owned() });
                }
                if self.open.insert(index, Block { value, input: String::new() }).is_some() {
                    return Err(malformed(format_args!("block {index} starts twice")));
                }
            }
            "content_block_delta" => {
                let index = index(&data)?;
                let block = self.open.get_mut(&index);
                let block = block.ok_or_else(|| malformed(format_args!("there is no open block {index}")))?;
                if let Some(text) = block.grow(data["delta"].take()) {
                    events.push(ModelEvent::TextDelta { index, text });
                }
            }
            "content_block_stop" => {
                let index = index(&data)?;
                let block = self.open.remove(&index);
                let block = block.ok_or_else(|| malformed(format_args!("there is no open block {index}")))?;
                self.release(events)?;
                self.finish(index, block, events);
            }
            "message_delta" => {
                self.count(&data["usage"]);
                if let Some(reason) = data["delta"]["stop_reason"].as_str() {
                    self.stop_reason = Some(StopReason::from_wire(reason));
                }
                let details = data["delta"]["stop_details"].take();
                if !details.is_null() {
                    self.stop_details = Some(details);
                }
            }
            "message_stop" => {
                let stop_reason = self.stop_reason.take().ok_or_else(|| malformed("it ends without a stop reason"))?;
                self.settle(&stop_reason, events)?;
                if let Some(index) = self.open.keys().next() {
                    return Err(malformed(format_args!("it ends inside block {index}")));
                }
                let stop_details = self.stop_details.take();
                events.push(ModelEvent::Done(Completion { stop_reason, stop_details, usage: self.usage }));
            }
            "error" => return Err(refusal(None, &HeaderMap::new(), &message.data, now)),
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self, index: usize, block: Block, events: &mut Vec<ModelEvent>) {
        let Block { mut value, input } = block;
        if !input.trim().is_empty() {
            match serde_json::from_str::<Map<String, Value>>(&input) {
                Ok(input) => {
                    value.insert("input".to_owned(), Value::Object(input));
                }
                Err(why) => {
                    self.held = Some(Held { index, value, broken: Some(why.to_string()) });
                    return;
                }
            }
        }
        if value.get("type").and_then(Value::as_str) == Some("tool_use") {
            let input = value.entry("input").or_insert_with(|| Value::Object(Map::new()));
            let broken = (!input.is_object()).then(|| "it is not an object".to_owned());
            self.held = Some(Held { index, value, broken });
            return;
        }
        events.push(ModelEvent::Block { index, block: Value::Object(value) });
    }

    /// Lets the held call go, now that it is not the last block any more: nothing can have cut it off.
    fn release(&mut self, events: &mut Vec<ModelEvent>) -> Result<(), ModelError> {
        let Some(Held { index, value, broken }) = self.held.take() else { return Ok(()) };
        if let Some(why) = broken {
            let name = value.get("name").and_then(Value::as_str).unwrap_or_default();
            return Err(ModelError::new(
                ModelErrorKind::Malformed,
                format!("the model called the tool {name:?} with an input that is not a JSON object: {why}"),
            ));
        }
        events.push(ModelEvent::Block { index, block: Value::Object(value) });
        Ok(())
    }

    /// Decides about a call at the reply's end.
    ///
    /// A call that was cut off must never run. Under `max_tokens` it is delivered with an empty input, so that the engine
    /// sees that there was one and asks anew; otherwise it is dropped.
    fn settle(&mut self, stop: &StopReason, events: &mut Vec<ModelEvent>) -> Result<(), ModelError> {
        match stop {
            StopReason::MaxTokens => {
                if let Some(held) = &mut self.held
                    && held.broken.take().is_some()
                {
                    held.value.insert("input".to_owned(), Value::Object(Map::new()));
                }
                self.release(events)
            }
            StopReason::ContextWindowExceeded | StopReason::Refusal => {
                self.held = None;
                Ok(())
            }
            _ => self.release(events),
        }
    }

    /// Later counts replace earlier ones; what is absent or null stays.
    fn count(&mut self, usage: &Value) {
        let set = |field: &mut u64, value: &Value| *field = value.as_u64().unwrap_or(*field);
        set(&mut self.usage.input_tokens, &usage["input_tokens"]);
        set(&mut self.usage.output_tokens, &usage["output_tokens"]);
        set(&mut self.usage.cache_read_input_tokens, &usage["cache_read_input_tokens"]);
        set(&mut self.usage.cache_creation_input_tokens, &usage["cache_creation_input_tokens"]);
        set(&mut self.usage.ephemeral_5m, &usage["cache_creation"]["ephemeral_5m_input_tokens"]);
        set(&mut self.usage.ephemeral_1h, &usage["cache_creation"]["ephemeral_1h_input_tokens"]);
    }
}

impl Block {
    /// Adds a delta; returns new text of a text block. Unknown deltas add nothing.
    fn grow(&mut self, mut delta: Value) -> Option<String> {
        let kind = delta["type"].as_str().unwrap_or_default().to_owned();
        let mut fragment = |field: &str| match delta[field].take() {
            Value::String(text) => text,
            _ => String::new(),
        };
        match kind.as_str() {
            "text_delta" => {
                let text = fragment("text");
                self.append("text", &text);
                (!text.is_empty()).then_some(text)
            }
            "thinking_delta" => {
                self.append("thinking", &fragment("thinking"));
                None
            }
            "signature_delta" => {
                self.append("signature", &fragment("signature"));
                None
            }
            "input_json_delta" => {
                self.input.push_str(&fragment("partial_json"));
                None
            }
            "citations_delta" => {
                let citation = delta["citation"].take();
                match self.value.get_mut("citations") {
                    Some(Value::Array(citations)) => citations.push(citation),
                    _ => {
                        self.value.insert("citations".to_owned(), Value::Array(vec![citation]));
                    }
                }
                None
            }
            _ => None,
        }
    }

    fn append(&mut self, field: &str, fragment: &str) {
        match self.value.get_mut(field) {
            Some(Value::String(text)) => text.push_str(fragment),
            _ => {
                self.value.insert(field.to_owned(), Value::String(fragment.to_owned()));
            }
        }
    }
}

fn index(data: &Value) -> Result<usize, ModelError> {
    let index = data["index"].as_u64().filter(|&index| index < MOST_BLOCKS);
    let index = index.and_then(|index| usize::try_from(index).ok());
    index.ok_or_else(|| malformed("a block has no usable index"))
}
