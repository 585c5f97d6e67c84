//! How long a sandbox takes from nothing to the first output of a command.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use palisade_sandbox::{Driver as _, ExecRequest, Native, Options, Spec};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::figure::{Figure, Samples};
use super::{Plan, measured};
use crate::output::{Context as _, Failure, Outcome, note};

const FIGURE: &str = "sandbox.cold_p50_ms";
const WARM_UP: usize = 5;
/// The peer, where it is installed.
const PEER: &str = "bwrap";

pub(super) async fn measure(plan: &Plan) -> Outcome<Vec<Figure>> {
    let runs = plan.pick(100, 25);
    let (mut starts, mut lives) = (Samples::default(), Samples::default());
    let (mut theirs, mut present) = (Samples::default(), true);
    // Turn by turn, so that what else the machine does falls on both.
    for _ in 0..runs + WARM_UP {
        let (start, life) = ours(&plan.place).await?;
        starts.add(start);
        lives.add(life);
        if present {
            match peer().await {
                Ok(took) => theirs.add(took),
                Err(why) => {
                    present = false;
                    note(format!("note: {FIGURE} has no peer: {PEER}: {why}"));
                }
            }
        }
    }
    let (starts, lives) = (starts.without_first(WARM_UP), lives.without_first(WARM_UP));
    let mut figure = Figure::new(FIGURE, measured(starts.percentile_ms(50), FIGURE)?, "ms")
        .with_number("p95_ms", measured(starts.percentile_ms(95), FIGURE)?)
        .with_number("with_end_p50_ms", measured(lives.percentile_ms(50), FIGURE)?)
        .with("runs", starts.len());
    if present && let Some(value) = theirs.without_first(WARM_UP).percentile_ms(50) {
        figure = figure.beside(PEER, value);
    }
    Ok(vec![figure])
}

/// From asking for a sandbox to the first byte of a command's output, and to the sandbox's end.
async fn ours(place: &Path) -> Outcome<(Duration, Duration)> {
    let what = "a sandbox cannot be started";
    let home = tempfile::Builder::new().prefix("palisade-bench.").tempdir_in(place).context(what)?;
    let (workspace, outputs) = (home.path().join("workspace"), home.path().join("outputs"));
    std::fs::create_dir(&workspace).context(what)?;
    std::fs::create_dir(&outputs).context(what)?;
    let spec = Spec::new(workspace, outputs);
    let driver = Native::new(Options::default());
    let begun = Instant::now();
    let sandbox = driver
        .create(spec)
        .await
        .map_err(|why| Failure::new(what).why(why).fix("`palisade doctor` says what to change on this machine"))?;
    let argv = ["/bin/echo", "up"].map(String::from).to_vec();
    let mut echo = sandbox.exec(ExecRequest { argv, ..ExecRequest::default() }).await.context(what)?;
    let first = echo.next().await.context(what)?;
    let start = begun.elapsed();
    if first.is_none() {
        return Err(Failure::new(what).why("the command gave no output"));
    }
    drop(echo);
    sandbox.destroy().await.context("a sandbox cannot be ended")?;
    Ok((start, begun.elapsed()))
}

/// The same command in bubblewrap's sandbox: all namespaces, a read-only root, its own /dev, /proc and /tmp.
async fn peer() -> std::io::Result<Duration> {
    let arguments = "--unshare-all --die-with-parent --ro-bind / / --dev /dev --proc /proc --tmpfs /tmp /bin/echo up";
    let begun = Instant::now();
    let mut child = Command::new(PEER)
        .args(arguments.split(' '))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut first = [0; 1];
    let read = match &mut child.stdout {
        Some(output) => output.read(&mut first).await?,
        None => 0,
    };
    let took = begun.elapsed();
    let ended = child.wait().await?;
    if read == 0 || !ended.success() {
        return Err(std::io::Error::other("it is installed but cannot make a sandbox here"));
    }
    Ok(took)
}
