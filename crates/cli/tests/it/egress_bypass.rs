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
fn the_guide_lists_every_attempt() {
    let rig = Rig::new();
    let guide = include_str!("../../../../docs/security/egress.md");
    let written: BTreeSet<&str> = guide
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |").map(|(name, _)| name))
        .filter(|name| name.contains('.'))
        .collect();
    let listed = rig.objects(&["egress", "test", "--list"]);
    let listed: BTreeSet<&str> = listed.iter().map(|attempt| attempt["name"].as_str().unwrap()).collect();
    assert_eq!(written, listed);
}
