//! Event streams.

use std::sync::Arc;
use std::time::Duration;

use palisade_store::Memory;
use serde_json::json;

use crate::rig::{Rig, message, toolset};

const LONG: &str = r#"
per_turn: true
steps:
  - reply: [{thinking: Hm.}, {text: "A text that comes in many small pieces, one after the other."}]
    chunk: 4
    chunk_delay_ms: 2
"#;

#[tokio::test]
async fn a_stream_shows_each_event_once_and_previews_to_those_who_asked() {
    let rig = Rig::start(LONG).await;
    let (agent, environment) = (rig.agent(json!([toolset()])).await, rig.environment().await);
    let body = json!({"agent": agent, "environment_id": environment});
    let session = crate::rig::id(&rig.post("/v1/sessions", body).await.ok());
    // The head comes at once, although nothing happens.
    let mut plain = rig.stream(&rig.api, &session, "?beta=true").await;
    let mut previews = rig.stream(&rig.api, &session, "?event_deltas%5B%5D=agent.message").await;
    rig.send(&session, json!([message("Tell me.")])).await.ok();
    let seen = plain.until("session.status_idle").await;
    let with_previews = previews.until("session.status_idle").await;

    // Queued, and again once processed, with the same id.
    assert_eq!(seen[0]["type"], "user.message");
    assert!(seen[0]["processed_at"].is_null());
    let processed: Vec<_> = seen.iter().filter(|event| event["processed_at"].is_string()).cloned().collect();
    assert_eq!(processed, rig.events(&session).await);
    assert!(processed.iter().any(|event| event["id"] == seen[0]["id"]));
    assert_eq!(seen.len(), processed.len() + 1);

    let starts: Vec<_> = with_previews.iter().filter(|event| event["type"] == "event_start").collect();
    assert_eq!(starts.len(), 1);
    assert_eq!(starts[0]["event"]["type"], "agent.message");
    let of = |kind: &str| with_previews.iter().position(|event| event["type"] == kind).unwrap();
    assert!(of("event_start") < of("event_delta") && of("event_delta") < of("agent.message"));
    let text: String = with_previews
        .iter()
        .filter(|event| event["type"] == "event_delta")
        .map(|event| {
            assert_eq!(event["event_id"], starts[0]["event"]["id"]);
            event["delta"]["content"]["text"].as_str().unwrap()
        })
        .collect();
    let said = &with_previews[of("agent.message")];
    assert_eq!(said["id"], starts[0]["event"]["id"]);
    assert_eq!(said["content"][0]["text"], text);

    for query in
        ["?event_deltas[]=agent.tool_use".to_owned(), format!("?{}", "event_deltas=agent.message&".repeat(101))]
    {
        let bad = rig.get(&format!("/v1/sessions/{session}/events/stream{query}")).await;
        assert!(bad.refused(400, "invalid_request_error").starts_with("event_deltas"));
    }

    // The end: the last event, and then a clean end.
    rig.delete(&format!("/v1/sessions/{session}")).await.ok();
    assert_eq!(plain.until("session.deleted").await.len(), 1);
    assert!(plain.next().await.is_none());
    rig.stop().await;
}

#[tokio::test]
async fn a_reader_that_falls_behind_catches_up_from_the_log() {
    let rig = Rig::start(LONG).await;
    let (agent, environment) = (rig.agent(json!([toolset()])).await, rig.environment().await);
    let body = json!({"agent": agent, "environment_id": environment});
    let session = crate::rig::id(&rig.post("/v1/sessions", body).await.ok());
    let mut slow = rig.stream(&rig.api, &session, "?event_deltas[]=agent.message").await;
    // 24 MB in 160 events: more than the sockets' buffers and the feed's ring hold while nobody reads.
    for turn in 0..160 {
        let tool = |half: char| {
            json!({"type": "custom", "name": format!("tool_{half}"), "input_schema": {"type": "object"},
                "description": format!("{turn}{}", half.to_string().repeat(75_000))})
        };
        let change = json!({"agent": {"tools": [tool('a'), tool('b')]}});
        rig.post(&format!("/v1/sessions/{session}"), change).await.ok();
    }
    rig.send(&session, json!([message("Now.")])).await.ok();
    rig.until_last(&session, "session.status_idle").await;
    let seen = slow.until("session.status_idle").await;
    let logged: Vec<_> = seen.iter().filter(|event| event["processed_at"].is_string()).cloned().collect();
    let listed = rig.events(&session).await;
    assert_eq!(logged.len(), listed.len());
    assert!(logged == listed, "the stream and the list differ");
    // A fragment never comes without its start.
    let mut started = Vec::new();
    for event in &seen {
        match event["type"].as_str().unwrap() {
            "event_start" => started.push(event["event"]["id"].clone()),
            "event_delta" => assert!(started.contains(&event["event_id"])),
            _ => {}
        }
    }
    rig.stop().await;
}

#[tokio::test]
async fn streams_ping_rotate_for_workers_and_end_with_the_server() {
    let rig = Rig::start_with(LONG, Arc::new(Memory::new()), |options| {
        options.ping = Duration::from_millis(20);
        options.rotate_streams = Some(Duration::from_millis(100));
    })
    .await;
    let (agent, environment) = (rig.agent(json!([toolset()])).await, rig.environment().await);
    let key = rig.environment_key(&environment).await;
    let session =
        crate::rig::id(&rig.post("/v1/sessions", json!({"agent": agent, "environment_id": environment})).await.ok());
    let mut worker = rig.stream(&key, &session, "").await;
    // How many come before it ends depends on the machine: none after a pause.
    while let Some((name, _)) = worker.next().await {
        assert_eq!(name, "ping");
    }
    let mut client = rig.stream(&rig.api, &session, "").await;
    // Longer than a worker's stream lives.
    for _ in 0..10 {
        assert_eq!(client.next().await.unwrap().0, "ping");
    }
    rig.begin_stop();
    while client.next().await.is_some() {}
    rig.stop().await;
}
