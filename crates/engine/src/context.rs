//! The model's view of a session: a function of its log.
//!
//! Nothing of what is sent to a model is stored. It is built anew from the log for each request, so that a crash can
//! neither lose nor double anything in it.

use std::collections::{HashMap, HashSet};

use palisade_api::{SessionAgent, Tool};
use palisade_core::batch::LogEntry;
use palisade_core::session::Purpose;
use serde_json::{Value, json};

use crate::model::{Message, ModelRequest, Role, ToolDefinition};
use crate::tools;

/// The types of events that a conversation is made of.
pub(crate) const TYPES: &[&str] = &[
    "user.message",
    "system.message",
    "user.tool_result",
    "user.custom_tool_result",
    "agent.message",
    "agent.thinking",
    "agent.tool_use",
    "agent.custom_tool_use",
    "agent.mcp_tool_use",
    "agent.tool_result",
    "agent.mcp_tool_result",
    "agent.thread_context_compacted",
];

const SUMMARISE: &str = "The conversation has grown too long to continue as it is. Write a summary from which the work \
can go on without it: the user's requests word for word where they matter, what was decided and why, what was done and \
found (files, commands, results), what is still open, and the very next step. Write only the summary.";

/// Builds the request for the next reply, or for a summary, from a session's log.
pub(crate) fn request(
    agent: &SessionAgent,
    log: &[LogEntry],
    purpose: Purpose,
    conversation: &str,
    max_tokens: u32,
) -> ModelRequest {
    let mut messages = messages(log);
    if purpose == Purpose::Compaction {
        push(&mut messages, Role::User, json!({"type": "text", "text": SUMMARISE}));
    }
    // For a summary too: a model that has used tools must be told of them, or the provider refuses their results.
    let tools = definitions(&agent.tools);
    let mut system = agent.system.clone().unwrap_or_default();
    if tools.iter().any(|tool| tool.name == "bash" || tool.name == "read") {
        if !system.is_empty() {
            system.push_str("\n\n");
        }
        system.push_str(tools::PLACES);
    }
    ModelRequest {
        model: agent.model.id.clone(),
        system: (!system.is_empty()).then_some(system),
        messages,
        tools,
        max_tokens,
        effort: agent.model.effort_name().map(str::to_owned),
        speed: agent.model.speed_name().map(str::to_owned),
        inference_geo: agent.model.inference_geo.clone(),
        conversation: conversation.to_owned(),
    }
}

/// The definitions of the tools that the agent may use.
fn definitions(agent_tools: &[Tool]) -> Vec<ToolDefinition> {
    let mut definitions = Vec::new();
    for tool in agent_tools {
        match tool {
            Tool::AgentToolset(toolset) => {
                for (name, description, schema) in tools::builtin() {
                    if toolset.tool(name).is_some_and(|resolved| resolved.enabled) {
                        definitions.push(ToolDefinition {
                            name: name.to_owned(),
                            description: description.to_owned(),
                            input_schema: schema,
                        });
                    }
                }
            }
            Tool::Custom(custom) => definitions.push(ToolDefinition {
                name: custom.name.clone(),
                description: custom.description.clone(),
                input_schema: custom.input_schema.clone(),
            }),
            _ => {}
        }
    }
    definitions
}

