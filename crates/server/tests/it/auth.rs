//! Who may do what, and what nobody learns about objects of others.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use palisade_server::keys;
use palisade_store::{Memory, Store};
use reqwest::Method;
use serde_json::{Value, json};

use crate::rig::{Rig, id, toolset};

const CALL: &str = "steps: [{reply: [{tool: {name: bash, input: {command: date}}}]}]";

#[tokio::test]
async fn each_kind_of_credential_has_its_operations() {
    let rig = Rig::start(CALL).await;
    let (agent, environment) = (rig.agent(json!([toolset()])).await, rig.environment().await);
    let key = rig.environment_key(&environment).await;
    let session = rig.session(&agent, &environment, "Go.").await;
    let mut work = Value::Null;
    while work.is_null() {
        work = rig
            .ask(&key, Method::GET, &format!("/v1/environments/{environment}/work/poll?block_ms=999"), None)
            .await
            .ok();
    }
    let secret = URL_SAFE_NO_PAD.decode(work["secret"].as_str().unwrap()).unwrap();
    let secret: Value = serde_json::from_slice(&secret).unwrap();
    let token = secret["sessions_token"].as_str().unwrap().to_owned();
    assert!(
        token.starts_with("sk-ant-req-") && key.starts_with("sk-ant-oat01-") && rig.api.starts_with("sk-ant-api03-")
    );

    let (q, w) = (format!("/v1/environments/{environment}/work"), id(&work));
    let (get, post) = (Method::GET, Method::POST);
    // Operation, then whether an API key, an environment key and a sessions token may use it.
    let matrix = [
        (&get, "/v1/agents".to_owned(), [true, false, false]),
        (&get, format!("/v1/agents/{agent}"), [true, false, false]),
        (&get, "/v1/environments".to_owned(), [true, false, false]),
        (&get, format!("/v1/environments/{environment}"), [true, false, false]),
        (&get, "/v1/sessions".to_owned(), [true, false, false]),
        (&post, format!("/v1/sessions/{session}"), [true, false, false]),
        (&get, format!("/v1/sessions/{session}"), [true, true, true]),
        (&get, format!("/v1/sessions/{session}/events"), [true, true, true]),
        (&get, q.clone(), [false, true, false]),
        (&get, format!("{q}/poll"), [false, true, false]),
        (&get, format!("{q}/stats"), [true, true, false]),
        (&get, format!("{q}/{w}"), [true, false, false]),
        (&post, format!("{q}/{w}/ack"), [false, true, false]),
        (&post, format!("{q}/{w}/heartbeat?expected_last_heartbeat=NO_HEARTBEAT"), [false, true, true]),
        (&post, format!("{q}/{w}/stop"), [true, true, true]),
        (&post, format!("/v1/sessions/{session}/archive"), [true, false, false]),
    ];
    for (method, path, allowed) in matrix {
        for (credential, allowed) in [&rig.api, &key, &token].into_iter().zip(allowed) {
            let reply = rig.ask(credential, method.clone(), &path, None).await;
            if allowed {
                // The object may be past it, as the one before has just done the same.
                assert!(matches!(reply.status.as_u16(), 200 | 400 | 409 | 412), "{path}: {}", reply.body);
            } else {
                reply.refused(403, "permission_error");
            }
        }
    }

    // A forged, a truncated, a missing and an unknown credential.
    let forged = format!("{}x", &token[..token.len() - 1]);
    let (cut, unknown) = (&token[..40], "sk-ant-api03-unknown");
    for credential in [forged.as_str(), cut, unknown, "", "x"] {
        let reply = rig.ask(credential, Method::GET, "/v1/agents", None).await;
        reply.refused(401, "authentication_error");
    }
    let bare = crate::rig::read(rig.http.get(rig.url("/v1/agents")).send().await.unwrap()).await;
    bare.refused(401, "authentication_error");
    // Older SDKs.
    let old = rig
        .http
        .get(rig.url("/v1/agents?beta=true"))
        .header("x-api-key", &rig.api)
        .header("anthropic-version", "2023-06-01");
    crate::rig::read(old.send().await.unwrap()).await.ok();
    rig.stop().await;
}

