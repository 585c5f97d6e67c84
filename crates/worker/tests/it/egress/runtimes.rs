//! The way out of sandboxes that a container runtime makes.

use std::sync::Arc;

use palisade_sandbox::{Oci, OciOptions};
use rustix::process::geteuid;

use super::ssh::{Sshd, can_serve, key_in_source, ssh_key, user};
use super::world::{CANARY, DIRECT, World, credential, has, policy, rule};

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_of_container_runtimes_have_the_same_way_out() {
    if !geteuid().is_root() {
        println!("not run: the oci driver needs root");
        return;
    }
    for runtime in ["crun", "runc"] {
        if !has(&[runtime, "nginx", "curl"]) || !can_serve() {
            continue;
        }
        let mut world = World::new().await;
        let scratch = Some(world.own.path().join("scratch"));
        let options = OciOptions { runtime: runtime.into(), arguments: Vec::new(), scratch };
        world.driver(Arc::new(Oci::new(options).unwrap()));
        world.secret("one", &format!("{CANARY}-one"));
        let public = key_in_source(&world, "ed25519");
        let sshd = Sshd::start(&public, "ed25519").await;
        let nginx = world.nginx(&["told.test", "other.test"]);
        let rules = [
            rule("told", "told.test", nginx.port, ""),
            rule("other", "other.test", nginx.port, ", intercept: true"),
            rule("code", "code.test", sshd.port, ", protocol: tcp"),
        ];
        let user = user();
        let credentials = credential("TOKEN", "file:keys/one", "told.test")
            + &ssh_key("file:keys/deploy", "code.test", &user, &sshd.host_key);
        let (working, session) = world.begin(&policy(&rules), &credentials);
        for how in ["env", DIRECT] {
            let ask = |host: &str| {
                format!("{how} curl -sS -m 20 -H \"Authorization: Bearer $TOKEN\" https://{host}:{}/told", nginx.port)
            };
            let shown = world.run(&session, &format!("{}; echo $TOKEN", ask("told.test"))).await;
            let lines: Vec<&str> = shown.lines().collect();
            // The upstream got the value, as is seen by what it repeats having been replaced.
            assert!(lines[0] == format!("Bearer {}", lines[1]) && lines[1].len() > 20, "{runtime}: {shown}");
            let shown = world.run(&session, &ask("other.test")).await;
            assert!(shown.contains("egress_refused"), "{runtime}: {shown}");
            world.fails(&session, &ask("unknown.test")).await;
        }
        let record =
            world.recorded("the request", |record| record["credentials"] == serde_json::json!(["TOKEN"])).await;
        assert_eq!((&record["allowed"], &record["path"]), (&true.into(), &"/told".into()), "{runtime}: {record}");
        world.recorded("the alert", |record| record["alert"] == true && record["allowed"] == false).await;
        let login = format!("ssh -p {} {user}@code.test echo in-$((40 + 2)) 2>/dev/null", sshd.port);
        assert_eq!(world.run(&session, &login).await, "in-42", "{runtime}");
        let shown = world
            .outcome(&session, "env; cat /proc/*/environ /run/palisade/trust/* 2>/dev/null | tr '\\0' '\\n'")
            .await
            .0;
        assert!(!shown.contains(CANARY), "{runtime}: {shown}");
        working.end().await;
    }
}
