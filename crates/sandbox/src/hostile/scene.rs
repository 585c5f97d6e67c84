//! The place of one attempt: its directories, its sandboxes, what it is told and whether the worker is answered.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Verdict;
use super::host::Host;
use crate::{Driver, Error, Exec, ExecRequest, MemoryMount, Output, Rootfs, Sandbox, Spec, Temporary, ToolCall};

/// The program's name inside.
pub(super) const PROGRAM: &str = "/workspace/palisade-hostile";
/// The worker must be answered within this time, whatever a sandbox does to itself.
pub(super) const ANSWER: Duration = Duration::from_secs(5);
/// The most time that an attempt may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// What an attempt can say; more is a flood.
const SAYS: usize = 64 << 10;
/// The content of the read-only file that attempts must not change.
pub(super) const NOTE: &str = "a note that stays as it is\n";

/// Where one attempt is made.
pub(super) struct Scene {
    driver: Arc<dyn Driver>,
    rootfs: Rootfs,
    pub(super) host: Arc<Host>,
    home: Temporary,
    slowest: Option<Duration>,
    sandboxes: usize,
}

/// What a command said in its one line, and how it ended.
pub(super) struct Ended {
    pub(super) line: String,
    pub(super) signal: Option<i32>,
    pub(super) timed_out: bool,
}

impl Scene {
    pub(super) fn new(driver: Arc<dyn Driver>, rootfs: Rootfs, host: Arc<Host>) -> io::Result<Scene> {
        let home = Temporary::new("palisade-scene-", None)?;
        fs::create_dir(home.path().join("memory"))?;
        fs::write(home.path().join("memory/note"), NOTE)?;
        // Nothing but the mount keeps anybody from writing it.
        fs::set_permissions(home.path().join("memory/note"), fs::Permissions::from_mode(0o666))?;
        Ok(Scene { driver, rootfs, host, home, slowest: None, sandboxes: 0 })
    }

    /// Whether the driver has workspaces of layers.
    pub(super) fn has_layers(&self) -> bool {
        self.driver.capabilities().snapshot
    }

    /// A sandbox with a workspace of its own; `change` makes its spec different.
    pub(super) async fn sandbox(&mut self, change: impl FnOnce(&mut Spec)) -> Result<Sandbox, Verdict> {
        self.sandboxes += 1;
        let (workspace, outputs) = self.directories().map_err(|why| unclear("the workspace", &why))?;
        let mut spec = Spec::new(workspace, outputs);
        spec.rootfs = self.rootfs.clone();
        let host = self.home.path().join("memory");
        spec.memory.push(MemoryMount { host, name: "canary".to_owned(), read_only: true });
        change(&mut spec);
        self.driver.create(spec).await.map_err(|why| Verdict::Unclear(format!("making a sandbox: {why}")))
    }

    fn directories(&self) -> io::Result<(PathBuf, PathBuf)> {
        let (workspace, outputs) = (self.workspace(), self.home.path().join(format!("outputs-{}", self.sandboxes)));
        fs::create_dir(&workspace)?;
        fs::create_dir(&outputs)?;
        let program = workspace.join("palisade-hostile");
        fs::copy(self.host.program(), &program)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        fs::write(workspace.join("answer"), "answered")?;
        Ok((workspace, outputs))
    }

    /// The workspace of the sandbox that was made last.
    pub(super) fn workspace(&self) -> PathBuf {
        self.home.path().join(format!("workspace-{}", self.sandboxes))
    }

    /// The read-only file, as the host sees it.
    pub(super) fn note_is_unchanged(&self) -> bool {
        let memory = self.home.path().join("memory");
        fs::read_to_string(memory.join("note")).is_ok_and(|note| note == NOTE)
            && fs::read_dir(memory).is_ok_and(|entries| entries.count() == 1)
    }

    /// The program's arguments for an attempt.
    pub(super) fn words(&self, name: &str, more: &[String]) -> Vec<String> {
        let mut words = vec![PROGRAM.to_owned(), name.to_owned()];
        words.extend(self.host.facts());
        words.extend_from_slice(more);
        words
    }

    /// Starts an attempt.
    pub(super) async fn start(
        &self,
        sandbox: &Sandbox,
        name: &str,
        more: &[String],
        timeout: Duration,
    ) -> Result<Exec, Error> {
        let argv = self.words(name, more);
        sandbox.exec(ExecRequest { argv, timeout: Some(timeout), ..ExecRequest::default() }).await
    }