#[tokio::test]
async fn nothing_leaks_across_environments() {
    let rig = Rig::start(CALL).await;
    let agent = rig.agent(json!([toolset()])).await;
    let (mine, theirs) = (rig.environment().await, rig.environment().await);
    let (my_key, their_key) = (rig.environment_key(&mine).await, rig.environment_key(&theirs).await);
    let session = rig.session(&agent, &theirs, "Go.").await;
    let mut work = Value::Null;
    while work.is_null() {
        work = rig
            .ask(&their_key, Method::GET, &format!("/v1/environments/{theirs}/work/poll?block_ms=999"), None)
            .await
            .ok();
    }
    let w = id(&work);
    let paths = |environment: &str, session: &str, work: &str| {
        [
            (Method::GET, format!("/v1/sessions/{session}")),
            (Method::GET, format!("/v1/sessions/{session}/events")),
            (Method::GET, format!("/v1/sessions/{session}/events/stream")),
            (Method::POST, format!("/v1/sessions/{session}/events")),
            (Method::GET, format!("/v1/environments/{environment}/work")),
            (Method::GET, format!("/v1/environments/{environment}/work/poll")),
            (Method::GET, format!("/v1/environments/{environment}/work/stats")),
            (Method::POST, format!("/v1/environments/{environment}/work/{work}/ack")),
            (Method::POST, format!("/v1/environments/{environment}/work/{work}/heartbeat")),
            (Method::POST, format!("/v1/environments/{environment}/work/{work}/stop")),
        ]
    };
    let (no_env, no_session, no_work) = ("env_01missing", "sesn_01missing", "work_01missing");
    let foreign = paths(&theirs, &session, &w).into_iter().chain(paths(&mine, &session, &w).into_iter().skip(7));
    let missing =
        paths(no_env, no_session, no_work).into_iter().chain(paths(&mine, no_session, no_work).into_iter().skip(7));
    for ((method, foreign), (_, missing)) in foreign.zip(missing) {
        let one = rig.ask(&my_key, method.clone(), &foreign, None).await.refused(404, "not_found_error");
        let other = rig.ask(&my_key, method, &missing, None).await.refused(404, "not_found_error");
        // The two answers differ in the id that was asked for and in nothing else.
        let neutral = |text: &str| {
            [&theirs, &session, &w, no_env, no_session, no_work]
                .iter()
                .fold(text.to_owned(), |text, id| text.replace(*id as &str, "ID"))
        };
        assert_eq!(neutral(&one), neutral(&other), "{foreign}");
    }
    // Ids of the wrong kind, and texts that are no ids.
    for path in [
        format!("/v1/sessions/{agent}"),
        "/v1/sessions/%2e%2e%2fx".to_owned(),
        format!("/v1/agents/{session}"),
        format!("/v1/environments/{session}"),
    ] {
        rig.get(&path).await.refused(404, "not_found_error");
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_revoked_key_is_refused_at_once_and_the_first_key_is_kept_private() {
    let store: Arc<dyn Store> = Arc::new(Memory::new());
    let dir = tempfile::tempdir().unwrap();
    let now = palisade_api::Timestamp::from_micros(1_000_000);
    let path = keys::bootstrap(&*store, dir.path(), now).await.unwrap().unwrap();
    assert_eq!(path, dir.path().join("bootstrap.key"));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(keys::bootstrap(&*store, dir.path(), now).await.unwrap().is_none());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let first = std::fs::read_to_string(&path).unwrap();

    let rig = Rig::start_with(CALL, store.clone(), |_| {}).await;
    rig.ask(&first, Method::GET, "/v1/agents", None).await.ok();
    let listed = keys::list(&*store).await.unwrap();
    assert_eq!(listed.len(), 2);
    assert!(!format!("{listed:?}").contains("sk-ant"));
    let bootstrap = listed.iter().find(|key| key.name == "bootstrap").unwrap();
    assert!(keys::revoke(&*store, &bootstrap.id, now).await.unwrap());
    assert!(!keys::revoke(&*store, &bootstrap.id, now).await.unwrap());
    rig.ask(&first, Method::GET, "/v1/agents", None).await.refused(401, "authentication_error");
    // A key of an environment that does not exist cannot be made, and one goes with its environment.
    let kind = keys::KeyKind::Environment { environment_id: "env_01missing".into() };
    assert!(keys::create(&*store, kind, "x", now).await.is_err());
    let environment = rig.environment().await;
    let key = rig.environment_key(&environment).await;
    let poll = format!("/v1/environments/{environment}/work/poll");
    rig.ask(&key, Method::GET, &poll, None).await.ok();
    rig.delete(&format!("/v1/environments/{environment}")).await.ok();
    rig.ask(&key, Method::GET, &poll, None).await.refused(401, "authentication_error");
    // The same over HTTP, for API keys only.
    let at = "/palisade/v1/keys";
    let environment = rig.environment().await;
    let made = rig.post(at, json!({"kind": "environment", "environment_id": environment, "name": "w"})).await.ok();
    let key = made["key"].as_str().unwrap();
    let poll = format!("/v1/environments/{environment}/work/poll");
    rig.ask(key, Method::GET, &poll, None).await.ok();
    rig.ask(key, Method::GET, at, None).await.refused(403, "permission_error");
    rig.http.get(rig.url(at)).send().await.unwrap().error_for_status().unwrap_err();
    let listed = rig.get(at).await.ok();
    assert!(
        listed["data"].as_array().unwrap().iter().any(|key| key["id"] == made["id"] && key["kind"] == "environment")
    );
    assert!(!listed.to_string().contains("sk-ant"));
    let revoked = rig.delete(&format!("{at}/{}", id(&made))).await.ok();
    assert_eq!(revoked, json!({"id": made["id"], "type": "key_revoked"}));
    rig.ask(key, Method::GET, &poll, None).await.refused(401, "authentication_error");
    rig.delete(&format!("{at}/{}", id(&made))).await.refused(404, "not_found_error");
    let nowhere = rig.post(at, json!({"kind": "environment", "environment_id": "env_01missing"})).await;
    nowhere.refused(404, "not_found_error");
    rig.post(at, json!({"kind": "environment"})).await.refused(400, "invalid_request_error");
    rig.stop().await;
}
