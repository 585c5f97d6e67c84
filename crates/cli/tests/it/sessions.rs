//! Agents, environments and sessions through the command line.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use serde_json::Value;

use crate::rig::{Rig, signal};

fn id(object: &Value) -> &str {
    object["id"].as_str().unwrap()
}

#[test]
fn objects_are_made_listed_and_archived() {
    let rig = Rig::new();
    let _server = rig.server();
    let agent = rig.object(&["agents", "create", "--name", "a", "--model", "scripted", "--system", "Be brief."]);
    let environment = rig.object(&["environments", "create", "--name", "e"]);
    let session =
        rig.object(&["sessions", "create", "--agent", id(&agent), "--environment", id(&environment), "--title", "t"]);
    assert_eq!(rig.object(&["agents", "get", id(&agent)])["system"], "Be brief.");
    assert_eq!(rig.object(&["sessions", "get", id(&session)])["status"], "idle");
    let table = rig.text(&["sessions", "list"]);
    assert!(table.starts_with("ID") && table.contains(id(&session)), "{table}");

    std::fs::write(rig.path("agent.yaml"), "name: from a file\nmodel: scripted\n").unwrap();
    rig.object(&["agents", "create", "--file", "agent.yaml"]);
    assert_eq!(rig.objects(&["agents", "list"]).len(), 2);
    assert_eq!(rig.objects(&["agents", "list", "--limit", "1"]).len(), 1);

    assert!(rig.object(&["agents", "archive", id(&agent)])["archived_at"].is_string());
    assert_eq!(rig.objects(&["agents", "list"]).len(), 1);
    assert_eq!(rig.objects(&["agents", "list", "--include-archived"]).len(), 2);
    assert!(rig.object(&["sessions", "archive", id(&session)])["archived_at"].is_string());
    assert_eq!(rig.object(&["sessions", "delete", id(&session)])["type"], "session_deleted");
    assert!(rig.object(&["environments", "archive", id(&environment)])["archived_at"].is_string());
}

#[test]
fn a_session_is_followed_from_its_first_event_to_its_end() {
    let rig = Rig::new();
    let _server = rig.server();
    let agent = rig.object(&["agents", "create", "--name", "a", "--model", "scripted:test"]);
    let environment = rig.object(&["environments", "create", "--name", "e"]);
    let made =
        ["sessions", "create", "--agent", id(&agent), "--environment", id(&environment), "--prompt", "hello one"];
    let session = rig.object(&made);

    let mut follower = rig
        .command(&["sessions", "events", id(&session), "--follow", "--output", "json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let mut events: Vec<Value> = Vec::new();
    let mut until = |kind: &str, events: &mut Vec<Value>| loop {
        let line = lines.next().expect("the follower goes on").unwrap();
        let event: Value = serde_json::from_str(&line).unwrap();
        let found = event["type"] == kind;
        events.push(event);
        if found {
            return;
        }
    };
    until("session.status_idle", &mut events);
    rig.text(&["sessions", "send", id(&session), "hello two"]);
    until("session.status_idle", &mut events);
    rig.text(&["sessions", "archive", id(&session)]);
    until("session.status_terminated", &mut events);
    assert!(follower.wait().unwrap().success());

    // What was followed is what the log holds, each event once and in order.
    let processed = |events: &[Value]| -> Vec<String> {
        events.iter().filter(|it| !it["processed_at"].is_null()).map(|it| id(it).to_owned()).collect()
    };
    let log = rig.objects(&["sessions", "events", id(&session)]);
    assert_eq!(processed(&events), processed(&log));
    assert_eq!(log.iter().filter(|event| event["type"] == "agent.message").count(), 2);
    let shown = rig.text(&["sessions", "events", id(&session)]);
    assert!(shown.contains("> hello two") && shown.contains("Hello to you too."), "{shown}");
}

#[test]
fn following_ends_when_it_is_interrupted() {
    let rig = Rig::new();
    let _server = rig.server();
    let agent = rig.object(&["agents", "create", "--name", "a", "--model", "scripted"]);
    let environment = rig.object(&["environments", "create", "--name", "e"]);
    let made = ["sessions", "create", "--agent", id(&agent), "--environment", id(&environment), "--prompt", "hello"];
    let session = rig.object(&made);
    let mut follower = rig.command(&["sessions", "events", id(&session), "-f"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("idle: end_turn")));
    signal(follower.id(), "INT");
    assert!(follower.wait().unwrap().success());
}
