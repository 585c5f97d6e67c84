//! The demo does what it says, or says that it does not.

use std::process::Command;

use crate::rig::{Rig, objects};

#[test]
fn the_demo_surveys_a_repository_and_is_refused_everything_else() {
    let rig = Rig::new();
    let output = rig.run(&["demo", "--output", "json", "--out", "report.md"]);
    let lines = objects(&String::from_utf8(output.stdout).unwrap());
    let summary = lines.last().unwrap();
    assert_eq!(output.status.code(), Some(0), "{summary}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!((&summary["type"], &summary["ok"]), (&"summary".into(), &true.into()));
    assert!(summary["sandbox_start_ms"].as_f64().unwrap() > 0.0);
    let attempts = summary["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 16);
    for attempt in attempts {
        assert_eq!(attempt["refused"], true, "{attempt}");
        assert!(!["unknown", "none", "not attempted"].contains(&attempt["layer"].as_str().unwrap()), "{attempt}");
    }
    assert!(summary["audited"]["alerts"].as_u64().unwrap() >= 1, "{summary}");
    for tool in ["bash", "read", "write", "edit", "glob", "grep"] {
        assert!(lines.iter().any(|line| line["type"] == "agent.tool_use" && line["name"] == tool), "{tool}");
    }
    let report = std::fs::read_to_string(rig.path("report.md")).unwrap();
    assert!(report.contains("Status: final") && report.contains("TODO: take the name"), "{report}");

    // Nothing stays but the report, and it is not replaced.
    let left: Vec<_> = std::fs::read_dir(rig.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert_eq!(rig.run(&["demo", "--out", "report.md"]).status.code(), Some(1));
}

#[test]
fn the_demo_takes_what_git_knows_of_a_repository() {
    let rig = Rig::new();
    let repo = rig.path("repo");
    std::fs::create_dir_all(repo.join("target")).unwrap();
    std::fs::write(repo.join(".gitignore"), "target/\nignored\n").unwrap();
    std::fs::write(repo.join("README.md"), "# Tracked\n").unwrap();
    std::fs::write(repo.join("ignored"), "TODO ignored\n").unwrap();
    std::fs::write(repo.join("target/built"), "TODO built\n").unwrap();
    std::fs::write(repo.join("new.txt"), "TODO new\n").unwrap();
    let git = Command::new("git").arg("init").arg("-q").arg(&repo).status().unwrap();
    assert!(git.success());
    let said = rig.text(&["demo", "--repo", repo.to_str().unwrap(), "--out", "report.md"]);
    assert!(said.contains("(3 files)"), "{said}");
    let report = std::fs::read_to_string(rig.path("report.md")).unwrap();
    assert!(report.contains("TODO new") && !report.contains("TODO ignored") && !report.contains("TODO built"));
}

/// The common way to try it: whoever is logged in runs it, and nothing stays behind.
#[test]
fn the_demo_and_the_doctor_leave_nothing_to_a_user_without_root() {
    if !rustix::process::geteuid().is_root() {
        // Then all tests have run without it.
        return;
    }
    // The program and its directories must be within the other user's reach.
    let open = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    let place = tempfile::Builder::new().permissions(open(0o755)).tempdir().unwrap();
    let [program, home] = ["palisade", "home"].map(|name| place.path().join(name));
    std::fs::copy(env!("CARGO_BIN_EXE_palisade"), &program).unwrap();
    std::fs::create_dir(&home).unwrap();
    std::fs::set_permissions(&home, open(0o777)).unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new("/usr/bin/setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program).args(args);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", &home).env("TMPDIR", &home);
        command.current_dir(&home).stdin(std::process::Stdio::null()).output().unwrap()
    };
    let output = run(&["demo", "--output", "json", "--out", "report.md"]);
    let lines = objects(&String::from_utf8(output.stdout).unwrap());
    let summary = lines.last().unwrap();
    assert_eq!(output.status.code(), Some(0), "{summary}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!((&summary["type"], &summary["ok"]), (&"summary".into(), &true.into()));
    let output = run(&["doctor"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("writes to its overlay"), "{said}");
    let left: Vec<_> = std::fs::read_dir(&home).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["report.md"]);
}
