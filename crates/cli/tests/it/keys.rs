//! Keys are made, listed and revoked whether the server runs or not.

use crate::rig::{Rig, mode};

fn flow(rig: &Rig, base: &[&str]) {
    let environment = rig.object(&["environments", "list"])["id"].as_str().unwrap().to_owned();
    let api = rig.object(&[base, &["create", "api", "--name", "ci"]].concat());
    let worker = rig.object(&[base, &["create", "--environment", &environment]].concat());
    assert!(api["key"].as_str().unwrap().starts_with("sk-ant-api"), "{api}");
    assert!(worker["key"].as_str().unwrap().starts_with("sk-ant-oat"), "{worker}");

    let listed = rig.objects(&[base, &["list"]].concat());
    let find = |id: &serde_json::Value| listed.iter().find(|key| key["id"] == *id).unwrap();
    assert_eq!(find(&api["id"])["name"], "ci");
    assert_eq!(find(&worker["id"])["environment_id"], environment.as_str());
    assert!(!listed.iter().any(|key| key.to_string().contains(api["key"].as_str().unwrap())));

    std::fs::write(rig.path("ci.key"), api["key"].as_str().unwrap()).unwrap();
    rig.text(&["agents", "list", "--api-key-file", "ci.key"]);
    let revoked = rig.object(&[base, &["revoke", api["id"].as_str().unwrap()]].concat());
    assert_eq!(revoked["type"], "key_revoked");
    assert_eq!(rig.run(&["agents", "list", "--api-key-file", "ci.key"]).status.code(), Some(1));
    assert_eq!(rig.run(&["keys", "revoke", "apikey_nobody"]).status.code(), Some(1));
    assert_eq!(rig.run(&["keys", "create", "--environment", "env_nobody"]).status.code(), Some(1));
}

#[test]
fn keys_while_the_server_runs() {
    let rig = Rig::new();
    let _server = rig.server();
    rig.text(&["environments", "create", "--name", "one"]);
    flow(&rig, &["keys"]);
}

#[test]
fn keys_while_no_server_runs() {
    let rig = Rig::new();
    let server = rig.server();
    assert_eq!(mode(&rig.path("state/bootstrap.key")), 0o600);
    assert_eq!(mode(&rig.path("state")), 0o700);
    let environment = rig.object(&["environments", "create", "--name", "one"]);
    let environment = environment["id"].as_str().unwrap();
    let (well, rest, _) = server.end();
    assert!(well && rest.is_empty(), "one line and no more: {rest}");
    assert!(!rig.path("state/server.url").exists());

    let key = rig.object(&["keys", "create", "--environment", environment, "--name", "offline"]);
    assert!(key["key"].as_str().unwrap().starts_with("sk-ant-oat"));
    let api = rig.text(&["keys", "create", "api"]);
    assert_eq!(rig.objects(&["keys", "list"]).len(), 3);
    rig.text(&["keys", "revoke", key["id"].as_str().unwrap()]);

    // What was made offline opens the server, and a second start makes no second bootstrap key.
    let _server = rig.server();
    std::fs::write(rig.path("api.key"), api).unwrap();
    let keys = rig.objects(&["keys", "list", "--api-key-file", "api.key"]);
    assert_eq!(keys.len(), 3);
    assert_eq!(keys.iter().filter(|key| key["revoked_at"].is_string()).count(), 1);
}
