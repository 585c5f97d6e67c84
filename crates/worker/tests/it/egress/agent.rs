//! A coding agent and the official SDK inside a sandbox, at work with a model whose key only the broker knows.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Response, Uri};
use palisade_testkit::messages_server::{block_events, start};
use serde_json::{Value, json};

use super::prepared;
use super::world::{CANARY, DIRECT, World, credential, has, policy, rule};

/// What the model was asked.
struct Asked {
    key: String,
    body: Value,
}

#[derive(Clone, Default)]
struct Model(Arc<Mutex<Vec<Asked>>>);

/// Has the agent run one command, and says so when it has.
async fn answer(State(model): State<Model>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let say = |status: u16, kind: &str, body: String| {
        Response::builder().status(status).header("content-type", kind).body(Body::from(body)).unwrap()
    };
    if uri.path() != "/v1/messages" {
        return say(
            404,
            "application/json",
            json!({"type": "error", "error": {"type": "not_found_error", "message": "no"}}).to_string(),
        );
    }
    // Older clients say `x-api-key`, newer ones a bearer's token.
    let header = |name: &str| headers.get(name).and_then(|key| key.to_str().ok()).unwrap_or_default();
    let key = Some(header("x-api-key")).filter(|key| !key.is_empty()).unwrap_or_else(|| header("authorization"));
    let key = key.trim_start_matches("Bearer ").to_owned();
    if key != self::key() {
        return say(
            401,
            "application/json",
            json!({"type": "error", "error": {"type": "authentication_error", "message": "no"}}).to_string(),
        );
    }
    let body: Value = serde_json::from_slice(&body).unwrap();
    let ran = body["messages"].to_string().contains("tool_result");
    let can_run = body["tools"].as_array().is_some_and(|tools| tools.iter().any(|tool| tool["name"] == "Bash"));
    let streams = body["stream"] == true;
    model.0.lock().unwrap().push(Asked { key, body });
    let (block, reason) = match can_run && !ran {
        true => (
            json!({"type": "tool_use", "id": "toolu_1", "name": "Bash",
            "input": {"command": "env | grep -c ANTHROPIC_API_KEY; echo ran > /workspace/ran", "description": "Look around"}}),
            "tool_use",
        ),
        false => (json!({"type": "text", "text": "the model has spoken"}), "end_turn"),
    };
    if !streams {
        let mut message = start()["message"].clone();
        message["content"] = json!([block]);
        message["stop_reason"] = reason.into();
        return say(200, "application/json", message.to_string());
    }
    let mut events = vec![start()];
    events.extend(block_events(0, block));
    events.push(json!({"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": null}, "usage": {"output_tokens": 7}}));
    events.push(json!({"type": "message_stop"}));
    let frames = events.iter().map(|event| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap()));
    say(200, "text/event-stream", frames.collect())
}

