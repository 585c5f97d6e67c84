//! Whose the way out is: one session's, for as long as it lasts, through all of its sandboxes.

use palisade_worker::Observation;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::world::{CANARY, DIRECT, World, credential, has, policy, rule};

/// A process of this machine, by its arguments.
fn process(arguments: &str) -> Option<Pid> {
    let numbers = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut found = numbers.filter(|number| {
        let line = std::fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word)).collect::<Vec<_>>().join(" ").trim()
            == arguments
    });
    found.next().and_then(Pid::from_raw)
}

/// One field of a process's status.
fn field(pid: Pid, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    status.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned()))
}

/// The first process of its process namespace: a sandbox ends with it.
fn init_of(mut pid: Pid) -> Pid {
    while field(pid, "NSpid").unwrap().split_whitespace().last() != Some("1") {
        pid = Pid::from_raw(field(pid, "PPid").unwrap().parse().unwrap()).unwrap();
    }
    pid
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_policy_there_is_no_network() {
    if !has(&["nginx", "curl"]) {
        return;
    }
    let world = World::new().await;
    let nginx = world.nginx(&["read.test"]);
    let elsewhere = policy(&[rule("read", "read.test", nginx.port, "")])
        .replace(palisade_testkit::control_plane::ENVIRONMENT, "env_other");
    world.secret("one", &format!("{CANARY}-one"));
    let (working, session) = world.begin(&elsewhere, &credential("TOKEN", "file:keys/one", "read.test"));
    let shown = world.run(&session, "tail -n +3 /proc/net/dev | cut -d: -f1; cat /etc/resolv.conf; env").await;
    assert!(shown.trim().starts_with("lo\n"), "{shown}");
    for name in ["PROXY", "TOKEN", "/run/palisade", "nameserver"] {
        assert!(!shown.contains(name), "{name}: {shown}");
    }
    for before in ["env", DIRECT] {
        for url in [
            format!("https://read.test:{}/", nginx.port),
            format!("https://127.0.0.1:{}/", nginx.port),
            "https://192.0.2.1/".to_owned(),
        ] {
            world.fails(&session, &format!("{before} curl -sSk --max-time 20 {url}")).await;
        }
    }
    assert!(nginx.served().is_empty() && world.records().iter().all(|record| record["kind"].is_null()));
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_placeholder_lives_as_long_as_its_session_and_not_only_as_its_sandbox() {
    if !has(&["nginx", "curl"]) {
        return;
    }
    let world = World::new().await;
    let token = format!("{CANARY}-one-two-three-four");
    world.secret("one", &token);
    let nginx = world.nginx(&["told.test", "pass.test"]);
    let rules = [rule("told", "told.test", nginx.port, ""), rule("pass", "pass.test", nginx.port, "")];
    let (working, first) = world.begin(&policy(&rules), &credential("TOKEN", "file:keys/one", "told.test"));
    let ask = |token: &str| {
        format!(
            "curl -sS -w '\\n%{{http_code}}' -H 'Authorization: Bearer {token}' https://told.test:{}/told",
            nginx.port
        )
    };
    let placeholder = world.run(&first, "printenv TOKEN").await.trim().to_owned();
    assert!(placeholder.starts_with("palisade_"), "{placeholder}");
    let works = |shown: &str| shown.ends_with("200") && shown.contains(&format!("Bearer {placeholder}"));
    let shown = world.run(&first, &ask(&placeholder)).await;
    assert!(works(&shown), "{shown}");

    // The sandbox dies. The next one has the same placeholder, and an authority of its own.
    let authority = world.run(&first, "sha256sum < /run/palisade/trust/ca.pem").await;
    let command = format!("sleep 98765.{}", nginx.port);
    let call = first.bash(&command);
    let pid = world.rig.fake.wait("the command", |_| process(&command)).await;
    kill_process(init_of(pid), Signal::KILL).unwrap();
    assert_eq!(world.rig.result(&first, &call).await["is_error"], true);
    assert_eq!(world.run(&first, "printenv TOKEN").await.trim(), placeholder);
    assert_ne!(world.run(&first, "sha256sum < /run/palisade/trust/ca.pem").await, authority);
    for before in ["env", DIRECT] {
        let shown = world.run(&first, &format!("{before} {}", ask(&placeholder))).await;
        assert!(works(&shown), "{shown}");
        let shown = world.run(&first, &format!("{before} curl -sS https://pass.test:{}/", nginx.port)).await;
        assert!(shown.contains("a page of nginx"), "{shown}");
    }
    let started =
        world.rig.observed.lock().unwrap().iter().filter(|it| matches!(it, Observation::SandboxStarted { .. })).count();
    assert_eq!(started, 2);

    // Another session has another one, and cannot use what it was told of the first.
    let second = world.session();
    let own = world.run(&second, "printenv TOKEN").await.trim().to_owned();
    assert_ne!(own, placeholder);
    let refused = |shown: &str| shown.ends_with("403") && shown.contains("credential_misused");
    let shown = world.run(&second, &ask(&placeholder)).await;
    assert!(refused(&shown), "{shown}");
    let shown = world.run(&second, &ask(&own)).await;
    assert!(shown.ends_with("200"), "{shown}");
    // Nor when the first has ended, nor anywhere else.
    first.emit(json!({"type": "session.status_terminated"}));
    world.rig.fake.stopped(&first.id).await;
    let shown = world.run(&second, &ask(&placeholder)).await;
    assert!(refused(&shown), "{shown}");
    let alert = world.recorded("an alert", |record| record["alert"] == true).await;
    assert_eq!(
        (&alert["session"], &alert["reason"]),
        (&Value::from(second.id.clone()), &json!("credential_misused")),
        "{alert}"
    );
    let told = std::fs::read_to_string(world.own.path().join("keys/one")).unwrap();
    assert_eq!(told, token);
    working.end().await;
}
