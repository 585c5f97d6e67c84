//! What it takes to keep a session's changes, and to go on from them once or ten times.

use std::fs;
use std::io;
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use palisade_checkpoint::{CaptureOptions, Id, Layer, Ownership, Store};
use palisade_sandbox::{Native, Output, Sandbox, Spec, Workspace};
use tokio::task::{JoinSet, spawn_blocking};

use super::figure::{Figure, Samples};
use super::sandbox::{Home, bash, command, end, start};
use super::{Plan, measured};
use crate::output::{Context as _, Failure, Outcome};

const CAPTURE: &str = "checkpoint.capture_ms";
const RESTORE: &str = "checkpoint.restore_ms";
const FORK: &str = "checkpoint.fork10_ms";
pub(super) const FIGURES: [&str; 3] = [CAPTURE, RESTORE, FORK];

/// 11,700 files and 233 MB, of which a session changes 500 and removes 100.
const FILES: usize = 11_700;
const BYTES: usize = 19_920;
const DIRECTORIES: usize = 300;
const EDITS: usize = 500;
const REMOVALS: usize = 100;
const FORKS: usize = 10;
/// Whose a workspace is inside.
const AGENT: u32 = 1000;
const NO_CHECKPOINT: &str = "a checkpoint cannot be taken or used";

/// What is measured in each round.
#[derive(Default)]
struct Times {
    freeze: Samples,
    capture: Samples,
    materialise: Samples,
    restore: Samples,
    again: Samples,
    fork: Samples,
    fork_again: Samples,
    copy: Samples,
    /// By how much the store has grown, in MiB.
    grown: f64,
}

pub(super) async fn measure(plan: &Plan) -> Outcome<Vec<Figure>> {
    let plan = plan.clone();
    // As in the sandbox's figures: a task among others.
    let task = tokio::spawn(async move { all(&plan).await });
    task.await.context("the checkpoint's figures cannot be measured")?
}

async fn all(plan: &Plan) -> Outcome<Vec<Figure>> {
    let home = Home::make(&plan.place)?;
    let base = home.path().join("base");
    let at = base.clone();
    blocking(move || make(&at).context("the base of the checkpoints cannot be made")).await?;
    let driver = Native::default();
    let mut times = Times::default();
    for number in 0..plan.pick(7, 2) + 1 {
        let directory = home.path().join(format!("round-{number}"));
        let copies = number > 0 && number <= plan.pick(3, 1);
        let took = round(&driver, &home, &base, &directory, copies).await?;
        // The first round fills caches.
        if number > 0 {
            times.add(took);
        }
        blocking(move || fs::remove_dir_all(&directory).context("what was measured cannot be removed")).await?;
    }
    figures(&times)
}

fn figures(times: &Times) -> Outcome<Vec<Figure>> {
    let at = |samples: &Samples, percent| measured(samples.percentile_ms(percent), CAPTURE);
    let copy = at(&times.copy, 50)?;
    let rounds = times.capture.len();
    Ok(vec![
        Figure::new(CAPTURE, at(&times.capture, 50)?, "ms")
            .beside("cp -a", copy)
            .with_number("max_ms", at(&times.capture, 100)?)
            .with_number("freeze_ms", at(&times.freeze, 50)?)
            .with_number("store_grown_mib", times.grown)
            .with_number("base_mib", (FILES * BYTES) as f64 / f64::from(1 << 20))
            .with("base_files", FILES)
            .with("changes", EDITS + REMOVALS)
            .with("rounds", rounds),
        Figure::new(RESTORE, at(&times.restore, 50)?, "ms")
            .beside("cp -a", copy)
            .with_number("max_ms", at(&times.restore, 100)?)
            .with_number("materialise_ms", at(&times.materialise, 50)?)
            .with_number("layer_there_ms", at(&times.again, 50)?)
            .with("rounds", rounds),
        Figure::new(FORK, at(&times.fork, 50)?, "ms")
            .beside("cp -a once", copy)
            .with_number("max_ms", at(&times.fork, 100)?)
            .with_number("layer_there_ms", at(&times.fork_again, 50)?)
            .with("forks", FORKS)
            .with("rounds", rounds),
    ])
}