fn key() -> String {
    format!("sk-ant-api03-{CANARY}{}AA", "m".repeat(80))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coding_agent_works_with_a_placeholder() {
    if !has(&["node", "npm"]) {
        return;
    }
    let mut world = World::new().await;
    world.seed(&prepared::coding_agent());
    world.secret("model", &key());
    let model = Model::default();
    let upstream = world.upstream(&["model.test"], Router::new().fallback(answer).with_state(model.clone())).await;
    let port = upstream.port;
    let rules = [rule("model", "model.test", port, ", methods: [POST], paths: [/v1/]")];
    let (working, session) =
        world.begin(&policy(&rules), &credential("ANTHROPIC_API_KEY", "file:keys/model", "model.test"));
    for before in ["env", DIRECT] {
        let script = format!(
            "rm -f ran; export HOME=/workspace/home; mkdir -p $HOME/project; cd $HOME/project\n\
             {before} ANTHROPIC_BASE_URL=https://model.test:{port} CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1 DISABLE_AUTOUPDATER=1 \
             node /workspace/node_modules/@anthropic-ai/claude-code/cli.js -p 'look around' --allowedTools Bash </dev/null 2>&1; \
             echo status $?; cat /workspace/ran; echo key $ANTHROPIC_API_KEY"
        );
        let shown = world.run(&session, &script).await;
        assert!(shown.contains("the model has spoken\nstatus 0\nran"), "{before}: {shown}");
        assert!(shown.contains("key sk-ant-api03-") && !shown.contains(CANARY), "{shown}");
        let asked = std::mem::take(&mut *model.0.lock().unwrap());
        assert!(asked.iter().any(|asked| asked.body["messages"].to_string().contains("tool_result")), "it used a tool");
        for Asked { key: with, body } in asked {
            assert_eq!(with, key(), "the model is asked with the key");
            assert!(!body.to_string().contains(CANARY));
        }
    }
    let record = world.recorded("the request", |record| record["path"] == "/v1/messages").await;
    assert_eq!((&record["credentials"], &record["allowed"]), (&json!(["ANTHROPIC_API_KEY"]), &json!(true)), "{record}");
    // Nothing of the agent's went anywhere else.
    let elsewhere: Vec<_> = world
        .records()
        .into_iter()
        .filter(|record| record["allowed"] == true && record["to"] != format!("model.test:{port}"))
        .collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
    working.end().await;
}

const SDK: &str = r#"
import Anthropic from "@anthropic-ai/sdk";
const stream = new Anthropic().messages.stream({ model: "m", max_tokens: 64, messages: [{ role: "user", content: process.argv[2] }] });
console.log(await stream.finalText().catch(String));
"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_official_sdk_works_with_a_placeholder() {
    if !has(&["node", "npm"]) {
        return;
    }
    let mut world = World::new().await;
    world.seed(&prepared::sdk());
    world.secret("model", &key());
    let model = Model::default();
    let upstream = world.upstream(&["model.test"], Router::new().fallback(answer).with_state(model.clone())).await;
    let port = upstream.port;
    let rules = [rule("model", "model.test", port, ", methods: [POST], paths: [/v1/]")];
    // As an agent's transcript holds what its commands printed, a placeholder may come to stand in a body.
    world.secret("other", &format!("{CANARY}-only-in-headers"));
    let only_header = credential("ONLY_HEADER", "file:keys/other", "model.test")
        .replace("}\n", ", injection_location: {header: true, body: false}}\n");
    let credentials = credential("ANTHROPIC_API_KEY", "file:keys/model", "model.test") + &only_header;
    let (working, session) = world.begin(&policy(&rules), &credentials);
    let script = format!(
        "cat > ask.mjs <<'EOF'\n{SDK}\nEOF\nexport ANTHROPIC_BASE_URL=https://model.test:{port}; node ask.mjs speak"
    );
    let shown = world.run(&session, &script).await;
    assert!(shown.contains("the model has spoken"), "{shown}");
    let keys: Vec<String> = model.0.lock().unwrap().iter().map(|asked| asked.key.clone()).collect();
    assert_eq!(keys, [key()]);
    // Where bodies are enabled, as they are by default, the host that it is for gets it there too, and only that one.
    let shown = world.run(&session, "node ask.mjs \"look: $ANTHROPIC_API_KEY\"").await;
    assert!(shown.contains("the model has spoken"), "{shown}");
    assert_eq!(model.0.lock().unwrap().last().unwrap().body["messages"][0]["content"], format!("look: {}", key()));
    // Where they are not, it stays a placeholder, which is worth nothing to anybody.
    let shown = world.run(&session, "echo \"is $ONLY_HEADER\"; node ask.mjs \"look: $ONLY_HEADER\"").await;
    assert!(shown.contains("the model has spoken"), "{shown}");
    let placeholder = shown.lines().find_map(|line| line.strip_prefix("is ")).unwrap().to_owned();
    let asked = model.0.lock().unwrap().last().unwrap().body["messages"][0]["content"].clone();
    assert_eq!(asked, format!("look: {placeholder}"));
    assert!(!placeholder.contains(CANARY), "{placeholder}");
    working.end().await;
}
