//! Every example survives a round trip through its type, field by field.

use palisade_api::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

fn round_trip<T: Serialize + DeserializeOwned>(text: &str) {
    let wanted: Value = serde_json::from_str(text).unwrap();
    let typed: T = serde_json::from_str(text).unwrap();
    // `Value` keeps its keys sorted, which is all the normalisation there is.
    assert_eq!(serde_json::to_string(&typed_value(&typed)).unwrap(), serde_json::to_string(&wanted).unwrap());
}

fn typed_value<T: Serialize>(typed: &T) -> Value {
    serde_json::to_value(typed).unwrap()
}

#[test]
fn objects() {
    round_trip::<Agent>(include_str!("../fixtures/agent.json"));
    round_trip::<Environment>(include_str!("../fixtures/environment.json"));
    round_trip::<Work>(include_str!("../fixtures/work.json"));
    round_trip::<Heartbeat>(include_str!("../fixtures/work_heartbeat.json"));
    round_trip::<QueueStats>(include_str!("../fixtures/work_queue_stats.json"));
    round_trip::<Session>(include_str!("../fixtures/session.json"));
    round_trip::<ErrorEnvelope>(include_str!("../fixtures/error.json"));
    round_trip::<ErrorEnvelope>(include_str!("../fixtures/error_2.json"));
    round_trip::<SendEvents>(include_str!("../fixtures/events.json"));
    round_trip::<Page<Event>>(
        &include_str!("../fixtures/sent.json").replace("\"data\"", "\"next_page\": null, \"data\""),
    );
}

#[test]
fn events() {
    for text in [
        include_str!("../fixtures/session_error.json"),
        include_str!("../fixtures/span_outcome_evaluation_end.json"),
        include_str!("../fixtures/workflow_run_created.json"),
        include_str!("../fixtures/agent_mcp_tool_use.json"),
    ] {
        round_trip::<Event>(text);
        assert!(!matches!(serde_json::from_str(text).unwrap(), Event::Unknown(_)), "{text}");
    }
}

#[test]
fn a_whole_turn() {
    let mut seen = 0;
    for line in include_str!("../fixtures/turn.jsonl").lines() {
        seen += 1;
        if line.starts_with("{\"type\":\"event_") {
            round_trip::<StreamEvent>(line);
        } else {
            round_trip::<Event>(line);
            assert!(!matches!(serde_json::from_str(line).unwrap(), Event::Unknown(_)), "{line}");
        }
    }
    assert_eq!(seen, 13);
}

#[test]
fn the_catalogue_is_complete() {
    assert_eq!(EVENT_TYPES.len(), 42);
    // One object that has the required fields of every type at once: each type must take it for its own.
    for name in EVENT_TYPES {
        let text = serde_json::json!({
            "id": "sevt_1", "type": name, "processed_at": "2026-11-01T08:00:00Z", "later": {"x": 1},
            "content": [{"type": "text", "text": "t"}], "tool_use_id": "sevt_0", "custom_tool_use_id": "sevt_0",
            "mcp_tool_use_id": "sevt_0", "result": if *name == "user.tool_confirmation" { "allow" } else { "satisfied" },
            "name": "bash", "input": {}, "mcp_server_name": "s", "description": "d", "outcome_id": "outc_1",
            "rubric": {"type": "text", "content": "c"}, "max_iterations": null, "iteration": 0,
            "to_session_thread_id": "sthr_2", "from_session_thread_id": "sthr_2", "session_thread_id": "sthr_1",
            "agent_name": "a", "workflow_run_id": "wrun_1", "stop_reason": {"type": "end_turn"}, "stop_details": null,
            "error": {"type": "unknown_error", "message": "m", "retry_status": {"type": "terminal"}},
            "usage": {"input_tokens": 1, "output_tokens": 1, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0},
            "model_request_start_id": "sevt_0", "is_error": false, "outcome_evaluation_start_id": "", "explanation": "",
            "model_usage": {"input_tokens": 1, "output_tokens": 1, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0},
            "phases": [],
        })
        .to_string();
        let event: Event = serde_json::from_str(&text).unwrap();
        assert!(!matches!(event, Event::Unknown(_)), "{name}");
        assert_eq!(event.type_name(), *name);
        let back = serde_json::to_value(&event).unwrap();
        assert_eq!(back["later"]["x"], 1, "{name} keeps what it does not know");
    }
}

#[test]
fn what_is_not_known_is_kept() {
    round_trip::<Event>(r#"{"id":"sevt_1","type":"agent.dance","steps":[1,2],"processed_at":"2026-11-01T08:00:00Z"}"#);
    // A known type whose fields are not as expected is no reason to lose it.
    round_trip::<Event>(r#"{"id":"sevt_1","type":"agent.message","content":"not a list","processed_at":null}"#);
    round_trip::<Tool>(r#"{"type":"agent_toolset_20270101","x":1}"#);
    round_trip::<ContentBlock>(r#"{"type":"hologram","data":"…"}"#);
    round_trip::<SessionResource>(r#"{"type":"volume","id":"v"}"#);
}
