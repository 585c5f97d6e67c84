//! `palisade egress test`: nothing gets past the egress service.

use std::collections::BTreeSet;

use crate::rig::{Rig, objects};

#[test]
fn nothing_gets_past_the_egress_service() {
    let rig = Rig::new();
    let output = rig.run(&["egress", "test", "--output", "json"]);
    let made = objects(&String::from_utf8(output.stdout).unwrap());
    let wrong: Vec<_> = made.iter().filter(|made| made["type"] == "attempt" && made["result"] != "held").collect();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(wrong.is_empty() && output.status.success(), "{wrong:#?}\n{error}");
    let attempts = made.iter().filter(|made| made["type"] == "attempt" && made["control"] == false).count();
    assert!(attempts >= 250, "{attempts}");
}

#[test]
fn the_guide_says_of_every_attempt_what_the_suite_says() {
    let rig = Rig::new();
    let guide = include_str!("../../../../docs/security/egress.md");
    let (_, attempts) = guide.split_once("## The attempts").unwrap();
    let written: BTreeSet<&str> = attempts.lines().filter(|line| line.starts_with("| `")).collect();
    let listed = rig.objects(&["egress", "test", "--list"]);
    let row = |attempt: &serde_json::Value| {
        let text = |name: &str| attempt[name].as_str().unwrap();
        let layer = if attempt["control"] == true { "" } else { text("layer") };
        format!("| `{}` | {} | {layer} | {} |", text("name"), text("tries"), text("shown_by"))
    };
    let rows: BTreeSet<String> = listed.iter().map(row).collect();
    let listed: BTreeSet<&str> = rows.iter().map(String::as_str).collect();
    assert_eq!(written, listed);
    let controls = rows.iter().filter(|row| row.starts_with("| `control.")).count();
    assert!(guide.contains(&format!("\n{} attempts and {controls} controls.\n", rows.len() - controls)));
}
