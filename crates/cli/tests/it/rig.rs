//! Starts the binary in a directory of its own, and ends it.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// A scripted model: one text for a greeting, one call otherwise.
pub(crate) const SCRIPT: &str = r#"
name: test
rules:
  - if: {last_user_contains: hello, ends_with: user}
    reply: [{text: "Hello to you too."}]
  - if: {last_user_contains: refuse, ends_with: user}
    stop: refusal
    reply: [{text: "No."}]
  - if: {last_user_contains: break, ends_with: user}
    error: authentication
  - if: {last_user_contains: work, ends_with: user}
    reply:
      - tool: {name: bash, input: {command: "echo $((6 * 7))"}}
  - if: {ends_with: results}
    reply: [{text: "It said: {{last_result}}"}]
otherwise: {reply: [{text: "What?"}]}
"#;

/// A state directory, and a script beside it.
pub(crate) struct Rig {
    dir: tempfile::TempDir,
}

impl Rig {
    pub(crate) fn new() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("script.yaml"), SCRIPT).unwrap();
        Rig { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The binary with nothing of this process's environment but what a program needs.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
        command.args(args).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.env("PALISADE_STATE_DIR", self.path("state")).env("HOME", self.dir.path());
        command.env("TMPDIR", self.dir.path()).current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that must succeed; gives what it printed.
    pub(crate) fn text(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must succeed with `--output json`; gives its objects.
    pub(crate) fn objects(&self, args: &[&str]) -> Vec<Value> {
        let args = [args, &["--output", "json"]].concat();
        objects(&self.text(&args))
    }

    pub(crate) fn object(&self, args: &[&str]) -> Value {
        let mut objects = self.objects(args);
        assert_eq!(objects.len(), 1, "{args:?} printed {objects:?}");
        objects.remove(0)
    }

    /// Starts a command that announces `listening on URL` on its standard output.
    pub(crate) fn start(&self, args: &[&str]) -> Running {
        let script = self.path("script.yaml");
        let mut command = self.command(args);
        command.args(["--listen", "127.0.0.1:0", "--script", script.to_str().unwrap()]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut running = Running { child, url: String::new(), readers: None };
        let mut out = BufReader::new(running.child.stdout.take().unwrap());
        let err = running.child.stderr.take().unwrap();
        let mut lines = String::new();
        while running.url.is_empty() {
            let mut line = String::new();
            if out.read_line(&mut line).unwrap() == 0 {
                panic!("{args:?} ended: {lines}{}", std::io::read_to_string(err).unwrap());
            }
            if let Some(url) = line.trim().strip_prefix("listening on ") {
                url.clone_into(&mut running.url);
            }
            lines.push_str(&line);
        }
        let rest = std::thread::spawn(move || std::io::read_to_string(out).unwrap());
        let log = std::thread::spawn(move || std::io::read_to_string(err).unwrap());
        running.readers = Some([rest, log]);
        running
    }

    pub(crate) fn server(&self) -> Running {
        self.start(&["server"])
    }
}

/// One object per line.
pub(crate) fn objects(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|why| panic!("{line:?}: {why}"))).collect()
}

/// A process of the binary that serves.
pub(crate) struct Running {
    child: Child,
    pub(crate) url: String,
    readers: Option<[std::thread::JoinHandle<String>; 2]>,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end and waits; gives whether it ended well, and the rest of what it printed.
    pub(crate) fn end(mut self) -> (bool, String, String) {
        signal(self.child.id(), "TERM");
        let status = self.child.wait().unwrap();
        let [out, err] = self.readers.take().unwrap();
        (status.success(), out.join().unwrap(), err.join().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap().success());
}

pub(crate) fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}
