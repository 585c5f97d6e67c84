//! Whole sessions: what a client program does from beginning to end.

use serde_json::json;

use crate::rig::{Rig, id, message, toolset, types};

const WEATHER: &str = r#"
steps:
  - reply: [{text: Let me see.}, {tool: {name: weather, input: {city: Oslo}}}]
  - reply: [{text: "It is {{last_result}}."}]
otherwise: {reply: [{text: Again.}]}
"#;

fn weather() -> serde_json::Value {
    json!({"type": "custom", "name": "weather", "description": "The weather in a city.",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}})
}

#[tokio::test]
async fn a_custom_tool_is_answered_and_the_turn_ends() {
    let rig = Rig::start(WEATHER).await;
    let (agent, environment) = (rig.agent(json!([weather()])).await, rig.environment().await);
    let session = rig.session(&agent, &environment, "How is Oslo?").await;

    let events = rig.until(&session, "session.status_idle", 1).await;
    let call = events.iter().find(|event| event["type"] == "agent.custom_tool_use").unwrap();
    assert_eq!(call["input"], json!({"city": "Oslo"}));
    let idle = events.last().unwrap();
    assert_eq!(idle["stop_reason"], json!({"type": "requires_action", "event_ids": [call["id"]]}));
    assert!(idle["stop_details"].is_null() && idle.as_object().unwrap().contains_key("stop_details"));
    let refused = rig.send(&session, json!([message("Hello?")])).await;
    assert!(refused.refused(400, "invalid_request_error").contains("waiting on responses to events"));

    let answer = json!([{"type": "user.custom_tool_result", "custom_tool_use_id": call["id"],
        "content": [{"type": "text", "text": "cold"}]}]);
    let sent = rig.send(&session, answer.clone()).await.ok();
    assert_eq!(sent["data"][0]["custom_tool_use_id"], call["id"]);
    assert!(sent["data"][0]["processed_at"].is_string());
    // A second answer is taken and has no effect.
    rig.send(&session, answer).await.ok();

    let events = rig.until(&session, "session.status_idle", 2).await;
    let last = &types(&events)[events.len() - 3..];
    assert_eq!(last, ["session.thread_status_idle", "session.usage", "session.status_idle"]);
    let said = events.iter().rfind(|event| event["type"] == "agent.message").unwrap();
    assert_eq!(said["content"][0]["text"], "It is cold.");
    assert_eq!(events.last().unwrap()["stop_reason"]["type"], "end_turn");

    let object = rig.get(&format!("/v1/sessions/{session}")).await.ok();
    assert_eq!(object["status"], "idle");
    assert!(object["usage"]["input_tokens"].as_u64().unwrap() > 0);
    let archived = rig.post(&format!("/v1/sessions/{session}/archive"), json!({})).await.ok();
    assert_eq!(archived["status"], "terminated");
    assert!(archived["archived_at"].is_string());
    let late = rig.send(&session, json!([message("Still there?")])).await;
    late.refused(400, "invalid_request_error");
    let deleted = rig.delete(&format!("/v1/sessions/{session}")).await.ok();
    assert_eq!(deleted, json!({"id": session, "type": "session_deleted"}));
    rig.get(&format!("/v1/sessions/{session}")).await.refused(404, "not_found_error");
    rig.stop().await;
}

const ASK: &str = r#"
steps:
  - reply: [{tool: {name: bash, input: {command: date}}}, {tool: {name: bash, input: {command: ls}}}]
otherwise: {reply: [{text: Done.}]}
"#;

#[tokio::test]
async fn a_person_allows_one_call_and_denies_another() {
    let rig = Rig::start(ASK).await;
    let mut tools = toolset();
    tools["default_config"] = json!({"permission_policy": {"type": "always_ask"}});
    let (agent, environment) = (rig.agent(json!([tools])).await, rig.environment().await);
    let session = rig.session(&agent, &environment, "Look around.").await;
    let events = rig.until(&session, "session.status_idle", 1).await;
    let calls: Vec<&str> = events
        .iter()
        .filter(|event| event["type"] == "agent.tool_use")
        .map(|event| event["id"].as_str().unwrap())
        .collect();
    assert_eq!(calls.len(), 2);
    let result = |call: &str| json!({"type": "user.tool_result", "tool_use_id": call, "content": []});
    let early = rig.send(&session, json!([result(calls[0])])).await;
    assert!(early.refused(400, "invalid_request_error").contains("user.tool_confirmation"));

    // One bad event refuses all of them.
    let confirm =
        |call: &str, verdict: &str| json!({"type": "user.tool_confirmation", "tool_use_id": call, "result": verdict});
    let mixed = rig.send(&session, json!([confirm(calls[0], "allow"), confirm("sevt_unknown", "allow")])).await;
    assert!(mixed.refused(400, "invalid_request_error").starts_with("events.1.tool_use_id"));

    let deny =
        json!({"type": "user.tool_confirmation", "tool_use_id": calls[1], "result": "deny", "deny_message": "No."});
    rig.send(&session, json!([confirm(calls[0], "allow"), deny])).await.ok();
    let done = rig.send(&session, json!([result(calls[0])])).await;
    done.ok();
    let events = rig.until(&session, "agent.message", 1).await;
    let refused = events.iter().find(|event| event["type"] == "agent.tool_result").unwrap();
    assert_eq!(refused["tool_use_id"], calls[1]);
    assert_eq!(refused["is_error"], true);
    rig.stop().await;
}