/// What one round took.
struct Round {
    freeze: Duration,
    capture: Duration,
    grown: u64,
    materialise: Duration,
    restore: Duration,
    again: Duration,
    fork: Duration,
    fork_again: Duration,
    copy: Option<Duration>,
}

impl Times {
    fn add(&mut self, took: Round) {
        self.freeze.add(took.freeze);
        self.capture.add(took.capture);
        self.materialise.add(took.materialise);
        self.restore.add(took.restore);
        self.again.add(took.again);
        self.fork.add(took.fork);
        self.fork_again.add(took.fork_again);
        self.copy.extend(took.copy);
        self.grown = took.grown as f64 / f64::from(1 << 20);
    }
}

/// A session changes its workspace, a checkpoint is taken, one session goes on from it, then ten.
async fn round(driver: &Native, home: &Home, base: &Path, directory: &Path, copies: bool) -> Outcome<Round> {
    fs::create_dir(directory).context(NO_CHECKPOINT)?;
    let store = Arc::new(Store::open(directory.join("store")).context(NO_CHECKPOINT)?);
    let layer = directory.join("session");
    let sandbox = start(driver, spec(home, vec![base.to_owned()], &layer)?).await?;
    change(&sandbox).await?;
    let begun = Instant::now();
    sandbox.freeze().await.context(NO_CHECKPOINT)?;
    let freeze = begun.elapsed();
    let (id, grown) = {
        let (store, upper) = (store.clone(), layer.join("upper"));
        let options = CaptureOptions { ownership: ownership(), ..CaptureOptions::new("base", SystemTime::UNIX_EPOCH) };
        blocking(move || {
            let captured = store.capture(&upper, &options).context(NO_CHECKPOINT)?;
            Ok((captured.checkpoint.id, captured.grown))
        })
        .await?
    };
    sandbox.thaw().await.context(NO_CHECKPOINT)?;
    let capture = begun.elapsed();
    end(sandbox).await?;

    let on = |name: &str| directory.join(name);
    let (materialise, restore) = go_on(driver, home, &store, id, base, &[on("restored")]).await?;
    let (_, again) = go_on(driver, home, &store, id, base, &[on("again")]).await?;
    // As if nobody had gone on from it before.
    fs::remove_dir_all(store.dir().join("layers").join(id.to_string())).context(NO_CHECKPOINT)?;
    let forks = |name: &str| (0..FORKS).map(|number| on(&format!("{name}-{number}"))).collect::<Vec<_>>();
    let (_, fork) = go_on(driver, home, &store, id, base, &forks("fork")).await?;
    let (_, fork_again) = go_on(driver, home, &store, id, base, &forks("fork-again")).await?;
    let copy = if copies { Some(copy(base, &on("copy")).await?) } else { None };
    Ok(Round { freeze, capture, grown, materialise, restore, again, fork, fork_again, copy })
}

/// The changes, made inside by the session's own shell.
async fn change(sandbox: &Sandbox) -> Outcome<()> {
    let removed = EDITS + REMOVALS;
    let script = format!(
        "for ((i = 0; i < {EDITS}; i++)); do f=module-$((i % {DIRECTORIES}))/file-$i.txt; text=$(<$f); \
         printf '%s\\nchanged %s\\n' \"${{text:0:12000}}\" $i >$f || exit 1; done; \
         for ((i = {EDITS}; i < {removed}; i++)); do echo module-$((i % {DIRECTORIES}))/file-$i.txt; done | xargs rm; \
         ls module-*/ | grep -c '^file'"
    );
    let left = bash(sandbox, &script).await?;
    let expected = FILES - REMOVALS;
    if left.trim() == expected.to_string() {
        return Ok(());
    }
    Err(Failure::new("a workspace cannot be changed")
        .why(format!("{expected} files should be left, but it says {left}")))
}

