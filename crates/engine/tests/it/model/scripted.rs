//! Scripts: what they say, and what is said of wrong ones.

use std::time::Duration;

use futures::StreamExt;
use palisade_engine::model::{
    Message, ModelClient, ModelErrorKind, ModelEvent, ModelRequest, Models, Role, Script, Scripted, StopReason,
};
use serde_json::{Value, json};

use super::{Outcome, ask, assistant, request, user};

fn scripted(text: &str) -> Scripted {
    Scripted::new(Script::parse(text).unwrap())
}

fn results(results: &[(&Value, &str, bool)]) -> Message {
    let block = |(id, text, is_error): &(&Value, &str, bool)| json!({"type": "tool_result", "tool_use_id": id, "content": [{"type": "text", "text": text}], "is_error": is_error});
    Message { role: Role::User, content: results.iter().map(block).collect() }
}

const SURVEY: &str = r#"
name: survey
rules:
  - if: {last_user_contains: ping, ends_with: user}
    reply: [{text: pong}]
steps:
  - reply:
      - thinking: Where am I?
      - text: I will look around, as told by {{user}}.
      - tool: {name: bash, input: {command: ls, nested: ["{{user}}", 1]}}
      - tool: {name: read, input: {file_path: a}}
  - when:
      - if: {last_result: {tool: bash, contains: Cargo.toml, is_error: false}}
        reply: [{text: "Rust: {{result:1}} | {{last_result}} | {{result:-2}} | {{result:9}} | {{.Names}} {{{step}}}"}]
      - if: {any: [{any_result_contains: denied}, {not: {any_result: {matches: "^ok"}}}]}
        reply: [{text: No luck.}]
        stop: refusal
      - reply: [{text: Something else.}]
  - reply: [{text: Third.}]
otherwise: {reply: [{text: That was all.}]}
"#;

#[tokio::test]
async fn a_script_reacts_to_the_conversation() {
    let model = scripted(SURVEY);
    let first = ask(&model, request(vec![user("boss")])).await;
    assert_eq!(first.text(), "I will look around, as told by boss.");
    assert_eq!(first.done().stop_reason, StopReason::ToolUse);
    let blocks = first.blocks();
    assert_eq!(blocks[0]["thinking"], "Where am I?");
    assert!(!blocks[0]["signature"].as_str().unwrap().is_empty());
    assert_eq!(blocks[2]["input"], json!({"command": "ls", "nested": ["boss", 1]}));
    let (bash, read) = (&blocks[2]["id"], &blocks[3]["id"]);
    assert!(bash.as_str().unwrap().starts_with("toolu_") && bash != read);

    let after = |answer: (&str, bool), other: &str| {
        let results = results(&[(bash, answer.0, answer.1), (read, other, false)]);
        request(vec![user("boss"), assistant(blocks.clone()), results])
    };
    let cases = [
        (("Cargo.toml", false), "file {{user}}", "Rust: Cargo.toml | file {{user}} | Cargo.toml |  | {{.Names}} {1}"),
        (("Cargo.toml", true), "denied", "No luck."),
        (("nothing", false), "Cargo.toml", "No luck."),
        (("ok", false), "x", "Something else."),
    ];
    for (answer, other, said) in cases {
        let outcome = ask(&model, after(answer, other)).await;
        assert_eq!(outcome.text(), said);
        if said == "No luck." {
            assert_eq!(outcome.done().stop_reason, StopReason::Refusal);
            assert_eq!(outcome.done().stop_details.as_ref().unwrap()["type"], "refusal");
        } else {
            assert_eq!(outcome.done().stop_reason, StopReason::EndTurn);
        }
    }

    let said = |text: &str| assistant(vec![json!({"type": "text", "text": text})]);
    let mut long = vec![user("boss"), said("1"), user("go"), said("2"), user("go")];
    assert_eq!(ask(&model, request(long.clone())).await.text(), "Third.");
    long.extend([said("3"), user("go")]);
    assert_eq!(ask(&model, request(long.clone())).await.text(), "That was all.");
    long.push(user("ping"));
    assert_eq!(ask(&model, request(long)).await.text(), "pong");
}

