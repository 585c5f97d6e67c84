//! Agents and environments: versions, changes, archives.

use serde_json::{Value, json};

use crate::rig::{Rig, id, toolset};

#[tokio::test]
async fn agents_have_versions() {
    let rig = Rig::start("otherwise: {reply: []}").await;
    let body = json!({
        "name": "Reviewer", "model": {"id": "model-a", "effort": "low"}, "system": "Read.", "description": "",
        "metadata": {"team": "a", "tier": "1"},
        "mcp_servers": [{"type": "url", "name": "tracker", "url": "https://tracker.example.com/mcp"}],
        "tools": [
            {"type": "agent_toolset_20260401", "default_config": {"enabled": false}, "configs": [
                {"name": "read", "enabled": true},
                {"name": "web_fetch", "allowed_domains": ["docs.example.com"],
                 "url_sources": {"user_input": "all", "client_tool_results": {"type": "only", "tools": [{"type": "tool_reference", "name": "lookup"}]}}}]},
            {"type": "mcp_toolset", "mcp_server_name": "tracker"},
            {"type": "custom", "name": "lookup", "description": "Looks up.", "input_schema": {"type": "object"}}],
        "skills": [{"type": "custom", "skill_id": "skill_a"}],
    });
    let agent = rig.post("/v1/agents", body).await.ok();
    let path = format!("/v1/agents/{}", id(&agent));
    assert_eq!((&agent["type"], &agent["version"]), (&json!("agent"), &json!(1)));
    assert_eq!(agent["model"], json!({"id": "model-a", "effort": {"type": "low"}, "speed": "standard"}));
    assert_eq!(agent["execution_identity"], json!({"type": "service_account"}));
    assert_eq!(agent["skills"][0]["version"], "latest");
    assert_eq!(
        agent["tools"][1]["default_config"],
        json!({"enabled": true, "permission_policy": {"type": "always_ask"}})
    );
    let sources = &agent["tools"][0]["configs"][1]["url_sources"];
    assert_eq!(sources["user_input"], json!({"type": "all"}));
    assert!(sources["server_tool_results"].is_null());
    assert!(agent["archived_at"].is_null() && agent["multiagent"].is_null());

    // Nothing changes, so that no version is made.
    let same = rig.post(&path, json!({"name": "Reviewer", "metadata": {"team": "a"}, "model": "model-a"})).await.ok();
    assert_eq!(same, agent);
    let second =
        rig.post(&path, json!({"version": 1, "system": "", "metadata": {"tier": null, "new": "x"}})).await.ok();
    assert_eq!((&second["version"], &second["system"]), (&json!(2), &Value::Null));
    assert_eq!(second["metadata"], json!({"team": "a", "new": "x"}));
    assert_eq!(second["created_at"], agent["created_at"]);
    for null in [json!({"name": null}), json!({"model": null})] {
        rig.post(&path, null).await.refused(400, "invalid_request_error");
    }
    let stale = rig.post(&path, json!({"version": 1})).await;
    stale.refused(409, "conflict_error");
    assert_eq!(stale.header("x-should-retry"), "false");
    let third = rig.post(&path, json!({"model": "model-b"})).await.ok();
    assert_eq!(third["model"]["effort"], json!({"type": "high"}));

    assert_eq!(rig.get(&format!("{path}?version=1")).await.ok(), agent);
    assert_eq!(rig.get(&path).await.ok(), third);
    rig.get(&format!("{path}?version=9")).await.refused(404, "not_found_error");
    rig.get(&format!("{path}?version=0")).await.refused(400, "invalid_request_error");
    let versions = rig.get(&format!("{path}/versions?limit=2")).await.ok();
    assert_eq!(
        versions["data"].as_array().unwrap().iter().map(|v| v["version"].as_u64().unwrap()).collect::<Vec<_>>(),
        [3, 2]
    );
    let rest = rig.get(&format!("{path}/versions?limit=2&page={}", versions["next_page"].as_str().unwrap())).await.ok();
    assert_eq!(rest["data"], json!([agent]));
    assert!(rest["next_page"].is_null());

    let archived = rig.ask(&rig.api, reqwest::Method::POST, &format!("{path}/archive"), None).await.ok();
    assert!(archived["archived_at"].is_string());
    let again = rig.ask(&rig.api, reqwest::Method::POST, &format!("{path}/archive"), None).await.ok();
    assert_eq!(again, archived);
    rig.post(&path, json!({"name": "Other"})).await.refused(400, "invalid_request_error");
    assert_eq!(rig.get("/v1/agents").await.ok()["data"], json!([]));
    assert_eq!(rig.get("/v1/agents?include_archived=true").await.ok()["data"], json!([archived]));
    rig.stop().await;
}

#[tokio::test]
async fn environments_change_within_their_type() {
    let rig = Rig::start("otherwise: {reply: []}").await;
    let cloud = rig.post("/v1/environments", json!({"name": "cloud", "metadata": {"a": "1", "b": "2"}})).await.ok();
    assert_eq!(cloud["config"]["networking"], json!({"type": "unrestricted"}));
    assert_eq!(cloud["config"]["packages"]["pip"], json!([]));
    let path = format!("/v1/environments/{}", id(&cloud));
    let limited = json!({"config": {"type": "cloud", "networking": {"type": "limited", "allowed_hosts": ["*.example.com"], "allow_package_managers": true},
        "packages": {"pip": ["ruff"]}}, "description": "", "metadata": {"a": "", "b": null, "c": "3"}});
    let changed = rig.post(&path, limited).await.ok();
    assert_eq!(changed["config"]["networking"]["allow_mcp_servers"], false);
    assert_eq!(changed["metadata"], json!({"c": "3"}));
    assert_eq!(changed["description"], "");
    let kept = rig
        .post(&path, json!({"config": {"type": "cloud", "networking": {"type": "limited", "allow_mcp_servers": true}}}))
        .await
        .ok();
    assert_eq!(kept["config"]["networking"]["allowed_hosts"], json!(["*.example.com"]));
    assert_eq!(kept["config"]["packages"]["pip"], json!(["ruff"]));
    let refused = rig.post(&path, json!({"config": {"type": "self_hosted"}})).await;
    refused.refused(400, "invalid_request_error");
    assert_eq!(refused.code(), "invalid_config_type_change");
    let refused = rig.post(&path, json!({"metadata": {"x".repeat(65): "1"}})).await;
    refused.refused(400, "invalid_request_error");
    assert_eq!(refused.code(), "invalid_metadata");
    for body in [
        json!({"config": {"type": "cloud", "networking": {"type": "limited", "allowed_hosts": ["https://example.com"]}}}),
        json!({"config": {"type": "cloud", "networking": {"type": "limited", "allow_package_managers": false}}}),
        json!({"config": {"type": "moon"}}),
        json!({"scope": "account"}),
        json!({"name": ""}),
    ] {
        rig.post(&path, body).await.refused(400, "invalid_request_error");
    }
    let archived = rig.post(&format!("{path}/archive"), json!({})).await.ok();
    assert!(archived["archived_at"].is_string());
    let refused = rig.post(&path, json!({"name": "x"})).await;
    refused.refused(400, "invalid_request_error");
    assert_eq!(refused.code(), "environment_archived");
    let agent = rig.agent(json!([toolset()])).await;
    let refused = rig.post("/v1/sessions", json!({"agent": agent, "environment_id": cloud["id"]})).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (400, "environment_archived"));
    assert_eq!(rig.delete(&path).await.ok(), json!({"id": cloud["id"], "type": "environment_deleted"}));
    rig.get(&path).await.refused(404, "not_found_error");
    rig.stop().await;
}