/// The messages of a conversation, from its log.
fn messages(log: &[LogEntry]) -> Vec<Message> {
    let mut messages: Vec<Message> = Vec::new();
    // Event id of a call → the model's own id of it.
    let mut calls: HashMap<String, String> = HashMap::new();
    let mut answered: HashSet<String> = HashSet::new();
    for entry in log {
        let Ok(body) = serde_json::from_str::<Value>(&entry.body) else { continue };
        let private: Value =
            entry.private.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Value::Null);
        match entry.kind.as_str() {
            "agent.thread_context_compacted" => {
                messages.clear();
                calls.clear();
                let summary = private["summary"].as_str().unwrap_or_default();
                let text = format!("Summary of the conversation so far:\n\n{summary}");
                push(&mut messages, Role::User, json!({"type": "text", "text": text}));
            }
            "user.message" => {
                for block in body["content"].as_array().into_iter().flatten() {
                    push(&mut messages, Role::User, message_block(block));
                }
            }
            "system.message" => {
                for block in body["content"].as_array().into_iter().flatten() {
                    let text = block["text"].as_str().unwrap_or_default();
                    let text = format!("<system-message>\n{text}\n</system-message>");
                    push(&mut messages, Role::User, json!({"type": "text", "text": text}));
                }
            }
            "agent.message" => {
                for block in body["content"].as_array().into_iter().flatten() {
                    if block["text"].as_str().is_some_and(|text| !text.is_empty()) {
                        push(&mut messages, Role::Assistant, block.clone());
                    }
                }
            }
            "agent.thinking" if private.is_object() => push(&mut messages, Role::Assistant, private),
            "agent.tool_use" | "agent.custom_tool_use" | "agent.mcp_tool_use" => {
                let id = private["id"].as_str().unwrap_or(entry.id.as_str()).to_owned();
                let block = json!({"type": "tool_use", "id": id, "name": body["name"], "input": body["input"]});
                push(&mut messages, Role::Assistant, block);
                calls.insert(entry.id.as_str().to_owned(), id);
            }
            kind @ ("user.tool_result" | "user.custom_tool_result" | "agent.tool_result" | "agent.mcp_tool_result") => {
                let field = match kind {
                    "user.custom_tool_result" => "custom_tool_use_id",
                    "agent.mcp_tool_result" => "mcp_tool_use_id",
                    _ => "tool_use_id",
                };
                let event = body[field].as_str().unwrap_or_default();
                let Some(id) = calls.get(event) else { continue };
                if !answered.insert(event.to_owned()) {
                    continue;
                }
                let content: Vec<Value> = body["content"].as_array().into_iter().flatten().map(message_block).collect();
                let block = json!({
                    "type": "tool_result",
                    "tool_use_id": id,
                    "content": content,
                    "is_error": body["is_error"].as_bool().unwrap_or(false),
                });
                push(&mut messages, Role::User, block);
            }
            _ => {}
        }
    }
    for message in &mut messages {
        if message.role == Role::User {
            // The provider wants the results of one reply first in the message that follows it.
            message.content.sort_by_key(|block| block["type"] != "tool_result");
        }
    }
    messages
}

fn push(messages: &mut Vec<Message>, role: Role, block: Value) {
    match messages.last_mut() {
        Some(last) if last.role == role => last.content.push(block),
        _ => messages.push(Message { role, content: vec![block] }),
    }
}

/// A block as the provider takes it: it refuses empty text, and files live here, not there.
fn message_block(block: &Value) -> Value {
    if block["type"] == "text" && block["text"].as_str().is_none_or(|text| text.trim().is_empty()) {
        return json!({"type": "text", "text": "(empty)"});
    }
    if block["source"]["type"] == "file" {
        return json!({"type": "text", "text": "(a file that this server cannot read was attached here)"});
    }
    block.clone()
}

#[cfg(test)]
mod tests {
    use palisade_api::{EventId, Timestamp};

    use super::*;

    fn entry(seq: u64, body: Value, private: Option<Value>) -> LogEntry {
        LogEntry {
            seq,
            id: EventId::from(body["id"].as_str().unwrap()),
            kind: body["type"].as_str().unwrap().to_owned(),
            at: Timestamp::from_micros(1),
            body: body.to_string(),
            private: private.map(|value| value.to_string()),
        }
    }

    #[test]
    fn results_come_first_and_only_once() {
        let log = [
            entry(1, json!({"id": "e1", "type": "user.message", "content": [{"type": "text", "text": "go"}]}), None),
            entry(
                2,
                json!({"id": "e2", "type": "agent.tool_use", "name": "bash", "input": {}}),
                Some(json!({"id": "toolu_1"})),
            ),
            entry(3, json!({"id": "e3", "type": "user.message", "content": [{"type": "text", "text": "also"}]}), None),
            entry(
                4,
                json!({"id": "e4", "type": "user.tool_result", "tool_use_id": "e2", "content": [{"type": "text", "text": ""}]}),
                None,
            ),
            entry(5, json!({"id": "e5", "type": "user.tool_result", "tool_use_id": "e2", "content": []}), None),
        ];
        let messages = messages(&log);
        assert_eq!(messages.len(), 3);
        assert_eq!(messages[2].content.len(), 2);
        assert_eq!(messages[2].content[0]["tool_use_id"], "toolu_1");
        assert_eq!(messages[2].content[0]["content"][0]["text"], "(empty)");
        assert_eq!(messages[2].content[1]["text"], "also");
    }

    #[test]
    fn a_summary_replaces_what_came_before() {
        let log = [
            entry(1, json!({"id": "e1", "type": "user.message", "content": [{"type": "text", "text": "go"}]}), None),
            entry(2, json!({"id": "e2", "type": "agent.thread_context_compacted"}), Some(json!({"summary": "S"}))),
            entry(3, json!({"id": "e3", "type": "user.message", "content": [{"type": "text", "text": "on"}]}), None),
        ];
        let messages = messages(&log);
        assert_eq!(messages.len(), 1);
        assert!(messages[0].content[0]["text"].as_str().unwrap().ends_with('S'));
        assert_eq!(messages[0].content[1]["text"], "on");
    }
}
