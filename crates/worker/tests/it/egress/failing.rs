//! What must answer and does not: the call that needs it stops, and says so.

use std::sync::Arc;
use std::time::SystemTime;

use palisade_testkit::secrets::{Fake, FakeHashicorp};
use palisade_testkit::storage;
use serde_json::json;

use super::world::{CANARY, World, credential, has, policy, rule};

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_need_a_vault_that_is_down_stop_and_others_go_on() {
    if !has(&["nginx", "curl"]) {
        return;
    }
    let mut world = World::new().await;
    #[expect(clippy::disallowed_methods, reason = "the fake lives by the clock that the worker has")]
    let vault = Fake::start(FakeHashicorp::default(), Arc::new(SystemTime::now)).await;
    vault.service.token("hvs.root");
    vault.service.write("secret/one", json!({"token": format!("{CANARY}-from-the-vault")}));
    vault.service.seal(true);
    world.variable("HVS", "hvs.root");
    world.secret("one", &format!("{CANARY}-from-a-file"));
    world.source(&format!(
        "vault: {{prod: {{address: {}, auth: {{method: token, token: 'env:HVS'}}, mounts: {{secret: kv}}}}}}",
        vault.url()
    ));
    let credentials = credential("OF_VAULT", "vault:prod/secret/one#token", "told.test")
        + &credential("OF_FILE", "file:keys/one", "told.test");
    let nginx = world.nginx(&["told.test"]);
    let rules = [rule("told", "told.test", nginx.port, "")];
    let (working, session) = world.begin(&policy(&rules), &credentials);
    let ask = |name: &str| {
        format!(
            "curl -sS -w '%{{http_code}}' -H \"Authorization: Bearer ${name}\" https://told.test:{}/told",
            nginx.port
        )
    };
    let shown = world.run(&session, &ask("OF_VAULT")).await;
    assert!(shown.contains("credential_unavailable") && shown.ends_with("503"), "{shown}");
    let shown = world.run(&session, &format!("{}; echo; echo $OF_FILE", ask("OF_FILE"))).await;
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[1] == "200" && lines[0] == format!("Bearer {}", lines[2]), "{shown}");
    let shown = world.run(&session, &format!("curl -sS https://told.test:{}/", nginx.port)).await;
    assert!(shown.contains("a page of nginx"), "{shown}");
    world
        .recorded("the failure", |record| record["reason"] == "credential_unavailable" && record["allowed"] == false)
        .await;
    // It comes back by itself, with the placeholder that the sandbox has had since.
    vault.service.seal(false);
    let again = format!("until {} | grep -q '200$'; do sleep 0.2; done; {}", ask("OF_VAULT"), ask("OF_VAULT"));
    let shown = world.run(&session, &again).await;
    assert!(shown.ends_with("200") && !shown.contains(CANARY), "{shown}");
    working.end().await;
}

/// The other half of the test below, in a mount namespace of its own.
#[tokio::test(flavor = "multi_thread")]
async fn process_with_its_trail_on_a_small_disk() {
    let Some(disk) = storage::place() else { return };
    let mut world = World::new().await;
    world.keep_trail_at(&disk.join("audit"));
    let nginx = world.nginx(&["read.test", "pass.test"]);
    let rules = [rule("read", "read.test", nginx.port, ", intercept: true"), rule("pass", "pass.test", nginx.port, "")];
    let (working, session) = world.begin(&policy(&rules), "");
    let ask = |host: &str, path: &str| format!("curl -sS https://{host}:{}/{path} 2>&1", nginx.port);
    for host in ["read.test", "pass.test"] {
        assert!(world.run(&session, &ask(host, "before")).await.contains("a page of nginx"));
    }
    let ballast = disk.join("ballast");
    let mut file = std::fs::File::create(&ballast).unwrap();
    let why = std::io::copy(&mut std::io::repeat(1), &mut file).unwrap_err();
    assert_eq!(why.kind(), std::io::ErrorKind::StorageFull);
    drop(file);
    // What is left of the last block may take a few records more; then nothing goes out, and nothing is pretended.
    let full = format!(
        "for n in $(seq 500); do {} | grep -q audit_unavailable && {{ echo stopped; break; }}; done",
        ask("read.test", "full-$n")
    );
    assert_eq!(world.run(&session, &full).await.trim(), "stopped");
    let shown = world.run(&session, &ask("read.test", "after")).await;
    assert!(shown.contains("audit_unavailable"), "{shown}");
    let shown = world.fails(&session, &ask("pass.test", "after")).await;
    // What is not opened can be told by an alert of TLS only.
    assert!(shown.contains("access denied") && !shown.contains("a page of nginx"), "{shown}");
    // With room again it goes on by itself, and the trail verifies.
    std::fs::remove_file(&ballast).unwrap();
    let again = format!("until {} | grep 'a page'; do sleep 0.1; done", ask("read.test", "again"));
    assert!(world.run(&session, &again).await.contains("a page of nginx"));
    assert!(world.run(&session, &ask("pass.test", "again")).await.contains("a page of nginx"));
    assert!(!nginx.served().iter().any(|line| line.contains(" /after ")), "the upstream heard nothing of those");
    working.end().await;
    let report = palisade_audit::verify(&world.trail()).unwrap();
    assert!(report.intact(), "{report:?}");
    println!("\nwent on");
}

#[test]
fn a_trail_on_a_full_disk_stops_traffic() {
    if !has(&["nginx", "curl", "unshare"]) {
        return;
    }
    let said = storage::on_a_small_disk("egress::failing::process_with_its_trail_on_a_small_disk", 1);
    assert!(said.contains("went on"), "{said}");
}
