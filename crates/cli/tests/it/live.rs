//! Checkpoints, going back, forks and pauses of live sessions, through the binary as an operator has it.

use crate::rig::Rig;

/// An agent with all tools.
const AGENT: &str = "name: a\nmodel: scripted\ntools:\n- type: agent_toolset_20260401\n  default_config: {permission_policy: {type: always_allow}}\n";

/// Waits until a session has nothing to do; its worker keeps it for a while.
fn turn_ends(rig: &Rig, session: &str) {
    // It is idle also while a call waits for its worker.
    let ended = |event: &serde_json::Value| {
        event["type"] == "session.status_idle" && event["stop_reason"]["type"] == "end_turn"
    };
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !rig.objects(&["sessions", "events", session]).iter().any(ended) {
        assert!(std::time::Instant::now() < until, "the turn of {session} does not end");
    }
}

/// A session that has had its turn.
fn working(rig: &Rig) -> String {
    std::fs::write(rig.path("agent.yaml"), AGENT).unwrap();
    let agent = rig.object(&["agents", "create", "--file", "agent.yaml"])["id"].as_str().unwrap().to_owned();
    let environment = rig.object(&["environments", "list"])["id"].as_str().unwrap().to_owned();
    let made = ["sessions", "create", "--agent", &agent, "--environment", &environment, "--prompt", "work"];
    let session = rig.object(&made)["id"].as_str().unwrap().to_owned();
    turn_ends(rig, &session);
    session
}

#[test]
fn a_session_is_checkpointed_brought_back_forked_and_paused() {
    let rig = Rig::new();
    let up = rig.start(&["up", "--max-idle", "600"]);
    let session = working(&rig);
    let inside = |script: &str| rig.text(&["exec", &session, "--", "sh", "-c", script]);

    inside("echo one > file; mkdir d; ln -s file link");
    let checkpoint = rig.text(&["checkpoint", &session, "--label", "good"]).trim().to_owned();
    let listed = rig.objects(&["checkpoints", "list"]);
    assert!(listed.iter().any(|found| found["id"] == checkpoint.as_str() && found["label"] == "good"), "{listed:?}");
    inside("echo two > file; rm -r d link; sleep 1000 >/dev/null 2>&1 &");
    rig.text(&["restore", &session, &checkpoint]);
    let started = rig.text(&[
        "exec",
        "--start",
        &session,
        "--",
        "sh",
        "-c",
        "cat file; readlink link; ls; pgrep sleep || echo nobody",
    ]);
    assert_eq!(started, "one\nfile\nd\nfile\nlink\nnobody\n");

    // Its state is where others begin.
    let forks: Vec<String> =
        rig.text(&["fork", &session, "--count", "2", "--prompt", "work"]).lines().map(str::to_owned).collect();
    assert_eq!(forks.len(), 2);
    for fork in &forks {
        turn_ends(&rig, fork);
        let seen = rig.text(&["exec", "--start", fork, "--", "sh", "-c", "cat file; echo mine > file"]);
        assert_eq!(seen, "one\n");
    }
    assert_eq!(inside("cat file"), "one\n");

    rig.text(&["pause", &session]);
    rig.text(&["resume", &session]);
    assert_eq!(inside("cat file"), "one\n");
    rig.text(&["pause", "--to-disk", &session]);
    let gone = rig.run(&["exec", &session, "--", "true"]);
    assert!(!gone.status.success(), "it needs nothing but disk: {gone:?}");
    rig.text(&["resume", &session]);
    assert_eq!(rig.text(&["exec", "--start", &session, "--", "cat", "file"]), "one\n");

    // Nothing that a session needs is pruned.
    rig.text(&["checkpoints", "prune", "--keep-last", "0", "--labelled"]);
    rig.text(&["restore", &session, &checkpoint]);
    for args in [
        &["restore", session.as_str(), "nonsense"][..],
        &["restore", &session, &"0".repeat(64)],
        &["checkpoint", "sesn_none"],
        &["pause", "sesn_none"],
        &["fork", "sesn_none"],
    ] {
        let output = rig.run(args);
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: "), "{output:?}");
    }
    let (_, _, log) = up.end();
    assert!(log.contains("action=\"restore\"") && log.contains("action=\"pause\""), "{log}");
}

