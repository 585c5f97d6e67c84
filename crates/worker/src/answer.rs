//! Result events: always complete, never empty, never larger than a request may be.

use serde_json::{Value, json};

/// A client may send 32 MB; this leaves room for the envelope.
const LARGEST: usize = 30 * 1024 * 1024;
/// What an empty result says. The hosted service refuses texts without a character, and with them the session stands still.
const NO_OUTPUT: &str = "(no output)";

/// The `user.tool_result` event of a call, as JSON.
pub(crate) fn result_event(call: &str, content: Vec<Value>, is_error: bool) -> String {
    let event = event(call, blocks(content), is_error);
    if event.len() <= LARGEST {
        return event;
    }
    let text = format!("The result is {} bytes, more than the {LARGEST} bytes that can be sent.", event.len());
    error_event(call, &text)
}

/// An error result with one text.
pub(crate) fn error_event(call: &str, text: &str) -> String {
    event(call, blocks(vec![json!({"type": "text", "text": text})]), true)
}

/// The request that posts one event.
pub(crate) fn request(event: &str) -> String {
    format!("{{\"events\":[{event}]}}")
}

fn event(call: &str, content: Vec<Value>, is_error: bool) -> String {
    json!({"type": "user.tool_result", "tool_use_id": call, "content": content, "is_error": is_error}).to_string()
}

fn blocks(content: Vec<Value>) -> Vec<Value> {
    let mut blocks: Vec<Value> = content
        .into_iter()
        .filter_map(|block| match block.get("type").and_then(Value::as_str) {
            Some("text") => {
                let written = block.get("text").and_then(Value::as_str).is_some_and(|text| !text.trim().is_empty());
                written.then_some(block)
            }
            Some("image" | "document" | "search_result") => Some(block),
            // A block kind that results may not hold still tells something.
            _ => Some(json!({"type": "text", "text": block.to_string()})),
        })
        .collect();
    if blocks.is_empty() {
        blocks.push(json!({"type": "text", "text": NO_OUTPUT}));
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_complete_and_never_empty() {
        for empty in [vec![], vec![json!({"type": "text", "text": " \n"})]] {
            let event: Value = serde_json::from_str(&result_event("c", empty, false)).unwrap();
            assert_eq!(
                event,
                json!({"type": "user.tool_result", "tool_use_id": "c", "is_error": false,
                       "content": [{"type": "text", "text": "(no output)"}]})
            );
        }
        let event: Value =
            serde_json::from_str(&result_event("c", vec![json!({"type": "new", "x": 1})], true)).unwrap();
        assert_eq!(event["content"][0]["type"], "text");
        let large = "x".repeat(LARGEST);
        let event: Value =
            serde_json::from_str(&result_event("c", vec![json!({"type": "text", "text": large})], false)).unwrap();
        assert_eq!(event["is_error"], true);
    }
}