    /// Makes an attempt and waits for its end, which the cell brings about in time unless it was stopped itself.
    pub(super) async fn make(&self, sandbox: &Sandbox, name: &str, more: &[String]) -> Result<Ended, Error> {
        let late = PATIENCE + ANSWER;
        let made = tokio::time::timeout(late, self.made(sandbox, name, more)).await;
        made.unwrap_or(Err(Error::Timeout(late.as_secs())))
    }

    async fn made(&self, sandbox: &Sandbox, name: &str, more: &[String]) -> Result<Ended, Error> {
        let mut exec = self.start(sandbox, name, more, PATIENCE).await?;
        let mut said = Vec::new();
        while let Some(output) = exec.next().await? {
            if let Output::Stdout(bytes) | Output::Stderr(bytes) = output
                && said.len() < SAYS
            {
                said.extend_from_slice(&bytes);
            }
        }
        let status = exec.status();
        Ok(Ended {
            line: String::from_utf8_lossy(&said).trim().to_owned(),
            signal: status.and_then(|status| status.signal),
            timed_out: status.is_some_and(|status| status.timed_out),
        })
    }

    /// Waits for the one line of an attempt that goes on afterwards.
    pub(super) async fn line(&self, exec: &mut Exec) -> Result<String, Verdict> {
        let mut said = Vec::new();
        let wait = async {
            while !said.contains(&b'\n') {
                match exec.next().await? {
                    Some(Output::Stdout(bytes) | Output::Stderr(bytes)) => said.extend_from_slice(&bytes),
                    Some(Output::Lost(_)) => {}
                    None => break,
                }
            }
            Ok::<(), Error>(())
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(Ok(())) => Ok(String::from_utf8_lossy(&said).trim().to_owned()),
            Ok(Err(why)) => Err(Verdict::Unclear(why.to_string())),
            Err(_) => Err(Verdict::Unclear("it says nothing".to_owned())),
        }
    }

    /// A tool's text, and whether it is an error. Not to be answered in time is what an attempt is out for.
    pub(super) async fn tool(
        &mut self,
        sandbox: &Sandbox,
        name: &str,
        input: Value,
    ) -> Result<(String, bool), Verdict> {
        let call = ToolCall { name: name.to_owned(), input, timeout: PATIENCE };
        let output = match tokio::time::timeout(PATIENCE, sandbox.tool(call)).await {
            Ok(Ok(output)) => output,
            Ok(Err(why)) => return Err(Verdict::Through(format!("{name} is not answered: {why}"))),
            Err(_) => return Err(Verdict::Through(format!("{name} is not answered within {} s", PATIENCE.as_secs()))),
        };
        let text: Vec<&str> = output.content.iter().filter_map(|block| block["text"].as_str()).collect();
        let text = text.join("\n");
        if text.contains(self.host.secret()) {
            return Err(Verdict::Through(format!("{name} shows the host's secret")));
        }
        Ok((text, output.is_error))
    }

    /// Whether the worker is answered: a file is read, which needs no new process.
    pub(super) async fn answers(&mut self, sandbox: &Sandbox) -> Result<(), Verdict> {
        let began = Instant::now();
        let call = ToolCall { name: "read".to_owned(), input: json!({"file_path": "answer"}), timeout: ANSWER };
        let output = match tokio::time::timeout(ANSWER, sandbox.tool(call)).await {
            Ok(Ok(output)) => output,
            Ok(Err(why)) => return Err(Verdict::Through(format!("the worker is not answered: {why}"))),
            Err(_) => {
                return Err(Verdict::Through(format!("the worker is not answered within {} s", ANSWER.as_secs())));
            }
        };
        if output.is_error || output.content.first().is_none_or(|block| block["text"] != "answered") {
            return Err(Verdict::Through("the worker is answered wrongly".to_owned()));
        }
        let took = began.elapsed();
        self.slowest = Some(self.slowest.map_or(took, |slowest| slowest.max(took)));
        Ok(())
    }

    /// The longest wait for an answer so far.
    pub(super) fn answered(&self) -> Option<Duration> {
        self.slowest
    }

    /// Ends a sandbox: it must go, whatever is in it.
    pub(super) async fn end(&self, sandbox: Sandbox) -> Result<(), Verdict> {
        match tokio::time::timeout(PATIENCE, sandbox.destroy()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => Err(Verdict::Through(format!("the sandbox cannot be ended: {why}"))),
            Err(_) => Err(Verdict::Through("the sandbox cannot be ended".to_owned())),
        }
    }
}

fn unclear(what: &str, why: &io::Error) -> Verdict {
    Verdict::Unclear(format!("preparing {what}: {why}"))
}