#[test]
fn a_worker_says_what_it_cannot_do() {
    let rig = Rig::new();
    rig.start(&["up"]).end();
    let key = rig.path("state/bootstrap.key");
    for broken in [Some("sk-ant-api03-none"), None] {
        match broken {
            Some(text) => std::fs::write(&key, text).unwrap(),
            None => std::fs::remove_file(&key).unwrap(),
        }
        let output = rig.run(&["up", "--listen", "127.0.0.1:0"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("palisade keys create api >"), "{said}");
    }
    std::fs::write(&key, rig.text(&["keys", "create", "api"])).unwrap();
    let (well, _, log) = rig.start(&["up"]).end();
    assert!(well, "{log}");
    for (args, why) in [
        (&["up", "--listen", "127.0.0.1:0", "--transactional"][..], "--checkpoint-before"),
        (&["up", "--listen", "127.0.0.1:0", "--image", "example.org/tool:latest"], "image"),
        (&["up", "--listen", "127.0.0.1:0", "--image", "sha256:00"], "image"),
        (&["up", "--image", "x", "--rootfs", "/"], "cannot be used with"),
        (&["up", "--disk-mib", "15"], "a disk has at least 16 MiB"),
    ] {
        let output = rig.run(args);
        assert!(!output.status.success(), "{args:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(why), "{output:?}");
    }
}

/// As an operator has it: in a state directory that is closed to others, made under a strict mask.
#[test]
fn a_strict_mask_keeps_no_runtime_from_serving_and_gvisor_keeps_processes_on_disk() {
    if !rustix::process::geteuid().is_root() {
        println!("not run: the oci driver needs root");
        return;
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    for runtime in ["native", "runc", "crun", "runsc"] {
        let native = runtime == "native";
        if !native && std::process::Command::new(runtime).arg("--version").output().is_err() {
            assert!(std::env::var_os("CI").is_none(), "{runtime} is not installed");
            println!("not run: {runtime} is not installed");
            continue;
        }
        let rig = Rig::new();
        let driver: &[&str] = if native { &[] } else { &["--driver", "oci", "--runtime", runtime] };
        std::fs::write(rig.path("policy.yaml"), "default: {rules: [{name: none, host: none.test}]}\n").unwrap();
        // gVisor's network cannot be led.
        let egress: &[&str] = if runtime == "runsc" { &[] } else { &["--egress", "policy.yaml"] };
        let up = rig.start(&[&["up", "--max-idle", "600"], driver, egress].concat());
        let session = working(&rig);
        let first = rig.run(&["exec", "--start", &session, "--", "true"]);
        if !first.status.success() {
            panic!("{runtime}: {first:?}\n{}", up.end().2);
        }
        let inside = |script: &str| rig.text(&["exec", "--start", &session, "--", "sh", "-c", script]);
        assert_eq!(
            inside("umask; cat /etc/passwd | grep -c ^agent; touch /tmp/a ~/a /dev/shm/a && echo made"),
            "0022\n1\nmade\n"
        );
        assert_eq!(
            inside("id -u; echo one > file; sh -c 'echo $$ > job; exec sleep 1000' >&- 2>&- & sleep 0.5; cat file"),
            "1000\none\n"
        );
        if !egress.is_empty() {
            let trusted =
                "cat $SSL_CERT_FILE /etc/ssl/certs/ca-certificates.crt | grep -q 'BEGIN CERT' && echo trusted";
            assert_eq!(inside(trusted), "trusted\n", "{runtime}");
        }
        let slept = rig.object(&["pause", "--to-disk", &session]);
        assert_eq!(slept["processes_kept"], runtime == "runsc", "{slept}");
        let refused = rig.run(&["exec", "--start", &session, "--", "true"]);
        assert!(String::from_utf8_lossy(&refused.stderr).contains("is paused"), "{refused:?}");
        assert!(rig.text(&["ps"]).contains("on disk"));
        let again = rig.object(&["pause", "--to-disk", &session]);
        assert_eq!(again["processes_kept"], runtime == "runsc", "{again}");
        let kept = serde_json::json!((runtime == "runsc").then_some(true));
        assert_eq!(rig.object(&["resume", &session])["processes_kept"], kept);
        let alive = inside("cat file; kill -0 $(cat job) 2>/dev/null && echo alive || echo gone");
        assert_eq!(alive, if runtime == "runsc" { "one\nalive\n" } else { "one\ngone\n" }, "{runtime}");
        let (well, _, log) = up.end();
        assert!(well, "{log}");
    }
}