/// New sessions over a checkpoint: until its layer is there, and until each session has read from it.
async fn go_on(
    driver: &Native,
    home: &Home,
    store: &Arc<Store>,
    id: Id,
    base: &Path,
    sessions: &[PathBuf],
) -> Outcome<(Duration, Duration)> {
    let begun = Instant::now();
    let layer: Layer = {
        let store = store.clone();
        blocking(move || store.materialise(&id, ownership()).context(NO_CHECKPOINT)).await?
    };
    let materialised = begun.elapsed();
    let mut all = JoinSet::new();
    for session in sessions {
        let spec = spec(home, vec![layer.path().to_owned(), base.to_owned()], session)?;
        let driver = driver.clone();
        all.spawn(async move {
            let sandbox = start(&driver, spec).await?;
            let file = "/workspace/module-1/file-1.txt";
            let mut tail = command(&sandbox, &["/usr/bin/tail", "-n1", file]).await?;
            let first = tail.next().await.context(NO_CHECKPOINT)?;
            if first != Some(Output::Stdout(b"changed 1\n".to_vec())) {
                return Err(Failure::new(NO_CHECKPOINT).why("a change is not in what was restored"));
            }
            Ok(sandbox)
        });
    }
    let mut sandboxes = Vec::new();
    while let Some(sandbox) = all.join_next().await {
        sandboxes.push(sandbox.context(NO_CHECKPOINT)??);
    }
    let up = begun.elapsed();
    for sandbox in sandboxes {
        end(sandbox).await?;
    }
    drop(layer);
    Ok((materialised, up))
}

/// The way of those who have no layers.
async fn copy(from: &Path, to: &Path) -> Outcome<Duration> {
    let begun = Instant::now();
    let mut command = tokio::process::Command::new("cp");
    command.arg("-a").args([from, to]).stdin(Stdio::null()).kill_on_drop(true);
    let ended = command.status().await.context("cp cannot be run")?;
    let took = begun.elapsed();
    if ended.success() { Ok(took) } else { Err(Failure::new("the base cannot be copied").why(ended)) }
}

fn spec(home: &Home, lower: Vec<PathBuf>, upper: &Path) -> Outcome<Spec> {
    fs::create_dir_all(upper).context(NO_CHECKPOINT)?;
    Ok(Spec { workspace: Workspace::Layered { lower, upper: upper.to_owned() }, ..home.spec() })
}

fn ownership() -> Ownership {
    if is_root() { Ownership::Kept } else { Ownership::Flat { uid: AGENT, gid: AGENT } }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// With root, what is in a workspace belongs to the agent.
fn give(path: &Path) -> io::Result<()> {
    if is_root() { lchown(path, Some(AGENT), Some(AGENT)) } else { Ok(()) }
}

/// The base: text that compresses as source code does.
fn make(base: &Path) -> io::Result<()> {
    fs::create_dir(base)?;
    give(base)?;
    for number in 0..FILES {
        let directory = base.join(format!("module-{}", number % DIRECTORIES));
        if number < DIRECTORIES {
            fs::create_dir(&directory)?;
            give(&directory)?;
        }
        let file = directory.join(format!("file-{number}.txt"));
        fs::write(&file, text(number as u64))?;
        give(&file)?;
    }
    Ok(())
}

fn text(seed: u64) -> String {
    let words = ["let ", "value", " = ", "self.", "name", "(", ")", ";\n", "if ", "return ", "Some", "data", "{\n"];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = String::with_capacity(BYTES + 16);
    while text.len() < BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.push_str(words[(state >> 40) as usize % words.len()]);
        if state.is_multiple_of(11) {
            text.push_str(&format!("{state:x}"));
        }
    }
    text.truncate(BYTES);
    text
}

/// Runs what waits for the disk where it holds nobody up.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Outcome<T> + Send + 'static) -> Outcome<T> {
    spawn_blocking(work).await.context(NO_CHECKPOINT)?
}
