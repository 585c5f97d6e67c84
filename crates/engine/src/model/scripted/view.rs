//! What a script can see of a conversation.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::Value;

use crate::model::{ModelRequest, Role};

/// A conversation, read once for each request.
pub(super) struct View<'a> {
    pub(super) system: &'a str,
    /// The user's own texts, one for each message that has any.
    pub(super) users: Vec<Cow<'a, str>>,
    /// All results of tools, in order.
    pub(super) results: Vec<ResultView<'a>>,
    /// Where in `results` those of the latest message with results begin.
    pub(super) last_results: usize,
    /// Replies so far.
    pub(super) replies: usize,
    /// Replies since the user last said something.
    pub(super) replies_of_turn: usize,
    /// Whether the latest message holds results.
    pub(super) ends_with_results: bool,
    /// Names of the tools that may be called.
    pub(super) tools: Vec<&'a str>,
    /// Blocks so far; tells requests of one step apart.
    pub(super) blocks: usize,
}

/// A tool's result.
pub(super) struct ResultView<'a> {
    /// The tool's name; empty when its call is not in the conversation.
    pub(super) tool: &'a str,
    pub(super) text: Cow<'a, str>,
    pub(super) is_error: bool,
}

impl<'a> View<'a> {
    pub(super) fn of(request: &'a ModelRequest) -> View<'a> {
        let mut view = View {
            system: request.system.as_deref().unwrap_or_default(),
            users: Vec::new(),
            results: Vec::new(),
            last_results: 0,
            replies: 0,
            replies_of_turn: 0,
            ends_with_results: false,
            tools: request.tools.iter().map(|tool| tool.name.as_str()).collect(),
            blocks: 0,
        };
        let mut calls: HashMap<&str, &str> = HashMap::new();
        for message in &request.messages {
            view.blocks += message.content.len();
            if message.role == Role::Assistant {
                view.replies += 1;
                view.replies_of_turn += 1;
                for block in message.content.iter().filter(|block| block["type"] == "tool_use") {
                    if let (Some(id), Some(name)) = (block["id"].as_str(), block["name"].as_str()) {
                        calls.insert(id, name);
                    }
                }
                continue;
            }
            let first = view.results.len();
            let results = message.content.iter().filter(|block| block["type"] == "tool_result");
            view.results.extend(results.map(|block| ResultView {
                tool: block["tool_use_id"].as_str().and_then(|id| calls.get(id)).copied().unwrap_or_default(),
                text: text_of(&block["content"]),
                is_error: block["is_error"] == true,
            }));
            view.ends_with_results = view.results.len() > first;
            if view.ends_with_results {
                view.last_results = first;
            }
            let said = joined(message.content.iter().filter_map(|block| said(block)));
            if let Some(said) = said {
                view.users.push(said);
                view.replies_of_turn = 0;
            }
        }
        view
    }

    /// What the user last said.
    pub(super) fn last_user(&self) -> &str {
        self.users.last().map_or("", |text| text)
    }
}

/// A block's text, if it is the user's: what the system says in the user's place is marked.
fn said(block: &Value) -> Option<&str> {
    let text = block["text"].as_str().filter(|_| block["type"] == "text")?;
    (!text.starts_with("<system-message>")).then_some(text)
}

fn text_of(content: &Value) -> Cow<'_, str> {
    match content {
        Value::String(text) => Cow::Borrowed(text),
        Value::Array(blocks) => joined(blocks.iter().filter_map(|block| block["text"].as_str())).unwrap_or_default(),
        _ => Cow::Borrowed(""),
    }
}

fn joined<'a>(mut texts: impl Iterator<Item = &'a str>) -> Option<Cow<'a, str>> {
    let mut all = Cow::Borrowed(texts.next()?);
    for text in texts {
        let all = all.to_mut();
        all.push('\n');
        all.push_str(text);
    }
    Some(all)
}
