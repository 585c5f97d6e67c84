//! The work queue: what official workers rely on.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::Method;
use serde_json::{Value, json};

use crate::rig::{Rig, id, toolset};

const CALL: &str = r#"
steps:
  - reply: [{tool: {name: bash, input: {command: date}}}]
otherwise: {reply: [{text: Done.}]}
"#;

fn token(work: &Value) -> String {
    let secret = URL_SAFE_NO_PAD.decode(work["secret"].as_str().unwrap()).unwrap();
    let secret: Value = serde_json::from_slice(&secret).unwrap();
    secret["sessions_token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_worker_serves_a_session() {
    let rig = Rig::start(CALL).await;
    let (agent, environment) = (rig.agent(json!([toolset()])).await, rig.environment().await);
    let key = rig.environment_key(&environment).await;
    let queue = format!("/v1/environments/{environment}/work");

    // Nothing is the four bytes `null`.
    let empty =
        rig.http.get(rig.url(&format!("{queue}/poll?block_ms=1&beta=true"))).bearer_auth(&key).send().await.unwrap();
    assert_eq!(empty.status(), 200);
    assert_eq!(empty.headers()["content-type"], "application/json");
    assert_eq!(empty.bytes().await.unwrap(), "null");
    for (query, parameter) in [
        ("block_ms=0", "block_ms"),
        ("block_ms=1000", "block_ms"),
        ("reclaim_older_than_ms=x", "reclaim_older_than_ms"),
    ] {
        let bad = rig.ask(&key, Method::GET, &format!("{queue}/poll?{query}"), None).await;
        assert!(bad.refused(400, "invalid_request_error").starts_with(parameter));
    }

    let session = rig.session(&agent, &environment, "What day is it?").await;
    let request = rig.http.get(rig.url(&format!("{queue}/poll?block_ms=999"))).bearer_auth(&key);
    let mut work = Value::Null;
    while work.is_null() {
        let request = request.try_clone().unwrap().header("Anthropic-Worker-ID", "w-1");
        work = crate::rig::read(request.send().await.unwrap()).await.ok();
    }
    assert_eq!(work["data"], json!({"type": "session", "id": session}));
    assert_eq!(work["state"], "queued");
    let stats = rig.get(&format!("{queue}/stats")).await.ok();
    assert_eq!((&stats["depth"], &stats["pending"], &stats["workers_polling"]), (&json!(0), &json!(1), &json!(1)));
    let work_id = id(&work);
    let item = format!("{queue}/{work_id}");
    let token = token(&work);

    // Not acknowledged: it is handed out again, at once when asked so.
    let again = rig.ask(&key, Method::GET, &format!("{queue}/poll?reclaim_older_than_ms=0"), None).await.ok();
    assert_eq!(again["id"], work["id"]);
    let started = rig.ask(&key, Method::POST, &format!("{item}/ack"), None).await.ok();
    assert_eq!(started["state"], "starting");
    assert!(started["secret"].is_null());
    assert!(rig.ask(&key, Method::GET, &format!("{queue}/poll?reclaim_older_than_ms=0"), None).await.ok().is_null());

    let beat = |last: &str| {
        format!("{item}/heartbeat?expected_last_heartbeat={}", last.replace('+', "%2B").replace(':', "%3A"))
    };
    let wrong = rig.ask(&token, Method::POST, &beat("2026-01-01T00:00:00Z"), None).await;
    wrong.refused(412, "invalid_request_error");
    assert_eq!(wrong.code(), "heartbeat_precondition_failed");
    let current = &wrong.body["error"]["details"]["current_state"];
    assert_eq!(
        (&current["last_heartbeat"], &current["lease_extended"], &current["state"]),
        (&Value::Null, &json!(false), &json!("starting"))
    );
    let first = rig.ask(&token, Method::POST, &beat("NO_HEARTBEAT"), None).await.ok();
    assert_eq!(
        (&first["type"], &first["state"], &first["lease_extended"]),
        (&json!("work_heartbeat"), &json!("active"), &json!(true))
    );
    let second = rig.ask(&token, Method::POST, &beat(first["last_heartbeat"].as_str().unwrap()), None).await.ok();
    assert_ne!(second["last_heartbeat"], first["last_heartbeat"]);
    rig.ask(&token, Method::POST, &beat(first["last_heartbeat"].as_str().unwrap()), None)
        .await
        .refused(412, "invalid_request_error");

    // The token reads and answers its session.
    let object = rig.ask(&token, Method::GET, &format!("/v1/sessions/{session}"), None).await.ok();
    assert_eq!(object["id"], session);
    let events = rig.until(&session, "session.status_idle", 1).await;
    let call = events.iter().find(|event| event["type"] == "agent.tool_use").unwrap();
    let answer = json!({"events": [{"type": "user.tool_result", "tool_use_id": call["id"], "is_error": false,
        "content": [{"type": "text", "text": ""}]}]});
    let events_path = format!("/v1/sessions/{session}/events");
    rig.ask(&token, Method::POST, &events_path, Some(&answer.to_string())).await.ok();
    rig.until(&session, "agent.message", 1).await;

    let changed = rig.post(&item, json!({"metadata": {"host": "a"}})).await.ok();
    assert_eq!(changed["metadata"], json!({"host": "a"}));
    let too_long = rig.post(&item, json!({"metadata": {"host": "x".repeat(513)}})).await;
    too_long.refused(400, "invalid_request_error");
    assert_eq!(too_long.code(), "invalid_metadata");
    let listed = rig.ask(&key, Method::GET, &queue, None).await.ok();
    assert_eq!(listed["data"].as_array().unwrap().len(), 1);

    let stopping = rig.post(&format!("{item}/stop"), json!({})).await.ok();
    assert_eq!(stopping["state"], "stopping");
    let told = rig.ask(&token, Method::POST, &beat("whatever"), None).await.ok();
    assert_eq!(told["state"], "stopping");
    let stopped = rig.ask(&token, Method::POST, &format!("{item}/stop"), Some("{\"force\":true}")).await.ok();
    assert_eq!(stopped["state"], "stopped");
    let twice = rig.ask(&token, Method::POST, &format!("{item}/stop"), Some("{}")).await;
    twice.refused(409, "conflict_error");
    assert_eq!(twice.header("x-should-retry"), "false");
    rig.stop().await;
}

#[tokio::test]
async fn an_item_whose_worker_gives_up_is_offered_again() {
    let rig = Rig::start(CALL).await;
    let (agent, environment) = (rig.agent(json!([toolset()])).await, rig.environment().await);
    let key = rig.environment_key(&environment).await;
    let queue = format!("/v1/environments/{environment}/work");
    let session = rig.session(&agent, &environment, "What day is it?").await;
    rig.until(&session, "session.status_idle", 1).await;
    let poll = format!("{queue}/poll?block_ms=999");
    let first = rig.ask(&key, Method::GET, &poll, None).await.ok();
    rig.ask(&key, Method::POST, &format!("{queue}/{}/ack", id(&first)), None).await.ok();
    rig.ask(&token(&first), Method::POST, &format!("{queue}/{}/stop", id(&first)), Some("{\"force\":true}")).await.ok();
    let mut second = Value::Null;
    while second.is_null() {
        second = rig.ask(&key, Method::GET, &poll, None).await.ok();
    }
    assert_eq!(second["data"], first["data"]);
    assert_ne!(second["id"], first["id"]);
    // A session that is gone takes its item along, and polls go on.
    rig.post(&format!("/v1/sessions/{session}/archive"), json!({})).await.ok();
    assert!(rig.ask(&key, Method::GET, &format!("{queue}/poll?reclaim_older_than_ms=0"), None).await.ok().is_null());
    rig.stop().await;
}
