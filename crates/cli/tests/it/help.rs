//! Every command explains itself.

use crate::rig::Rig;

const COMMANDS: &[&[&str]] = &[
    &[],
    &["up"],
    &["server"],
    &["worker"],
    &["demo"],
    &["run"],
    &["exec"],
    &["attach"],
    &["cp"],
    &["ps"],
    &["top"],
    &["forward"],
    &["preview"],
    &["ssh"],
    &["agents"],
    &["agents", "list"],
    &["agents", "get"],
    &["agents", "create"],
    &["agents", "archive"],
    &["environments"],
    &["environments", "create"],
    &["sessions"],
    &["sessions", "create"],
    &["sessions", "events"],
    &["sessions", "send"],
    &["sessions", "interrupt"],
    &["sessions", "archive"],
    &["sessions", "delete"],
    &["keys"],
    &["keys", "create"],
    &["keys", "list"],
    &["keys", "revoke"],
    &["image"],
    &["image", "pull"],
    &["image", "import"],
    &["image", "list"],
    &["image", "inspect"],
    &["image", "prune"],
    &["backup"],
    &["bench"],
    &["checkpoints"],
    &["checkpoints", "diff"],
    &["checkpoints", "export"],
    &["checkpoints", "import"],
    &["checkpoints", "prune"],
    &["checkpoints", "push"],
    &["doctor"],
    &["vault"],
    &["vault", "add"],
    &["vault", "rekey"],
    &["vault", "test"],
    &["vault", "revoke"],
    &["sandbox"],
    &["sandbox", "test"],
    &["completions"],
];

#[test]
fn every_command_has_help_in_which_every_option_is_explained() {
    let rig = Rig::new();
    for command in COMMANDS {
        let help = rig.text(&[*command, &["--help"]].concat());
        assert!(help.contains("Usage: palisade"), "{command:?}: {help}");
        assert!(!help.contains('\u{1b}'), "{command:?}: colours without a terminal");
        // An option or argument that stands alone on its line is explained on the next one, indented deeper.
        let lines: Vec<&str> = help.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let option = line.trim_start();
            let bare = option.starts_with("--") && !option.contains("  ");
            let next = lines.get(number + 1).copied().unwrap_or_default();
            let explained = !next.trim().is_empty() && !next.trim_start().starts_with('-');
            assert!(!bare || explained, "{command:?}: {option} is not explained");
        }
    }
}

#[test]
fn completions_name_the_commands() {
    let rig = Rig::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = rig.text(&["completions", shell]);
        assert!(script.contains("sessions") && script.contains("demo"), "{shell}");
    }
}

#[test]
fn doctor_gives_one_line_per_finding_and_a_verdict() {
    let rig = Rig::new();
    let output = rig.run(&["doctor", "--output", "json"]);
    let findings = crate::rig::objects(&String::from_utf8(output.stdout).unwrap());
    let (verdict, probes) = findings.split_last().unwrap();
    assert_eq!(verdict["sandboxes"], output.status.success());
    let named = |name: &str| probes.iter().any(|probe| probe["facility"] == name);
    assert!(["Landlock", "seccomp filters", "disk", "clock", "open files"].into_iter().all(named), "{probes:?}");
    for probe in probes {
        let missing = probe["available"] == false;
        assert_eq!(missing, probe["fix"].is_string(), "{probe}");
    }
    let lines = rig.run(&["doctor"]);
    assert_eq!(String::from_utf8(lines.stdout).unwrap().lines().count(), findings.len());
}
