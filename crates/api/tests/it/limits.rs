//! What requests may hold, and what patches mean.

use palisade_api::*;
use serde_json::json;

#[test]
fn a_patch_has_three_states() {
    let update: AgentUpdate = serde_json::from_value(json!({"system": null, "description": "d"})).unwrap();
    assert_eq!(update.system, Patch::Null);
    assert_eq!(update.description, Patch::Value("d".to_owned()));
    assert_eq!(update.tools, Patch::Absent);
}

#[test]
fn unknown_fields_of_requests_are_named() {
    let wrong = serde_json::from_value::<AgentCreate>(json!({"model": "m", "name": "n", "colour": "red"}));
    assert!(wrong.unwrap_err().to_string().contains("colour"));
    let wrong = serde_json::from_value::<SendEvents>(json!({"events": [{"type": "user.interrupt", "force": true}]}));
    assert!(wrong.unwrap_err().to_string().contains("force"));
    let wrong = serde_json::from_value::<SendEvents>(json!({"events": [{"type": "agent.message"}]}));
    assert!(wrong.unwrap_err().to_string().contains("agent.message"));
}

#[test]
fn ids_are_strict_where_it_matters() {
    assert!(SessionId::parse("sesn_01abc").is_ok());
    for wrong in ["sesn_", "env_01", "sesn_a/b", "sesn_a b", &format!("sesn_{}", "x".repeat(129))] {
        assert!(SessionId::parse(wrong).is_err(), "{wrong}");
    }
    let id = SessionId::from_bytes(&[0xff; 16]);
    assert_eq!(SessionId::parse(id.as_str()).unwrap(), id);
    assert_eq!(id.as_str().len(), "sesn_01".len() + 22);
}

#[test]
fn metadata_merges_key_by_key_within_its_limits() {
    let mut metadata: Metadata = serde_json::from_value(json!({"a": "1", "b": "2"})).unwrap();
    let patch: MetadataPatch = serde_json::from_value(json!({"a": null, "b": "", "c": "3"})).unwrap();
    let mut environment = metadata.clone();
    patch.apply(&mut metadata);
    assert_eq!(serde_json::to_value(&metadata).unwrap(), json!({"b": "", "c": "3"}));
    patch.apply_with_empty_as_null(&mut environment);
    assert_eq!(serde_json::to_value(&environment).unwrap(), json!({"c": "3"}));
    let long: Metadata = serde_json::from_value(json!({"k": "v".repeat(513)})).unwrap();
    assert!(long.validate().unwrap_err().contains("\"k\""));
}

#[test]
fn tools_resolve_to_their_documented_defaults() {
    let param: ToolParam = serde_json::from_value(json!({
        "type": "agent_toolset_20260401",
        "default_config": {"enabled": false},
        "configs": [{"name": "bash", "enabled": true, "permission_policy": {"type": "always_ask"}}],
    }))
    .unwrap();
    let Tool::AgentToolset(toolset) = param.resolve() else { panic!("another kind of tool") };
    let bash = toolset.tool("bash").unwrap();
    assert!(bash.enabled);
    assert_eq!(bash.policy, PermissionPolicy::AlwaysAsk {});
    let read = toolset.tool("read").unwrap();
    assert!(!read.enabled);
    assert_eq!(read.policy, PermissionPolicy::AlwaysAllow {});
    assert!(toolset.tool("rm").is_none());
}

#[test]
fn secrets_do_not_show() {
    let secret: WorkSecret = serde_json::from_value(json!({"sessions_token": "sk-ant-req-hush"})).unwrap();
    assert!(!format!("{secret:?}").contains("hush"));
}