#[tokio::test]
async fn an_interrupt_closes_what_is_open() {
    let rig = Rig::start(ASK).await;
    let (agent, environment) = (rig.agent(json!([toolset()])).await, rig.environment().await);
    let session = rig.session(&agent, &environment, "Look around.").await;
    rig.until(&session, "session.status_idle", 1).await;
    let running =
        rig.post(&format!("/v1/sessions/{session}"), json!({"title": "Tour", "metadata": {"a": "1"}})).await.ok();
    assert_eq!(running["title"], "Tour");
    rig.send(&session, json!([{"type": "user.interrupt"}, message("Just say it.")])).await.ok();
    let events = rig.until(&session, "agent.message", 1).await;
    let closed: Vec<_> = events.iter().filter(|event| event["type"] == "agent.tool_result").collect();
    assert_eq!(closed.len(), 2);
    assert!(closed.iter().all(|event| event["is_error"] == true));
    let changed = events.iter().find(|event| event["type"] == "session.updated").unwrap();
    assert_eq!(changed["metadata"], json!({"a": "1"}));
    rig.stop().await;
}

#[tokio::test]
async fn a_session_pins_and_overrides_its_agent() {
    let rig = Rig::start(WEATHER).await;
    let (agent, environment) = (rig.agent(json!([toolset(), weather()])).await, rig.environment().await);
    let of = |overrides: serde_json::Value| {
        let mut agent_ref = json!({"type": "agent_with_overrides", "id": agent});
        agent_ref.as_object_mut().unwrap().extend(overrides.as_object().unwrap().clone());
        json!({"agent": agent_ref, "environment_id": environment})
    };
    let body = of(json!({"system": "Be brief.", "tools": [], "model": {"id": "model-b", "effort": "low"}}));
    let session = rig.post("/v1/sessions", body).await.ok();
    assert_eq!(session["agent"]["id"], agent);
    assert_eq!(session["agent"]["tools"], json!([]));
    assert_eq!(session["agent"]["system"], "Be brief.");
    assert_eq!(session["agent"]["model"]["effort"], json!({"type": "high"}));
    assert_eq!(session["status"], "idle");
    for field in ["title", "budget", "archived_at", "deployment_id"] {
        assert!(session.as_object().unwrap().get(field).is_some_and(serde_json::Value::is_null), "{field}");
    }
    let refused = rig.post("/v1/sessions", of(json!({"model": null}))).await;
    refused.refused(400, "invalid_request_error");
    assert_eq!(refused.code(), "agent_model_required");
    let refused =
        rig.post("/v1/sessions", of(json!({"tools": [], "skills": [{"type": "custom", "skill_id": "skill_a"}]}))).await;
    assert!(refused.refused(400, "invalid_request_error").starts_with("skills"));
    let refused = rig.post("/v1/sessions", of(json!({"tools": [{"type": "custom", "bogus": 1}]}))).await;
    assert!(refused.refused(400, "invalid_request_error").contains("bogus"));

    // A later version does not touch the session; a new one gets it.
    rig.post(&format!("/v1/agents/{agent}"), json!({"system": "Be long."})).await.ok();
    let again = rig.get(&format!("/v1/sessions/{}", id(&session))).await.ok();
    assert_eq!(again["agent"]["system"], "Be brief.");
    let pinned = json!({"agent": {"type": "agent", "id": agent, "version": 1}, "environment_id": environment});
    assert_eq!(rig.post("/v1/sessions", pinned).await.ok()["agent"]["version"], 1);
    let newest = json!({"agent": agent, "environment_id": environment});
    assert_eq!(rig.post("/v1/sessions", newest).await.ok()["agent"]["system"], "Be long.");

    let deleted = rig.delete(&format!("/v1/environments/{environment}")).await;
    deleted.refused(409, "conflict_error");
    assert_eq!(deleted.header("x-should-retry"), "false");
    rig.post(&format!("/v1/agents/{agent}/archive"), json!({})).await.ok();
    let refused = rig.post("/v1/sessions", json!({"agent": agent, "environment_id": environment})).await;
    assert!(refused.refused(400, "invalid_request_error").contains("archived"));
    rig.stop().await;
}
