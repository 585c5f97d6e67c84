//! Servers and workers as processes: backup, restore, and keys that come from the environment.

use std::process::Stdio;

use crate::rig::{Rig, mode};

#[test]
fn a_backup_of_a_running_server_is_a_server_of_its_own() {
    let rig = Rig::new();
    let server = rig.server();
    let agent = rig.object(&["agents", "create", "--name", "kept", "--model", "scripted"]);
    let copy = rig.path("copy.db");
    let copy = copy.to_str().unwrap();
    let said = rig.object(&["backup", copy]);
    assert_eq!(said["path"], copy);
    assert_eq!(mode(&rig.path("copy.db")), 0o600);
    assert_eq!(rig.run(&["backup", copy]).status.code(), Some(1), "a backup replaces nothing");
    rig.text(&["agents", "create", "--name", "later", "--model", "scripted"]);
    assert!(server.end().0);

    let state = rig.path("state");
    for file in ["palisade.db", "palisade.db-wal", "palisade.db-shm"] {
        let _ = std::fs::remove_file(state.join(file));
    }
    std::fs::copy(rig.path("copy.db"), state.join("palisade.db")).unwrap();
    let _server = rig.server();
    let agents = rig.objects(&["agents", "list"]);
    assert_eq!(agents.len(), 1);
    assert_eq!(agents[0]["id"], agent["id"]);
}

#[test]
fn a_second_server_on_the_same_state_is_refused_and_the_first_goes_on() {
    let rig = Rig::new();
    let server = rig.server();
    let second = rig.run(&["server", "--listen", "127.0.0.1:0"]);
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("in use"));
    assert_eq!(std::fs::read_to_string(rig.path("state/server.url")).unwrap().trim(), server.url);
    rig.text(&["agents", "list"]);
}

#[test]
fn a_worker_takes_its_key_from_the_environment_and_out_of_it() {
    let rig = Rig::new();
    let server = rig.server();
    let environment = rig.text(&["environments", "create", "--name", "local"]);
    let environment = environment.trim();
    let key = rig.text(&["keys", "create", "--environment", environment]);
    let key = key.trim();
    let state = rig.path("worker");
    let mut worker = rig
        .command(&["worker", "--state-dir", state.to_str().unwrap()])
        .env("ANTHROPIC_BASE_URL", &server.url)
        .env("ANTHROPIC_ENVIRONMENT_ID", environment)
        .env("ANTHROPIC_ENVIRONMENT_KEY", key)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The answer shows that the key was taken; the environment that the process was started with shows that it has gone.
    let said = rig.text(&["run", "--model", "scripted", "--environment", environment, "work"]);
    assert!(said.contains("It said: 42"), "{said}");
    match std::fs::read(format!("/proc/{}/environ", worker.id())) {
        Ok(environ) => {
            let environ = String::from_utf8_lossy(&environ);
            assert!(environ.contains("ANTHROPIC_ENVIRONMENT_ID") && !environ.contains(key));
        }
        Err(why) => assert_eq!(why.kind(), std::io::ErrorKind::PermissionDenied),
    }
    crate::rig::signal(worker.id(), "TERM");
    let output = worker.wait_with_output_of();
    assert!(output.contains("claimed") && output.contains("took"), "{output}");
    assert!(output.lines().last().unwrap().starts_with("1 claimed, 1 completed"), "{output}");
}

trait Wait {
    fn wait_with_output_of(&mut self) -> String;
}

impl Wait for std::process::Child {
    fn wait_with_output_of(&mut self) -> String {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut self.stdout.take().unwrap(), &mut text).unwrap();
        assert!(self.wait().unwrap().success());
        text
    }
}
