//! A sandbox with a workspace of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use palisade_sandbox::{Driver, ExecRequest, ExitStatus, Native, Options, PoolOptions, Sandbox, Spec, ToolCall};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) struct Rig {
    pub(crate) sandbox: Sandbox,
    pub(crate) home: TempDir,
}

impl Rig {
    pub(crate) async fn new() -> Rig {
        Rig::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Spec)) -> Rig {
        let home = tempfile::tempdir().unwrap();
        let (workspace, outputs) = (home.path().join("workspace"), home.path().join("outputs"));
        std::fs::create_dir(&workspace).unwrap();
        std::fs::create_dir(&outputs).unwrap();
        let mut spec = Spec::new(workspace, outputs);
        change(&mut spec);
        let sandbox = if std::env::var_os(POOLED).is_some() {
            waited(spec).await
        } else {
            Native::new(Options::default()).create(spec).await.unwrap()
        };
        Rig { sandbox, home }
    }

    pub(crate) fn workspace(&self) -> PathBuf {
        self.home.path().join("workspace")
    }

    /// A tool's text, and whether it is an error.
    pub(crate) async fn call(&self, name: &str, input: Value) -> (String, bool) {
        self.within(name, input, Duration::from_secs(20)).await
    }

    pub(crate) async fn within(&self, name: &str, input: Value, timeout: Duration) -> (String, bool) {
        let call = ToolCall { name: name.to_owned(), input, timeout };
        let output = self.sandbox.tool(call).await.unwrap();
        (output.content[0]["text"].as_str().unwrap_or_default().to_owned(), output.is_error)
    }

    /// What a command prints, whatever its status.
    pub(crate) async fn bash(&self, command: &str) -> String {
        self.call("bash", json!({"command": command})).await.0
    }

    /// Runs a command of its own: its status, and what it printed to either stream.
    pub(crate) async fn run(&self, words: &[&str]) -> (ExitStatus, String) {
        let request = ExecRequest {
            argv: words.iter().map(|&word| word.to_owned()).collect(),
            timeout: Some(Duration::from_secs(20)),
            ..ExecRequest::default()
        };
        let (status, mut out, err) = self.sandbox.exec(request).await.unwrap().wait().await.unwrap();
        out.extend(err);
        (status, String::from_utf8_lossy(&out).trim().to_owned())
    }

    /// Waits until nothing of this name is left inside: what was killed counts until it has been collected.
    pub(crate) async fn gone(&self, name: &str) {
        for _ in 0..1000 {
            if self.bash(&format!("pgrep -c '{name}' || true")).await == "0" {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{name} goes on");
    }

    /// Runs a Perl program, which can make any system call.
    pub(crate) async fn perl(&self, program: &str) -> String {
        self.run(&["/usr/bin/perl", "-e", program]).await.1
    }
}

/// A sandbox that had waited for its session.
async fn waited(spec: Spec) -> Sandbox {
    let driver = Native::new(Options { pool: PoolOptions::of(1), ..Options::default() });
    driver.create(spec.clone()).await.unwrap().destroy().await.unwrap();
    until(|| driver.waiting() == 1).await;
    let sandbox = driver.create(spec).await.unwrap();
    assert!(sandbox.report().pooled);
    driver.close().await;
    sandbox
}

/// Waits for something to become true.
pub(crate) async fn until(true_at_last: impl Fn() -> bool) {
    for _ in 0..4000 {
        if true_at_last() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it did not come true");
}

/// When the process of this number began, if there is one: after its end another may have the number.
pub(crate) fn began(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.to_owned())
}

/// Control groups that a process has made.
pub(crate) fn groups(pid: u32) -> Vec<String> {
    let own = format!("palisade-{pid}-");
    let mut groups = Vec::new();
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        for group in std::fs::read_dir(hierarchy.path()).into_iter().flatten().flatten() {
            if group.file_name().to_string_lossy().starts_with(&own) {
                groups.push(group.path().display().to_string());
            }
        }
    }
    groups
}

/// Mounts of the host that sandboxes could have left: on the stage where their cells build, or of what is below `home`.
pub(crate) fn mounts(home: &Path) -> Vec<String> {
    let home = home.to_string_lossy();
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let stages = ["/sys", "/sys/root", "/sys/layers", "/sys/top"];
    let ours = text.lines().filter(|line| {
        let tmpfs = line.contains(" - tmpfs ") && line.split(' ').nth(4).is_some_and(|at| stages.contains(&at));
        tmpfs || line.contains(&*home)
    });
    ours.map(str::to_owned).collect()
}

/// Set where sandboxes are to have waited before they are attacked.
pub(crate) const POOLED: &str = "PALISADE_TEST_POOLED";
/// Set in the process that [`again`] starts.
const AGAIN: &str = "PALISADE_TEST_AGAIN";

/// Whether this process was started by [`again`].
pub(crate) fn is_again() -> bool {
    std::env::var_os(AGAIN).is_some()
}

/// This program once more, to run the test `name` and nothing else, as the child of a test.
pub(crate) fn again(name: &str) -> Command {
    again_through(&[], &std::env::current_exe().unwrap(), name)
}

/// The same, started by another program, from a place of its own.
pub(crate) fn again_through(starter: &[&str], program: &Path, name: &str) -> Command {
    let mut command = match starter.split_first() {
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
        None => Command::new(program),
    };
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(AGAIN, "1").stdin(Stdio::null());
    command
}
