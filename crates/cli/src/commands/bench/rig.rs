//! The planes as child processes of their own, each as an operator would start it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use palisade_sandbox::Temporary;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::client::{Client, bootstrap_file};
use crate::commands::agents::sandbox_tools;
use crate::commands::text;
use crate::local;
use crate::output::{Context as _, Failure, Outcome};
use crate::secret::Source;

/// How long anything may take that takes milliseconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A process that was started for a figure. Killed when dropped; [`Process::end`] is the polite way.
pub(super) struct Process {
    child: Child,
    pub(super) pid: u32,
}

impl Process {
    /// Starts it and waits for the first line of its output that has this prefix; gives what comes after.
    pub(super) async fn start(mut command: Command, prefix: &str) -> Outcome<(Process, String)> {
        command.stdout(Stdio::piped());
        let (mut process, what) = Process::spawn(command)?;
        let output = process.child.stdout.take().ok_or_else(|| Failure::new(what.clone()).why("it has no output"))?;
        let mut lines = BufReader::new(output).lines();
        let ready = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some(rest) = line.strip_prefix(prefix) {
                    return Some(rest.trim().to_owned());
                }
            }
            None
        };
        let rest = tokio::time::timeout(PATIENCE, ready).await.ok().flatten();
        let rest = rest.ok_or_else(|| Failure::new(what).why("it did not say that it is ready"))?;
        // A pipe that nobody reads would stop it once it is full; one that is closed would too.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok((process, rest))
    }

    /// Starts it without hearing what it says, unless somebody asked for its output.
    pub(super) fn spawn(mut command: Command) -> Outcome<(Process, String)> {
        let what = format!("{} cannot be started", Path::new(command.as_std().get_program()).display());
        let child =
            command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().context(what.clone())?;
        let pid = child.id().ok_or_else(|| Failure::new(what.clone()).why("it ended at once"))?;
        Ok((Process { child, pid }, what))
    }

    /// Whether it has ended by itself.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends it in good order, and by force when it takes too long.
    pub(super) async fn end(mut self) {
        if let Some(pid) = self.child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())) {
            // It may have ended by itself.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        if tokio::time::timeout(Duration::from_secs(5), self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

/// A server with an environment and an agent that follows a script.
pub(super) struct Rig {
    pub(super) client: Client,
    pub(super) url: String,
    pub(super) api_key: String,
    pub(super) environment: String,
    pub(super) agent: String,
    pub(super) server: Process,
    key_file: PathBuf,
    directory: Temporary,
}

/// This very program.
pub(super) fn palisade() -> Outcome<Command> {
    let mut command = Command::new(std::env::current_exe().context("this program cannot be found")?);
    // What is set for the shell's own commands is not meant for these.
    for name in ["PALISADE_OUTPUT", "PALISADE_STATE_DIR", "PALISADE_BASE_URL"] {
        command.env_remove(name);
    }
    command.env("PALISADE_LOG", "off");
    Ok(command)
}

impl Rig {
    /// Starts a server in a fresh directory below `place`, with the agent that plays `script`.
    pub(super) async fn start(place: &Path, script: &Value) -> Outcome<Rig> {
        let directory = Temporary::new("palisade-bench.", Some(place));
        let directory = directory.context(format!("no directory can be made in {}", place.display()))?;
        let script_file = directory.path().join("script.json");
        std::fs::write(&script_file, script.to_string()).context("the script cannot be written")?;
        let state = directory.path().join("server");
        let mut command = palisade()?;
        command.arg("server").arg("--state-dir").arg(&state).args(["--listen", "127.0.0.1:0"]);
        command.arg("--script").arg(&script_file);
        let (server, url) = Process::start(command, "listening on ").await?;
        let key = Source::File(bootstrap_file(&state)).read("the API key")?;
        let api_key = key.expose().to_owned();
        let client = Client::new(&url, key, None)?;
        let body = json!({"name": "bench", "config": {"type": "self_hosted"}});
        let environment = text(&client.post("create the environment", "/v1/environments", &body).await?, "id");
        let body = json!({"name": "bench", "model": "scripted", "tools": sandbox_tools("always_allow")});
        let agent = text(&client.post("create the agent", "/v1/agents", &body).await?, "id");
        let body = json!({"kind": "environment", "environment_id": environment, "name": "bench"});
        let key = text(&client.post("create the environment's key", "/palisade/v1/keys", &body).await?, "key");
        let key_file = directory.path().join("environment.key");
        local::write_whole(&key_file, key.as_bytes()).context("the environment's key cannot be kept")?;
        Ok(Rig { client, url, api_key, environment, agent, server, key_file, directory })
    }

    /// A new directory of this rig.
    pub(super) fn directory(&self, name: &str) -> Outcome<PathBuf> {
        let path = self.directory.path().join(name);
        std::fs::create_dir_all(&path).context(format!("the directory {} cannot be made", path.display()))?;
        Ok(path)
    }

    /// Starts `palisade worker`.
    pub(super) async fn worker(&self, options: &[&str]) -> Outcome<Process> {
        let mut command = palisade()?;
        command.args(["worker", "--base-url", &self.url, "--environment", &self.environment]);
        command.arg("--environment-key-file").arg(&self.key_file);
        command.arg("--state-dir").arg(self.directory("worker")?).args(options);
        Ok(Process::start(command, "polling").await?.0)
    }

    /// Starts another program as a worker: `program script BASE_URL ENVIRONMENT KEY_FILE DIRECTORY`.
    pub(super) async fn foreign_worker(&self, program: &Path, script: &Path) -> Outcome<Process> {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ANTHROPIC_") {
                command.env_remove(name);
            }
        }
        // A proxy cannot reach this machine's loopback.
        command.env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
        command.arg(script).arg(&self.url).arg(&self.environment).arg(&self.key_file);
        command.arg(self.directory("foreign")?);
        Ok(Process::start(command, "polling").await?.0)
    }

    /// Creates a session, with this message when there is one.
    pub(super) async fn session(&self, message: Option<&str>) -> Outcome<String> {
        let mut body = json!({"agent": self.agent, "environment_id": self.environment});
        if let Some(message) = message {
            body["initial_events"] = json!([user_message(message)]);
        }
        Ok(text(&self.client.post("create the session", "/v1/sessions", &body).await?, "id"))
    }

    /// Ends the server.
    pub(super) async fn end(self) {
        self.server.end().await;
    }
}

/// A user's message as it is sent.
pub(super) fn user_message(text: &str) -> Value {
    json!({"type": "user.message", "content": [{"type": "text", "text": text}]})
}

/// A script that asks for `true` so many times, one call after the other.
pub(super) fn calls(count: usize) -> Value {
    let step = json!({"reply": [{"tool": {"name": "bash", "input": {"command": "true"}}}]});
    json!({"name": "bench", "steps": vec![step; count], "otherwise": {"reply": [{"text": "Done."}]}})
}
