//! `run`: one prompt, and an exit code that says how it ended.

use crate::rig::{Rig, objects};

#[test]
fn the_exit_code_says_how_the_turn_ended() {
    let rig = Rig::new();
    let _server = rig.server();
    let run = |prompt: &str| rig.run(&["run", "--model", "scripted", prompt]);

    let answered = run("hello");
    assert_eq!(answered.status.code(), Some(0), "{}", String::from_utf8_lossy(&answered.stderr));
    let said = String::from_utf8(answered.stdout).unwrap();
    assert!(said.contains("Hello to you too.") && said.contains("idle: end_turn"), "{said}");
    assert_eq!(said.matches("Hello to you too.").count(), 1, "previews and the message are shown once: {said}");

    assert_eq!(run("refuse").status.code(), Some(2));
    assert_eq!(run("break").status.code(), Some(3));
    assert_eq!(rig.run(&["run", "--agent", "agent_nobody", "hello"]).status.code(), Some(1));

    // The agents that were made for these turns are out of the way, and the environment was made once.
    assert!(rig.objects(&["agents", "list"]).is_empty());
    assert_eq!(rig.objects(&["environments", "list"]).len(), 1);
}

#[test]
fn calls_that_need_a_confirmation_are_denied_where_nobody_can_be_asked() {
    let rig = Rig::new();
    let _server = rig.server();
    let output = rig.run(&["run", "--model", "scripted", "--always-ask", "work", "--output", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let events = objects(&String::from_utf8(output.stdout).unwrap());
    let denied = |event: &serde_json::Value| event["type"] == "user.tool_confirmation" && event["result"] == "deny";
    assert!(events.iter().any(denied), "{events:?}");
}

#[test]
fn both_planes_in_one_process_serve_a_prompt() {
    let rig = Rig::new();
    let up = rig.start(&["up"]);
    let said = rig.text(&["run", "--model", "scripted", "work"]);
    assert!(said.contains("It said: 42"), "{said}");
    let environments = rig.objects(&["environments", "list"]);
    assert_eq!(environments.len(), 1);
    assert_eq!(environments[0]["name"], "local");

    // The process neither shows its memory nor keeps a secret where its children would find it.
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", up.pid())).unwrap();
    let row = |name: &str| limits.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(row("Max core file size").contains(" 0 "), "{limits}");
    let (well, log, _) = up.end();
    assert!(well && log.contains("sandbox started"), "{log}");

    // A second start uses what the first one made.
    let again = rig.start(&["up"]);
    assert!(rig.text(&["run", "--model", "scripted", "work"]).contains("It said: 42"));
    assert_eq!(rig.objects(&["environments", "list"]).len(), 1);
    assert_eq!(rig.objects(&["keys", "list"]).len(), 2);
    assert!(again.end().0);
}
