//! What is refused, and how plainly.

use reqwest::Method;
use serde_json::{Value, json};

use crate::rig::{PRICED, Rig, message, toolset};

#[tokio::test]
async fn agents_that_break_a_rule_are_refused_with_the_field() {
    let rig = Rig::start("otherwise: {reply: []}").await;
    let with = |field: &str, value: Value| {
        let mut body = json!({"name": "a", "model": "m"});
        body[field] = value;
        body
    };
    let custom = |name: &str, schema: Value| {
        with("tools", json!([{"type": "custom", "name": name, "description": "d", "input_schema": schema}]))
    };
    let object = json!({"type": "object"});
    let web = |name: &str, key: &str, value: Value| {
        let mut config = json!({"name": name});
        config[key] = value;
        with("tools", json!([{"type": "agent_toolset_20260401", "configs": [config]}]))
    };
    let server = json!({"type": "url", "name": "s", "url": "https://example.com"});
    let many: serde_json::Map<_, _> = (0..17).map(|n| (n.to_string(), json!(""))).collect();
    let cases = [
        (json!({"model": "m"}), "name"),
        (json!({"name": "a"}), "model"),
        (with("name", json!("")), "name"),
        (with("name", json!("x".repeat(257))), "name"),
        (with("name", json!(5)), "name"),
        (with("description", json!("x".repeat(2049))), "description"),
        (with("system", json!("x".repeat(100_001))), "system"),
        (with("nmae", json!("a")), "nmae"),
        (with("model", json!({"id": "m", "effort": "huge"})), "model.effort"),
        (with("model", json!({"id": "m", "sped": "fast"})), "sped"),
        (with("model", json!({"id": ""})), "model.id"),
        (with("metadata", Value::Object(many)), "metadata"),
        (with("metadata", json!({"a": 1})), "metadata.a"),
        (with("multiagent", json!({"type": "coordinator", "agents": ["x"]})), "multiagent"),
        (with("execution_identity", json!({"type": "aws_role", "role_arn": "x"})), "execution_identity"),
        (with("skills", json!([{"type": "custom", "skill_id": "s"}])), "skills"),
        (with("mcp_servers", json!([server])), "mcp_servers.0"),
        (with("mcp_servers", json!([{"type": "url", "name": "s", "url": "ftp://x"}])), "mcp_servers.0.url"),
        (with("tools", json!([{"type": "mcp_toolset", "mcp_server_name": "s"}])), "tools.0.mcp_server_name"),
        (
            with("tools", json!([{"type": "agent_toolset_20260401", "configs": [{"name": "rm"}]}])),
            "tools.0.configs.0.name",
        ),
        (with("tools", json!([{"type": "agent_toolset_20260401", "bogus": 1}])), "bogus"),
        (with("tools", json!([toolset(), toolset()])), "tools.1.type"),
        (with("tools", json!([{"type": "hammer"}])), "tools.0"),
        (custom("bash", object.clone()), "tools.0.name"),
        (custom("mcp__x", object.clone()), "tools.0.name"),
        (custom("ant__x", object.clone()), "tools.0.name"),
        (custom("a b", object.clone()), "tools.0.name"),
        (custom("x", json!({"type": "string"})), "tools.0.input_schema.type"),
        (custom("x", json!({"type": "object", "anyOf": []})), "tools.0.input_schema.anyOf"),
        (
            custom("x", json!({"type": "object", "properties": {"a": {"$ref": "#"}}})),
            "tools.0.input_schema.properties.a.$ref",
        ),
        (custom("x", json!({"type": "object", "properties": {"a".repeat(65): {}}})), "tools.0.input_schema.properties"),
        (web("web_search", "allowed_domains", json!([])), "tools.0.configs.0.allowed_domains"),
        (web("web_search", "allowed_domains", json!(["https://example.com"])), "tools.0.configs.0.allowed_domains"),
        (web("web_search", "blocked_domains", json!(["127.0.0.1"])), "tools.0.configs.0.blocked_domains"),
        (web("web_search", "blocked_domains", json!(["printer.local"])), "tools.0.configs.0.blocked_domains"),
        (web("web_search", "blocked_domains", json!(["com"])), "tools.0.configs.0.blocked_domains"),
        (web("web_fetch", "blocked_domains", json!(["example.com/a"])), "tools.0.configs.0.blocked_domains"),
        (
            web("web_fetch", "allowed_domains", json!(["a.example.com", "A.example.com"])),
            "tools.0.configs.0.allowed_domains",
        ),
        (web("web_fetch", "max_content_tokens", json!(0)), "tools.0.configs.0.max_content_tokens"),
        (web("web_search", "user_location", json!({"type": "exact"})), "tools.0.configs.0.user_location"),
        (
            web(
                "web_fetch",
                "url_sources",
                json!({"user_input": "none", "client_tool_results": "none", "server_tool_results": {"type": "none"}}),
            ),
            "tools.0.configs.0.url_sources",
        ),
        (web("read", "allowed_domains", json!(["example.com"])), "tools.0.configs.0.allowed_domains"),
    ];
    for (body, field) in cases {
        let refused = rig.post("/v1/agents", body).await.refused(400, "invalid_request_error");
        assert!(refused.contains(field), "{field}: {refused}");
    }
    for text in ["{", "[]", "\"x\"", "{} {}", "nul"] {
        rig.ask(&rig.api, Method::POST, "/v1/agents", Some(text)).await.refused(400, "invalid_request_error");
    }
    rig.stop().await;
}

