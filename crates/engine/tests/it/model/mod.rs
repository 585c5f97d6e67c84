//! Model clients, each at its own boundary: the wire, and the script.

mod anthropic;
mod scripted;

use futures::StreamExt;
use palisade_engine::model::{
    Completion, Message, ModelClient, ModelError, ModelEvent, ModelRequest, Role, ToolDefinition,
};
use serde_json::{Value, json};

/// A request with these messages, one system prompt and two tools.
fn request(messages: Vec<Message>) -> ModelRequest {
    let tool = |name: &str| ToolDefinition {
        name: name.to_owned(),
        description: format!("Runs {name}."),
        input_schema: json!({"type": "object"}),
    };
    ModelRequest {
        model: "claude-opus-5-5".to_owned(),
        system: Some("Be brief.".to_owned()),
        messages,
        tools: vec![tool("bash"), tool("read")],
        max_tokens: 1000,
        effort: Some("high".to_owned()),
        speed: Some("standard".to_owned()),
        inference_geo: None,
        conversation: "sesn_1".to_owned(),
    }
}

fn user(text: &str) -> Message {
    Message { role: Role::User, content: vec![json!({"type": "text", "text": text})] }
}

fn assistant(content: Vec<Value>) -> Message {
    Message { role: Role::Assistant, content }
}

/// What came of a request.
#[derive(Debug)]
struct Outcome {
    events: Vec<ModelEvent>,
    error: Option<ModelError>,
}

impl Outcome {
    /// The finished blocks in order.
    fn blocks(&self) -> Vec<Value> {
        let blocks = self.events.iter().filter_map(|event| match event {
            ModelEvent::Block { block, .. } => Some(block.clone()),
            _ => None,
        });
        blocks.collect()
    }

    /// All text deltas, joined.
    fn text(&self) -> String {
        let texts = self.events.iter().filter_map(|event| match event {
            ModelEvent::TextDelta { text, .. } => Some(text.as_str()),
            _ => None,
        });
        texts.collect()
    }

    /// How it ended.
    fn done(&self) -> &Completion {
        match self.events.last() {
            Some(ModelEvent::Done(completion)) => completion,
            _ => panic!("it did not end: {self:?}"),
        }
    }

    fn starts(&self) -> usize {
        self.events.iter().filter(|event| **event == ModelEvent::Start).count()
    }
}

async fn ask(client: &dyn ModelClient, request: ModelRequest) -> Outcome {
    let mut outcome = Outcome { events: Vec::new(), error: None };
    let mut stream = client.stream(request);
    while let Some(event) = stream.next().await {
        assert!(outcome.error.is_none(), "something came after the error: {event:?}");
        match event {
            Ok(event) => outcome.events.push(event),
            Err(error) => outcome.error = Some(error),
        }
    }
    outcome
}