#[tokio::test]
async fn the_same_conversation_gets_the_same_reply() {
    let of = |model: &Scripted, conversation: &str| {
        let stream = model.stream(ModelRequest { conversation: conversation.into(), ..request(vec![user("boss")]) });
        stream.map(Result::unwrap).collect::<Vec<_>>()
    };
    let (one, two) = (scripted(SURVEY), scripted(SURVEY));
    assert_eq!(of(&one, "sesn_1").await, of(&two, "sesn_1").await);
    assert_ne!(of(&one, "sesn_1").await, of(&one, "sesn_2").await);
}

#[tokio::test]
async fn steps_may_start_again_with_each_turn_and_scripts_end() {
    let model = scripted(
        r#"{"name": "turns", "per_turn": true, "context_window": 5000, "steps": [{"reply": [{"text": "a \ud83d\ude00"}]}, {"reply": [{"text": "b"}]}]}"#,
    );
    let said = |text: &str| assistant(vec![json!({"type": "text", "text": text})]);
    let mut messages = vec![user("1"), said("a")];
    let result = results(&[(&json!("toolu_x"), "r", false)]);
    messages.push(result.clone());
    assert_eq!(ask(&model, request(messages.clone())).await.text(), "b");
    messages.extend([said("b"), result]);
    let over = ask(&model, request(messages.clone())).await;
    assert_eq!(over.text(), "The script turns is over.");
    assert_eq!(over.done().stop_reason, StopReason::EndTurn);
    // What the system says in the user's place begins no turn.
    messages.extend([said("c"), user("<system-message>\nhush\n</system-message>")]);
    assert_eq!(ask(&model, request(messages.clone())).await.text(), "The script turns is over.");
    messages.push(user("2"));
    assert_eq!(ask(&model, request(messages)).await.text(), "a 😀");
    assert_eq!(model.context_window("any"), 5000);
}

#[tokio::test]
async fn options_shape_the_stream() {
    let model = scripted(
        "steps:\n  - reply: [{text: Grüße!}]\n    chunk: 4\n    delay_ms: 1\n    chunk_delay_ms: 1\n    stop: pause_turn\n    usage: {input_tokens: 10, cache_read_input_tokens: 4}\n",
    );
    let outcome = ask(&model, request(vec![user("x")])).await;
    let deltas = outcome.events.iter().filter(|event| matches!(event, ModelEvent::TextDelta { .. })).count();
    assert_eq!((deltas, outcome.text().as_str()), (2, "Grüße!"));
    let done = outcome.done();
    assert_eq!(done.stop_reason, StopReason::PauseTurn);
    assert_eq!((done.usage.input_tokens, done.usage.cache_read_input_tokens), (10, 4));
    assert_eq!(done.usage.output_tokens, 2);
}

#[tokio::test]
async fn failures_are_played_and_pass() {
    use ModelErrorKind::*;
    let model = scripted(
        "steps:\n  - reply: [{text: at last}]\n    error: overloaded\n    times: 2\n    retry_after_ms: 30\n    message: full house\n",
    );
    let ask_of = |conversation: &str| {
        let request = ModelRequest { conversation: conversation.into(), ..request(vec![user("x")]) };
        ask(&model, request)
    };
    for _ in 0..2 {
        let outcome: Outcome = ask_of("sesn_1").await;
        let failure = outcome.error.unwrap();
        assert_eq!((failure.kind, failure.retryable), (Overloaded, true));
        assert_eq!((failure.message.as_str(), failure.retry_after), ("full house", Some(Duration::from_millis(30))));
        assert!(outcome.events.is_empty());
    }
    assert_eq!(ask_of("sesn_1").await.text(), "at last");
    assert!(ask_of("sesn_2").await.error.is_some());

    for (name, kind, retryable, begins) in [
        ("rate_limited", RateLimited, true, false),
        ("billing", Billing, false, false),
        ("request_failed", RequestFailed, true, false),
        ("invalid_request", InvalidRequest, false, false),
        ("authentication", Authentication, false, false),
        ("context_too_long", ContextTooLong, false, false),
        ("disconnect", Disconnected, true, true),
        ("idle", Idle, true, true),
        ("malformed_tool_input", Malformed, true, true),
    ] {
        let script = format!("steps: [{{reply: [{{text: half of it}}], error: {name}}}]");
        let outcome = ask(&scripted(&script), request(vec![user("x")])).await;
        let failure = outcome.error.as_ref().unwrap();
        assert_eq!((failure.kind, failure.retryable), (kind, retryable), "{name}");
        assert_eq!(outcome.text(), if begins { "half " } else { "" }, "{name}");
        assert!(outcome.blocks().is_empty());
    }

    let model = scripted("steps: [{reply: [{text: half of it}], error: hang}]");
    let mut stream = model.stream(request(vec![user("x")]));
    while !matches!(stream.next().await.unwrap().unwrap(), ModelEvent::TextDelta { .. }) {}
    assert!(futures::poll!(stream.next()).is_pending());
}

