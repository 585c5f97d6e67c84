//! Sources on this machine: environment, files, commands.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::sync::Arc;

use crate::rig::{ManualClock, Rig, private, refused};

#[tokio::test]
async fn only_the_named_variables_are_open() {
    let yaml = "env: {variables: [GITHUB_TOKEN, UNSET]}";
    let variables = [("GITHUB_TOKEN", "CANARY-g"), ("PALISADE_ENVIRONMENT_KEY", "CANARY-k")];
    let rig = Rig::new(Arc::default(), yaml, &variables);
    assert_eq!(rig.value("env:GITHUB_TOKEN").await.unwrap(), "CANARY-g");
    refused(rig.value("env:PALISADE_ENVIRONMENT_KEY").await, &["not open to references", "env.variables"]);
    refused(rig.value("env:UNSET").await, &["not set"]);
    refused(rig.value("sealed:x").await, &["names no configured source"]);
    rig.check();
}

#[tokio::test]
async fn files_are_read_again_when_they_change_and_never_outside() {
    let folder = tempfile::tempdir().unwrap();
    let (inside, outside) = (folder.path().join("in"), folder.path().join("out"));
    std::fs::create_dir_all(inside.join("..2026")).unwrap();
    std::fs::create_dir(&outside).unwrap();
    private(&inside.join("..2026/token"), "CANARY-1\n");
    private(&outside.join("token"), "CANARY-out");
    symlink("..2026", inside.join("..data")).unwrap();
    symlink("..data/token", inside.join("token")).unwrap();
    symlink("../out/token", inside.join("leads-out")).unwrap();
    symlink(outside.join("token"), inside.join("absolute")).unwrap();
    symlink("../out", inside.join("folder")).unwrap();
    private(&inside.join("open"), "CANARY-open");
    std::fs::set_permissions(inside.join("open"), std::fs::Permissions::from_mode(0o644)).unwrap();
    private(&inside.join("writable"), "CANARY-w");
    std::fs::set_permissions(inside.join("writable"), std::fs::Permissions::from_mode(0o662)).unwrap();
    private(&inside.join("empty"), "\n");
    private(&inside.join("huge"), &"CANARY".repeat(20_000));
    std::fs::write(inside.join("binary"), [0xff, 0xfe]).unwrap();
    std::fs::set_permissions(inside.join("binary"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let yaml = format!(
        "file:\n  m: {{directory: {0}}}\n  shared: {{directory: {0}, readable_by_others: true}}\n",
        inside.display()
    );
    let rig = Rig::new(Arc::new(ManualClock::default()), &yaml, &[]);

    assert_eq!(rig.value("file:m/token").await.unwrap(), "CANARY-1", "links within the mount are its own business");
    // As an orchestrator replaces a mounted secret: a new folder, and the link put over.
    std::fs::create_dir(inside.join("..2027")).unwrap();
    private(&inside.join("..2027/token"), "CANARY-2");
    symlink("..2027", inside.join("..next")).unwrap();
    std::fs::rename(inside.join("..next"), inside.join("..data")).unwrap();
    assert_eq!(rig.value("file:m/token").await.unwrap(), "CANARY-2");
    std::fs::remove_file(inside.join("..2027/token")).unwrap();
    refused(rig.value("file:m/token").await, &["no file `token`"]);

    for path in ["leads-out", "absolute", "folder/token"] {
        refused(rig.value(&format!("file:m/{path}")).await, &["leads out of the directory"]);
    }
    refused(rig.value("file:m/open").await, &["mode 0644", "chmod 0600"]);
    assert_eq!(rig.value("file:shared/open").await.unwrap(), "CANARY-open");
    refused(rig.value("file:shared/writable").await, &["mode 0662", "change it"]);
    refused(rig.value("file:m/empty").await, &["is empty"]);
    refused(rig.value("file:m/huge").await, &["more than 65536 bytes"]);
    refused(rig.value("file:m/binary").await, &["UTF-8"]);
    refused(rig.value("file:m/..2026").await, &["no regular file"]);
    rig.check();
}

#[tokio::test]
async fn commands_get_nothing_of_ours_and_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("mark");
    let yaml = format!(
        r#"
exec:
  plain: {{command: [/bin/echo, CANARY-e; echo no]}}
  json: {{command: [/bin/echo, '{{"token": "CANARY-j"}}']}}
  environment: {{command: [/usr/bin/env], environment: {{ONLY: this}}}}
  fails: {{command: [/bin/sh, -c, 'echo CANARY; echo CANARY >&2; exit 3']}}
  endless: {{command: [/bin/sh, -c, 'while :; do echo CANARY; done']}}
  slow: {{command: [/bin/sh, -c, 'sleep 600 & echo $! > {mark}; wait'], timeout: 4}}
  silent: {{command: [/bin/true]}}
  missing: {{command: [/nonexistent/program]}}
"#,
        mark = mark.display()
    );
    let rig = Rig::new(Arc::new(ManualClock::default()), &yaml, &[("INHERITED", "CANARY")]);
    assert_eq!(rig.value("exec:plain").await.unwrap(), "CANARY-e; echo no", "no shell reads the arguments");
    assert_eq!(rig.value("exec:json#token").await.unwrap(), "CANARY-j");
    assert_eq!(rig.value("exec:environment").await.unwrap(), "ONLY=this");
    refused(rig.value("exec:fails").await, &["exit status: 3"]);
    refused(rig.value("exec:endless").await, &["more than 65536 bytes"]);
    refused(rig.value("exec:silent").await, &["printed nothing"]);
    refused(rig.value("exec:missing").await, &["cannot be started"]);
    refused(rig.value("exec:none").await, &["`none` under `exec:`"]);
    refused(rig.value("exec:slow").await, &["killed after 4 s"]);
    // What it had started is gone with it. A dead child of nobody stays for a moment until it is reaped.
    let pid = std::fs::read_to_string(&mark).unwrap();
    let status = format!("/proc/{}/stat", pid.trim());
    let ended = || std::fs::read_to_string(&status).map_or(true, |stat| stat.contains(") Z "));
    for _ in 0..1000 {
        if ended() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(ended());
    rig.check();
}
