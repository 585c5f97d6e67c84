//! Errors say what failed, why, and what to do.

use crate::rig::{Rig, objects};

fn failure(rig: &Rig, args: &[&str]) -> serde_json::Value {
    let output = rig.run(&[args, &["--output", "json"]].concat());
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    assert!(output.stdout.is_empty(), "{args:?}");
    let mut said = objects(&String::from_utf8(output.stderr).unwrap());
    assert_eq!(said.len(), 1, "{args:?} said {said:?}");
    said.remove(0)["error"].take()
}

#[test]
fn a_failure_says_what_why_and_what_to_do() {
    let rig = Rig::new();
    let output = rig.run(&["agents", "list"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let lines: Vec<&str> = said.lines().collect();
    assert!(
        lines[0].starts_with("error: ") && lines[1].starts_with("  why: ") && lines[2].starts_with("  fix: "),
        "{said}"
    );

    for args in [
        ["keys", "list"].as_slice(),
        &["agents", "list", "--base-url", "http://127.0.0.1:9", "--api-key-env", "NOT_SET"],
        &["agents", "list", "--base-url", "not a url", "--api-key-file", "script.yaml"],
        &["agents", "list", "--base-url", "https://example.com"],
        &["backup", "copy.db"],
        &["demo", "--model", "gpt"],
        &["demo", "--model", "anthropic:claude"],
        &["demo", "--repo", "/proc"],
    ] {
        let error = failure(&rig, args);
        assert!(error["what"].is_string() && error["why"].is_string() && error["fix"].is_string(), "{args:?}: {error}");
    }
    assert!(failure(&rig, &["server", "--script", "missing.yaml"])["why"].as_str().unwrap().contains("missing.yaml"));
    let open = failure(&rig, &["server", "--listen", "0.0.0.0:0"]);
    assert!(open["why"].as_str().unwrap().contains("TLS"), "{open}");
}

#[test]
fn a_machine_without_certificate_authorities_is_told_so_where_it_needs_any() {
    let rig = Rig::new();
    std::fs::write(rig.path("key"), "sk-ant-api03-any\n").unwrap();
    let said = |base: &str| {
        let args = ["agents", "list", "--base-url", base, "--api-key-file", "key"];
        let output = rig.command(&args).env("SSL_CERT_FILE", "/none").env("SSL_CERT_DIR", "/none").output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let text = said("https://127.0.0.1:9");
    assert!(text.contains("No CA certificates") && text.contains("--ca-file"), "{text}");
    let text = said("http://127.0.0.1:9");
    assert!(text.contains("does not answer"), "{text}");
}

#[test]
fn a_command_line_that_cannot_be_understood_has_its_own_exit_code() {
    let rig = Rig::new();
    for args in [["runn"].as_slice(), &["run", "--model"], &["keys", "create"], &["server", "--lease-ttl", "0"]] {
        assert_eq!(rig.run(args).status.code(), Some(64), "{args:?}");
    }
    let output = rig.run(&["worker", "--require", "seccomp,walls"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(64) && said.contains("walls") && said.contains("memory-limit"), "{said}");
}

#[test]
fn the_api_s_error_is_passed_on_whole() {
    let rig = Rig::new();
    let _server = rig.server();
    let error = failure(&rig, &["agents", "get", "agent_01nobody"]);
    assert_eq!(error["api"]["error"]["type"], "not_found_error");
    assert!(error["why"].as_str().unwrap().contains("404"));

    std::fs::write(rig.path("wrong.key"), "sk-ant-api03-wrong\n").unwrap();
    let error = failure(&rig, &["agents", "list", "--api-key-file", "wrong.key"]);
    assert_eq!(error["api"]["error"]["type"], "authentication_error");
    assert!(!error.to_string().contains("sk-ant-api03-wrong"));
}