#[test]
fn wrong_scripts_are_named_by_field_and_line() {
    let cases: &[(&str, &[&str])] = &[
        (
            "steps:\n  - reply: [{text: a}]\n  - reply:\n      - txt: a\n",
            &["steps[1].reply[0]", "unknown field `txt`", "line 4"],
        ),
        (
            "steps:\n  - reply: [{text: a}]\n    stop: sometimes\n",
            &["steps[0]", "unknown variant `sometimes`", "line 3"],
        ),
        ("steps: [{reply: [{tool: {name: bash, input: ls}}]}]", &["steps[0].reply[0].tool.input", "line 1"]),
        ("steps: [{reply: [{tool: {input: {}}}]}]", &["missing field `name`", "line 1"]),
        ("{\"steps\": [{\"reply\": [\n{\"text\": 3}]}]}", &["steps[0].reply[0].text", "line 2"]),
        ("steps: [{reply: [{text: a, thinking: b}]}]", &["steps[0].reply[0]", "exactly one of"]),
        ("steps: [{reply: [{}]}]", &["steps[0].reply[0]", "exactly one of"]),
        ("steps: [{stop: refusal}]", &["steps[0].reply", "neither a `reply` nor an `error`"]),
        ("steps: [{reply: [], times: 2}]", &["steps[0].error", "need an `error`"]),
        ("steps: [{error: idle, times: 2}]", &["steps[0].times", "there must be a `reply`"]),
        ("steps: [{reply: [], chunk: 0}]", &["steps[0].chunk"]),
        ("steps: [{if: {ends_with: user}, reply: []}]", &["steps[0]", "under `when`"]),
        ("steps: [{when: [{reply: []}, {reply: []}]}]", &["steps[0].when[0]", "only the last"]),
        ("steps: [{when: [{reply: []}], delay_ms: 3}]", &["steps[0]", "belong into the alternatives"]),
        ("steps: [{when: [{if: {}, reply: []}]}]", &["steps[0].when[0].if", "the condition is empty"]),
        (
            "rules: [{if: {any: [{last_user_matches: '('}]}, reply: []}]",
            &["rules[0].if.any[0].last_user_matches", "not a regular expression"],
        ),
        ("rules: [{reply: []}]", &["rules[0]", "needs an `if`"]),
        ("otherwise: {if: {ends_with: user}, reply: []}", &["otherwise.if"]),
        ("name: empty", &["neither rules nor steps"]),
        ("", &["neither rules nor steps"]),
        ("steps: [", &["cannot be understood", "line 2"]),
    ];
    for (text, parts) in cases {
        let why = Script::parse(text).unwrap_err().to_string();
        for part in *parts {
            assert!(why.contains(part), "{text:?}: {why:?} does not say {part:?}");
        }
    }
    let missing = Script::load("no/such/script.yaml".as_ref()).unwrap_err().to_string();
    assert!(missing.contains("no/such/script.yaml"));
}

#[test]
fn models_are_resolved_by_name_then_prefix() {
    let client = |window: u32| -> std::sync::Arc<dyn ModelClient> {
        std::sync::Arc::new(scripted(&format!("context_window: {window}\nsteps: [{{reply: []}}]")))
    };
    let models =
        Models::new().with_prefix("a-", client(1)).with_prefix("a-b-", client(2)).with_model("a-b-c", client(3));
    assert_eq!(["a-x", "a-b-x", "a-b-c"].map(|id| models.context_window(id)), [1, 2, 3]);
    assert!(models.resolve("z").is_none());
    assert_eq!(models.with_default(client(4)).context_window("z"), 4);
}
