//! What sandboxes cost: from nothing, from the pool, in a burst; a command, a tool, memory, and a thousand of them.

mod cold;
mod density;
mod exec;
mod files;
mod peers;
mod pool;

use std::path::{Path, PathBuf};
use std::time::Duration;

use palisade_sandbox::{Driver as _, Exec, ExecRequest, Native, Sandbox, Spec, ToolCall};
use serde_json::{Value, json};

use super::Plan;
use super::figure::Figure;
use crate::output::{Context as _, Failure, Outcome};
use peers::Peers;

const COLD: &str = "sandbox.cold_p50_ms";
const POOL: &str = "sandbox.pool_p50_ms";
const BURST: &str = "sandbox.burst_p50_ms";
const EXEC: &str = "sandbox.exec_p50_ms";
const BASH: &str = "sandbox.bash_p50_us";
const GREP: &str = "sandbox.grep_ratio";
const GLOB: &str = "sandbox.glob_ms";
const IDLE: &str = "sandbox.idle_mib";
const DENSITY: &str = "sandbox.density";

pub(super) const FIGURES: [&str; 9] = [COLD, POOL, BURST, EXEC, BASH, GREP, GLOB, IDLE, DENSITY];

const NO_SANDBOX: &str = "a sandbox cannot be started";
const NO_CALL: &str = "a call in a sandbox has failed";

pub(super) async fn measure(plan: &Plan) -> Outcome<Vec<Figure>> {
    let plan = plan.clone();
    // A session is a task among others, not the program's first thread, which takes longer to be woken.
    let task = tokio::spawn(async move { all(&plan).await });
    task.await.context("the sandbox's figures cannot be measured")?
}

async fn all(plan: &Plan) -> Outcome<Vec<Figure>> {
    let mut figures = Vec::new();
    if plan.wants(COLD) || plan.wants(EXEC) {
        let mut peers = Peers::start(plan).await?;
        let beside = beside_peers(plan, &mut peers).await;
        peers.end().await;
        figures.extend(beside?);
    }
    if plan.wants(POOL) {
        figures.push(pool::claims(plan).await?);
    }
    if plan.wants(BURST) {
        figures.push(pool::bursts(plan).await?);
    }
    if plan.wants(BASH) {
        figures.push(exec::builtin(plan).await?);
    }
    if plan.wants(GREP) || plan.wants(GLOB) {
        figures.extend(files::measure(plan).await?);
    }
    if plan.wants(IDLE) {
        figures.push(density::idle(plan).await?);
    }
    if plan.wants(DENSITY) {
        figures.push(density::measure(plan).await?);
    }
    Ok(figures)
}

async fn beside_peers(plan: &Plan, peers: &mut Peers) -> Outcome<Vec<Figure>> {
    let mut figures = Vec::new();
    if plan.wants(COLD) {
        figures.push(cold::measure(plan, peers).await?);
    }
    if plan.wants(EXEC) {
        figures.push(exec::command(plan, peers).await?);
    }
    Ok(figures)
}

/// Directories for one sandbox, which go with it.
#[derive(Debug)]
pub(super) struct Home {
    directory: tempfile::TempDir,
}

impl Home {
    pub(super) fn make(place: &Path) -> Outcome<Home> {
        let what = "the directories of a sandbox cannot be made";
        let directory = tempfile::Builder::new().prefix("palisade-bench.").tempdir_in(place).context(what)?;
        for name in ["workspace", "outputs"] {
            std::fs::create_dir(directory.path().join(name)).context(what)?;
        }
        Ok(Home { directory })
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    fn workspace(&self) -> PathBuf {
        self.path().join("workspace")
    }

    pub(super) fn spec(&self) -> Spec {
        Spec::new(self.workspace(), self.path().join("outputs"))
    }
}

pub(super) async fn start(driver: &Native, spec: Spec) -> Outcome<Sandbox> {
    let made = driver.create(spec).await;
    made.map_err(|why| Failure::new(NO_SANDBOX).why(why).fix("`palisade doctor` says what to change on this machine"))
}

pub(super) async fn end(sandbox: Sandbox) -> Outcome<()> {
    sandbox.destroy().await.context("a sandbox cannot be ended")
}

pub(super) async fn command(sandbox: &Sandbox, argv: &[&str]) -> Outcome<Exec> {
    let argv = argv.iter().map(|&word| word.to_owned()).collect();
    sandbox.exec(ExecRequest { argv, ..ExecRequest::default() }).await.context(NO_CALL)
}

/// Runs `echo` until its first byte of output is here.
pub(super) async fn echo(sandbox: &Sandbox) -> Outcome<()> {
    let mut echo = command(sandbox, &["/bin/echo", "up"]).await?;
    match echo.next().await.context(NO_CALL)? {
        Some(_) => Ok(()),
        None => Err(Failure::new(NO_CALL).why("the command gave no output")),
    }
}

/// Calls a tool; the text of its result.
pub(super) async fn tool(sandbox: &Sandbox, name: &str, input: Value) -> Outcome<String> {
    let call = ToolCall { name: name.to_owned(), input, timeout: Duration::from_secs(120) };
    let output = sandbox.tool(call).await.context(NO_CALL)?;
    let text = output.content.first().and_then(|block| block["text"].as_str()).unwrap_or_default().to_owned();
    if output.is_error { Err(Failure::new(NO_CALL).why(text)) } else { Ok(text) }
}

pub(super) async fn bash(sandbox: &Sandbox, command: &str) -> Outcome<String> {
    tool(sandbox, "bash", json!({"command": command})).await
}

/// Until so many sandboxes wait for sessions.
pub(super) async fn full(driver: &Native, count: usize) -> Outcome<()> {
    let waits = async {
        while driver.waiting() < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // The last one to come may still be settling down.
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    let limit = Duration::from_secs(60);
    tokio::time::timeout(limit, waits)
        .await
        .map_err(|_| Failure::new("the pool does not fill").why("a minute has passed"))
}