#[tokio::test]
async fn sessions_and_events_that_break_a_rule_are_refused() {
    let rig = Rig::start("otherwise: {reply: [{text: Done.}]}").await;
    let (agent, environment) = (rig.agent(json!([toolset()])).await, rig.environment().await);
    let with = |field: &str, value: Value| {
        let mut body = json!({"agent": agent, "environment_id": environment});
        body[field] = value;
        body
    };
    let budget = |amount: &str, currency: &str| json!({"type": "limit", "max_list_cost": {"amount": amount, "currency": currency}});
    let cases = [
        (with("agent", json!({"type": "agent", "id": agent, "vresion": 1})), "vresion"),
        (with("agent", json!({"type": "agent", "id": agent, "version": 0})), "agent.version"),
        (with("agent", json!(7)), "agent"),
        (with("vault_ids", json!(["vlt_a"])), "vault_ids"),
        (with("resources", json!([{"type": "file", "file_id": "file_a"}])), "resources.0"),
        (with("resources", json!([{"type": "github_repository", "url": "https://github.com/a/b"}])), "resources.0"),
        (with("initial_events", json!([{"type": "system.message", "content": []}])), "initial_events.0"),
        (
            with("initial_events", json!([message("ok"), {"type": "user.message", "content": []}])),
            "initial_events.1.content",
        ),
        (with("initial_events", Value::Array(vec![message("x"); 51])), "initial_events"),
        (
            with("initial_events", json!([{"type": "user.define_outcome", "description": "d", "rubric": {}}])),
            "initial_events.0",
        ),
        (with("budget", budget("100", "USD")), "model_not_budgetable"),
        (with("metadata", json!({"": "x"})), "metadata"),
        (with("title", json!("x".repeat(300))), "title"),
        (with("bogus", json!(1)), "bogus"),
    ];
    for (body, field) in cases {
        let refused = rig.post("/v1/sessions", body).await.refused(400, "invalid_request_error");
        assert!(refused.contains(field), "{field}: {refused}");
    }
    for (body, noun) in [
        (with("agent", json!("agent_01missing")), "agent"),
        (with("agent", json!(environment)), "agent"),
        (with("agent", json!({"type": "agent", "id": agent, "version": 9})), "version 9"),
        (with("environment_id", json!("env_01missing")), "environment"),
    ] {
        assert!(rig.post("/v1/sessions", body).await.refused(404, "not_found_error").contains(noun));
    }
    let priced = json!({"name": "p", "model": PRICED});
    let priced = crate::rig::id(&rig.post("/v1/agents", priced).await.ok());
    for (amount, currency) in [("0", "USD"), ("012", "USD"), ("1.5", "USD"), ("-1", "USD"), ("100", "EUR")] {
        let body = json!({"agent": priced, "environment_id": environment, "budget": budget(amount, currency)});
        assert!(
            rig.post("/v1/sessions", body).await.refused(400, "invalid_request_error").contains("budget.max_list_cost")
        );
    }
    let body = json!({"agent": priced, "environment_id": environment, "budget": budget("100", "USD")});
    let session = crate::rig::id(&rig.post("/v1/sessions", body).await.ok());

    // One bad event refuses all: nothing of the request is seen.
    let cases = [
        (json!([]), "events"),
        (json!([message("a"), {"type": "user.shout"}]), "events.1"),
        (json!([message("a"), {"type": "user.message", "content": [{"type": "redacted"}]}]), "events.1.content"),
        (json!([message("a"), {"type": "user.message", "content": "text"}]), "events.1"),
        (json!([message("a"), {"type": "user.message", "content": [], "extra": 1}]), "extra"),
        (json!([message("a"), {"type": "user.tool_result", "tool_use_id": "sevt_01unknown"}]), "events.1.tool_use_id"),
        (
            json!([message("a"), {"type": "user.custom_tool_result", "custom_tool_use_id": "sevt_01unknown"}]),
            "events.1.custom_tool_use_id",
        ),
        (
            json!([message("a"), {"type": "user.tool_confirmation", "tool_use_id": "sevt_01unknown", "result": "allow"}]),
            "events.1.tool_use_id",
        ),
        (json!([{"type": "system.message", "content": [{"type": "text", "text": "x"}]}]), "events.0"),
    ];
    for (events, field) in cases {
        let refused = rig.send(&session, events).await.refused(400, "invalid_request_error");
        assert!(refused.contains(field), "{field}: {refused}");
    }
    rig.send("sesn_01missing", json!([message("a")])).await.refused(404, "not_found_error");
    assert_eq!(rig.events(&session).await, Vec::<Value>::new());
    for (change, code) in [
        (json!({"budget": budget("1", "EUR")}), ""),
        (json!({"vault_ids": []}), ""),
        (json!({"agent": {"system": "x"}}), ""),
    ] {
        let refused = rig.post(&format!("/v1/sessions/{session}"), change).await;
        refused.refused(400, "invalid_request_error");
        assert_eq!(refused.code(), code);
    }
    let removed = rig.post(&format!("/v1/sessions/{session}"), json!({"budget": null})).await.ok();
    assert!(removed["budget"].is_null());
    let late = rig.post(&format!("/v1/sessions/{session}"), json!({"budget": budget("100", "USD")})).await;
    assert_eq!((late.status.as_u16(), late.code()), (400, "budget_create_only"));

    // Paths and methods.
    let reply = rig.ask(&rig.api, Method::PUT, "/v1/agents", Some("{}")).await;
    reply.refused(405, "invalid_request_error");
    assert!(reply.header("allow").contains("POST"));
    rig.get("/v1/nothing").await.refused(404, "not_found_error");
    let add = rig.post(&format!("/v1/sessions/{session}/resources"), json!({})).await;
    assert!(add.refused(404, "not_found_error").contains("does not serve"));
    assert_eq!(rig.get(&format!("/v1/sessions/{session}/resources")).await.ok()["data"], json!([]));
    rig.get("/nothing").await.refused(404, "not_found_error");
    for path in ["/v1/vaults", "/v1/skills/x/versions", "/v1/models", "/v1/sessions/sesn_a/threads"] {
        assert!(rig.get(path).await.refused(404, "not_found_error").contains("does not serve"));
    }
    rig.stop().await;
}
