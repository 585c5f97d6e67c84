//! The ways in which attempts are made and judged.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::time::{Duration, Instant};

use palisade_cell::{End, Reply, encode};
use serde_json::{Value, json};

use super::host::Host;
use super::scene::{ANSWER, Ended, PATIENCE, Scene};
use super::{Attempt, Verdict, bare};
use crate::{Error, Exec, ExecRequest, Facility, Sandbox, Spec, Status, Workspace};

/// How an attempt is made.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    /// The program is run, and its line and the host decide.
    Program,
    /// The same, and only if the worker has its variable.
    Variable,
    /// The program cannot tell how it ended: the host, and whether the worker is answered, decide.
    Host,
    /// It takes more than it may.
    Bomb(Limit),
    /// The same with memory that killing gives back only in part: the sandbox itself may end.
    Flood(Limit),
    /// It takes all of something and keeps it: another sandbox, and the worker's own user, must still get some.
    Held(u64),
    /// The same with what the kernel counts for each user of the host: every sandbox must be one of its own.
    HeldByUser(u64),
    /// It goes on while the cell starts commands.
    Starting,
    /// One sandbox leaves something, another looks for it.
    Between,
    /// It does not want to end when its time has run out.
    Overtime,
    /// It does not want to end with its sandbox.
    Outlive,
    /// Names change while a tool follows them.
    Race { tool: &'static str, to: Target },
    /// Something is prepared, and tools are called on it.
    Tools { fact: &'static str, calls: &'static [(&'static str, &'static str, Expect)] },
    /// Commands of the persistent shell: each is followed by one whose status must not be misreported.
    Shell(&'static [&'static str]),
    /// Output that nobody reads.
    Unread,
    /// Input that nobody reads.
    Deaf,
    /// Arguments and variables without measure.
    Arguments,
    /// Frames that only the cell may send.
    Frames,
}

/// What is limited, to how much.
#[derive(Debug, Clone, Copy)]
pub(super) enum Limit {
    /// Processes and threads.
    Pids(u64),
    /// Memory, in bytes.
    Memory(u64),
    /// Places in memory, in bytes.
    Places(u64),
    /// Names in them.
    Names(u64),
    /// The longest file, in bytes.
    File(u64),
    /// Open files.
    Files(u64),
    /// What is on the disk, in bytes.
    Disk(u64),
    /// Files on the disk.
    DiskNames(u64),
}

/// Where a race leads.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    /// The directory of the host's canary.
    Host,
    /// The read-only directory.
    ReadOnly,
    /// The cell's own directory in `/proc`.
    Cell,
}

/// What a tool must say.
#[derive(Debug, Clone, Copy)]
pub(super) enum Expect {
    /// An error.
    Error,
    /// Anything, but soon and not much of it.
    Answer,
    /// The same, with nothing that a terminal would obey.
    Plain,
}

impl Way {
    /// Whether the machine should be left to it.
    pub(super) fn is_heavy(self) -> bool {
        !matches!(self, Way::Program | Way::Variable | Way::Between | Way::Shell(_) | Way::Overtime | Way::Outlive)
    }
}

/// Makes an attempt. An early verdict is as good as one at the end.
pub(super) async fn attempt(attempt: &'static Attempt, scene: &mut Scene) -> Result<Verdict, Verdict> {
    match attempt.way {
        Way::Program => program(attempt.name, scene, false).await,
        Way::Variable if !Host::has_variable() => {
            Err(Verdict::NotRun(format!("{} is not set in the worker's environment", super::VARIABLE)))
        }
        Way::Variable => program(attempt.name, scene, false).await,
        Way::Host => program(attempt.name, scene, true).await,
        Way::Bomb(limit) => bomb(attempt.name, scene, limit, false).await,
        Way::Flood(limit) => bomb(attempt.name, scene, limit, true).await,
        Way::Held(most) => held(attempt.name, scene, most, None).await,
        Way::HeldByUser(most) => held(attempt.name, scene, most, Some(Facility::DistinctUser)).await,
        Way::Starting => starting(attempt.name, scene).await,
        Way::Between => between(attempt.name, scene).await,
        Way::Overtime => overtime(attempt.name, scene).await,
        Way::Outlive => outlive(attempt.name, scene).await,
        Way::Race { tool, to } => race(tool, to, scene).await,
        Way::Tools { fact, calls } => tools(attempt.name, fact, calls, scene).await,
        Way::Shell(commands) => shell(commands, scene).await,
        Way::Unread => unread(scene).await,
        Way::Deaf => deaf(scene).await,
        Way::Arguments => arguments(scene).await,
        Way::Frames => frames(scene).await,
    }
}

/// What a line makes of an attempt.
pub(super) fn read_line(line: &str, secret: &str) -> Verdict {
    if line.contains(secret) {
        return Verdict::Through("the host's secret was shown".to_owned());
    }
    match line.split_once(": ") {
        Some(("refused", how)) => Verdict::Refused(how.to_owned()),
        Some(("through", what)) => Verdict::Through(what.to_owned()),
        Some(("unclear", why)) => Verdict::Unclear(why.to_owned()),
        _ => Verdict::Unclear(format!("it said {line:?}")),
    }
}

fn judge(ended: &Ended, secret: &str, host_decides: bool) -> Verdict {
    if ended.timed_out {
        return match read_line(&ended.line, secret) {
            Verdict::Through(what) => Verdict::Through(what),
            _ => Verdict::Unclear("it took too long".to_owned()),
        };
    }
    match (ended.signal, read_line(&ended.line, secret)) {
        (_, Verdict::Through(what)) => Verdict::Through(what),
        (Some(signal @ (libc::SIGSYS | libc::SIGKILL)), _) => Verdict::Refused(format!("killed by signal {signal}")),
        (Some(signal), _) if !host_decides => Verdict::Unclear(format!("ended by signal {signal}")),
        (_, Verdict::Unclear(why)) if host_decides => Verdict::Refused(format!("{why}; without effect")),
        (_, verdict) => verdict,
    }
}

/// The verdict, if the sandbox is as it was before and can be ended.
async fn unharmed(scene: &mut Scene, sandbox: Sandbox, verdict: Verdict) -> Result<Verdict, Verdict> {
    scene.answers(&sandbox).await?;
    scene.end(sandbox).await?;
    Ok(if scene.note_is_unchanged() { verdict } else { Verdict::Through("a read-only file was changed".to_owned()) })
}

fn ended(why: &Error) -> Verdict {
    Verdict::Through(format!("the sandbox is beyond use: {why}"))
}

async fn program(name: &str, scene: &mut Scene, host_decides: bool) -> Result<Verdict, Verdict> {
    let sandbox = scene.sandbox(|_| {}).await?;
    let made = scene.make(&sandbox, name, &[]).await.map_err(|why| ended(&why))?;
    let verdict = judge(&made, scene.host.secret(), host_decides);
    // A dump would be in the working directory.
    let dumped = std::fs::read_dir(scene.workspace())
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with("core"));
    if dumped {
        return Err(Verdict::Through("a core was dumped".to_owned()));
    }
    unharmed(scene, sandbox, verdict).await
}

impl Limit {
    fn number(self) -> u64 {
        match self {
            Limit::Pids(n)
            | Limit::Memory(n)
            | Limit::Places(n)
            | Limit::Names(n)
            | Limit::File(n)
            | Limit::Files(n)
            | Limit::Disk(n)
            | Limit::DiskNames(n) => n,
        }
    }

    /// `layers` says whether workspaces of layers can be had.
    fn set(self, spec: &mut Spec, layers: bool) {
        if let (true, Limit::Disk(_) | Limit::DiskNames(_), Workspace::Directory(lower)) =
            (layers, self, &spec.workspace)
        {
            // Where it does not exist, making the sandbox says so.
            let upper = lower.with_extension("layer");
            let _ = std::fs::create_dir(&upper);
            spec.workspace = Workspace::Layered { lower: vec![lower.clone()], upper };
        }
        let limits = &mut spec.limits;
        match self {
            Limit::Pids(n) => limits.pids = Some(n),
            Limit::Memory(n) => (limits.memory_bytes, limits.tmp_bytes) = (Some(n), 1 << 30),
            Limit::Places(n) => limits.tmp_bytes = n,
            // One name for each page.
            Limit::Names(n) => limits.tmp_bytes = n << 12,
            Limit::File(n) => limits.file_bytes = Some(n),
            Limit::Files(n) => limits.open_files = Some(n),
            Limit::Disk(n) => limits.disk_bytes = Some(n),
            Limit::DiskNames(n) => (limits.disk_bytes, limits.disk_inodes) = (Some(64 << 20), Some(n)),
        }
    }

    /// What must be in force for the limit to mean anything.
    fn facility(self) -> Option<Facility> {
        match self {
            Limit::Pids(_) => Some(Facility::PidLimit),
            Limit::Memory(_) => Some(Facility::MemoryLimit),
            Limit::Disk(_) | Limit::DiskNames(_) => Some(Facility::DiskLimit),
            _ => None,
        }
    }
}

/// Whether what an attempt is aimed at is in force at all.
fn has(sandbox: &Sandbox, facility: Option<Facility>) -> Result<(), Verdict> {
    match facility.and_then(|facility| Some((facility, sandbox.report().facilities.get(&facility)?))) {
        Some((facility, Status::Unavailable(reason))) => Err(Verdict::NotRun(format!("no {facility} here: {reason}"))),
        _ => Ok(()),
    }
}

async fn bomb(name: &str, scene: &mut Scene, limit: Limit, may_end: bool) -> Result<Verdict, Verdict> {
    // Another one, which must not notice.
    let neighbour = scene.sandbox(|_| {}).await?;
    let layers = scene.has_layers();
    let sandbox = scene.sandbox(|spec| limit.set(spec, layers)).await?;
    has(&sandbox, limit.facility())?;
    let facts = [format!("limit={}", limit.number()), "ms=400".to_owned()];
    let mut exec = scene.start(&sandbox, name, &facts, PATIENCE).await.map_err(|why| ended(&why))?;
    let mut said = Vec::new();
    let late = Instant::now() + PATIENCE + ANSWER;
    let verdict = loop {
        match tokio::time::timeout(Duration::from_millis(100), exec.next()).await {
            Err(_) if Instant::now() > late => {
                break Verdict::Through("its time has run out, and it goes on".to_owned());
            }
            // It goes on: is anybody answered?
            Err(_) => {
                scene.answers(&neighbour).await?;
                let answered = scene.answers(&sandbox).await;
                if !may_end {
                    answered?;
                }
            }
            Ok(Ok(Some(crate::Output::Stdout(bytes) | crate::Output::Stderr(bytes)))) => said.extend_from_slice(&bytes),
            Ok(Ok(Some(crate::Output::Lost(_)))) => {}
            Ok(Ok(None)) => {
                let status = exec.status();
                let made = Ended {
                    line: String::from_utf8_lossy(&said).trim().to_owned(),
                    signal: status.and_then(|status| status.signal),
                    timed_out: status.is_some_and(|status| status.timed_out),
                };
                break judge(&made, scene.host.secret(), true);
            }
            Ok(Err(_)) if may_end => break Verdict::Refused("the sandbox ended".to_owned()),
            Ok(Err(why)) => return Err(ended(&why)),
        }
    };
    scene.answers(&neighbour).await?;
    scene.end(neighbour).await?;
    if may_end {
        scene.end(sandbox).await?;
        return Ok(verdict);
    }
    // What it left behind may fill its limit; nothing else may have changed.
    unharmed(scene, sandbox, verdict).await
}

async fn held(name: &str, scene: &mut Scene, most: u64, needs: Option<Facility>) -> Result<Verdict, Verdict> {
    let sandbox = scene.sandbox(|_| {}).await?;
    has(&sandbox, needs)?;
    let facts = [format!("limit={most}"), "role=hold".to_owned()];
    let mut exec = scene.start(&sandbox, name, &facts, PATIENCE).await.map_err(|why| ended(&why))?;
    let line = scene.line(&mut exec).await?;
    let taken = match read_line(&line, scene.host.secret()) {
        Verdict::Unclear(taken) => taken,
        Verdict::Through(what) => return Err(Verdict::Through(what)),
        _ => return Err(Verdict::Unclear(format!("it said {line:?}"))),
    };
    scene.answers(&sandbox).await?;
    let one = ["role=one".to_owned()];
    let neighbour = scene.sandbox(|_| {}).await?;
    let theirs = scene.make(&neighbour, name, &one).await.map_err(|why| ended(&why))?;
    let verdict = match judge(&theirs, scene.host.secret(), false) {
        Verdict::Refused(_) => match bare::line(&scene.host, name, &one).await {
            Verdict::Refused(how) => Verdict::Refused(format!("{taken}; {how}")),
            Verdict::Through(what) => Verdict::Through(format!("{taken}; on the host, {what}")),
            verdict => verdict,
        },
        Verdict::Through(what) => Verdict::Through(format!("{taken}; in another sandbox, {what}")),
        verdict => verdict,
    };
    drop(exec);
    scene.end(neighbour).await?;
    unharmed(scene, sandbox, verdict).await
}

async fn starting(name: &str, scene: &mut Scene) -> Result<Verdict, Verdict> {
    /// Commands that are started meanwhile.
    const STARTS: usize = 64;
    let sandbox = scene.sandbox(|_| {}).await?;
    let exec = scene.start(&sandbox, name, &["ms=10000".to_owned()], PATIENCE).await.map_err(|why| ended(&why))?;
    for _ in 0..STARTS {
        let made = scene.make(&sandbox, "survival.true", &[]).await.map_err(|why| ended(&why))?;
        let Verdict::Refused(_) = judge(&made, scene.host.secret(), false) else {
            return Err(Verdict::Through(format!("a command that does nothing said {:?}", made.line)));
        };
    }
    drop(exec);
    unharmed(scene, sandbox, Verdict::Refused(format!("{STARTS} commands ran meanwhile"))).await
}

async fn between(name: &str, scene: &mut Scene) -> Result<Verdict, Verdict> {
    let one = scene.sandbox(|_| {}).await?;
    let mut exec = scene.start(&one, name, &["role=leave".to_owned()], PATIENCE).await.map_err(|why| ended(&why))?;
    let line = scene.line(&mut exec).await?;
    match read_line(&line, scene.host.secret()) {
        Verdict::Unclear(left) if left == "left" => {}
        // What cannot even be left cannot be found.
        Verdict::Refused(how) => return Ok(Verdict::Refused(format!("{how}, to whoever wants to leave it"))),
        verdict => return Err(verdict),
    }
    let other = scene.sandbox(|_| {}).await?;
    let found = scene.make(&other, name, &["role=find".to_owned()]).await.map_err(|why| ended(&why))?;
    let verdict = judge(&found, scene.host.secret(), false);
    scene.answers(&one).await?;
    scene.end(one).await?;
    unharmed(scene, other, verdict).await
}

/// A pipe with a name: at its end when nobody inside has it open any more.
struct Alive {
    pipe: std::fs::File,
    made: std::path::PathBuf,
}

impl Alive {
    fn new(scene: &Scene) -> std::io::Result<Alive> {
        let at = scene.workspace().join("alive");
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(rustix::fs::CWD, &at, rustix::fs::FileType::Fifo, mode, 0)?;
        std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o666))?;
        let pipe = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&at)?;
        Ok(Alive { pipe, made: scene.workspace().join("alive-made") })
    }

    /// Whether anybody ever had it open.
    fn was_born(&self) -> bool {
        self.made.exists()
    }

    /// Waits until nobody has it open any more.
    async fn is_over(&mut self) -> bool {
        let late = Instant::now() + ANSWER;
        while Instant::now() < late {
            if matches!(self.pipe.read(&mut [0; 1]), Ok(0)) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        false
    }

    /// The verdict for processes that should be gone by now.
    async fn verdict(&mut self) -> Verdict {
        if !self.was_born() {
            Verdict::NotRun("a named pipe does not reach the host here".to_owned())
        } else if self.is_over().await {
            Verdict::Refused("gone with all its children".to_owned())
        } else {
            Verdict::Through("processes go on".to_owned())
        }
    }
}

async fn overtime(name: &str, scene: &mut Scene) -> Result<Verdict, Verdict> {
    let sandbox = scene.sandbox(|_| {}).await?;
    let mut alive = Alive::new(scene).map_err(|why| Verdict::Unclear(format!("the named pipe: {why}")))?;
    let mut exec = scene.start(&sandbox, name, &[], Duration::from_millis(500)).await.map_err(|why| ended(&why))?;
    let end = async {
        while exec.next().await?.is_some() {}
        Ok::<(), Error>(())
    };
    match tokio::time::timeout(ANSWER, end).await {
        Ok(Ok(())) => {}
        Ok(Err(why)) => return Err(ended(&why)),
        Err(_) => return Err(Verdict::Through("its time has run out, and it goes on".to_owned())),
    }
    if !exec.status().is_some_and(|status| status.timed_out) {
        return Err(Verdict::Unclear("it ended before its time".to_owned()));
    }
    let verdict = alive.verdict().await;
    unharmed(scene, sandbox, verdict).await
}

async fn outlive(name: &str, scene: &mut Scene) -> Result<Verdict, Verdict> {
    let sandbox = scene.sandbox(|_| {}).await?;
    let mut alive = Alive::new(scene).map_err(|why| Verdict::Unclear(format!("the named pipe: {why}")))?;
    scene.make(&sandbox, name, &[]).await.map_err(|why| ended(&why))?;
    scene.answers(&sandbox).await?;
    scene.end(sandbox).await?;
    Ok(alive.verdict().await)
}

async fn race(tool: &str, to: Target, scene: &mut Scene) -> Result<Verdict, Verdict> {
    /// How long the names change places.
    const MS: u64 = 700;
    let (target, file) = match to {
        Target::Host => (scene.host.place().display().to_string(), "canary"),
        Target::ReadOnly => ("/mnt/memory/canary".to_owned(), "note"),
        Target::Cell => ("/proc/self".to_owned(), "maps"),
    };
    let sandbox = scene.sandbox(|_| {}).await?;
    let facts = [format!("to={target}"), format!("ms={MS}")];
    let mut exec = scene.start(&sandbox, "links.race", &facts, PATIENCE).await.map_err(|why| ended(&why))?;
    let mut calls = 0;
    let line = loop {
        match tokio::time::timeout(Duration::from_millis(1), scene.line(&mut exec)).await {
            Ok(line) => break line?,
            Err(_) => {
                let input = match tool {
                    "glob" => json!({"pattern": "*", "path": "turn"}),
                    "grep" => json!({"pattern": "..", "path": "turn"}),
                    "write" => json!({"file_path": format!("turn/{file}"), "content": "overwritten"}),
                    "edit" => json!({
                        "file_path": format!("turn/{file}"), "old_string": "i", "new_string": "I", "replace_all": true
                    }),
                    _ => json!({"file_path": format!("turn/{file}")}),
                };
                let (text, _) = scene.tool(&sandbox, tool, input).await?;
                calls += 1;
                let inside = match to {
                    Target::Cell => ["[heap]", "[stack]", "[vdso]", "palisade-cell"].iter().any(|it| text.contains(it)),
                    Target::Host => text.contains(&target),
                    Target::ReadOnly => false,
                };
                if inside {
                    return Err(Verdict::Through(format!("{tool}, at call {calls}: {}", start(&text))));
                }
            }
        }
    };
    let verdict = match read_line(&line, scene.host.secret()) {
        Verdict::Unclear(turns) if turns.ends_with("turns") && turns != "0 turns" && calls > 0 => {
            Verdict::Refused(format!("{calls} calls, {turns}"))
        }
        Verdict::Through(what) => Verdict::Through(what),
        verdict => Verdict::Unclear(format!("{calls} calls, {verdict}")),
    };
    unharmed(scene, sandbox, verdict).await
}

/// The beginning of a text, for a verdict.
fn start(text: &str) -> String {
    text.chars().take(80).collect()
}

async fn tools(name: &str, fact: &str, calls: &[(&str, &str, Expect)], scene: &mut Scene) -> Result<Verdict, Verdict> {
    /// More than any tool returns.
    const MUCH: usize = 1 << 20;
    let sandbox = scene.sandbox(|spec| spec.limits.memory_bytes = Some(256 << 20)).await?;
    let made = scene.make(&sandbox, name, &[fact.to_owned()]).await.map_err(|why| ended(&why))?;
    if !made.line.ends_with(": prepared") {
        return Err(read_line(&made.line, scene.host.secret()));
    }
    for (tool, input, expect) in calls {
        let input: Value = serde_json::from_str(input).map_err(|why| Verdict::Unclear(why.to_string()))?;
        let shown = input.to_string();
        let (text, is_error) = scene.tool(&sandbox, tool, input).await?;
        if text.len() > MUCH {
            return Err(Verdict::Through(format!("{tool} {shown}: {} bytes", text.len())));
        }
        let obeyed = |c: char| c.is_control() && c != '\n' && c != '\t';
        match expect {
            Expect::Error if !is_error => {
                return Err(Verdict::Through(format!("{tool} {shown}: {}", start(&text))));
            }
            Expect::Plain if text.contains(obeyed) => {
                return Err(Verdict::Through(format!("{tool} {shown} shows what terminals obey")));
            }
            _ => {}
        }
        scene.answers(&sandbox).await?;
    }
    unharmed(scene, sandbox, Verdict::Refused("answered, in bounds".to_owned())).await
}

async fn shell(commands: &[&str], scene: &mut Scene) -> Result<Verdict, Verdict> {
    let sandbox = scene.sandbox(|_| {}).await?;
    if scene.tool(&sandbox, "bash", json!({"command": "true"})).await?.1 {
        return Err(Verdict::NotRun("there is no shell in this file system".to_owned()));
    }
    for command in commands {
        let short = json!({"command": command, "timeout_ms": 1500});
        // All of them end in a failure, which must be told as one.
        let (text, is_error) = scene.tool(&sandbox, "bash", short).await?;
        if !is_error {
            return Err(Verdict::Through(format!("{command:?} passes for a success: {}", start(&text))));
        }
        // What it has done to the shell must not make a success of the next failure, nor outlive a fresh start.
        let next = json!({"command": "/bin/false", "timeout_ms": 1500});
        if !scene.tool(&sandbox, "bash", next).await?.1 {
            return Err(Verdict::Through(format!("after {command:?} a failure passes for a success")));
        }
        let fresh = json!({"command": "echo fresh", "restart": true});
        let said = scene.tool(&sandbox, "bash", fresh).await?;
        if said != ("fresh".to_owned(), false) {
            return Err(Verdict::Through(format!("after {command:?} a fresh shell says {:?}", start(&said.0))));
        }
        // Other commands have an environment of their own.
        let made = scene.make(&sandbox, "survival.true", &[]).await.map_err(|why| ended(&why))?;
        if made.signal.is_some() || made.line != "refused: nothing was tried" {
            return Err(Verdict::Through(format!("after {command:?} another command says {:?}", start(&made.line))));
        }
    }
    unharmed(scene, sandbox, Verdict::Refused("told as a failure".to_owned())).await
}

async fn unread(scene: &mut Scene) -> Result<Verdict, Verdict> {
    let sandbox = scene.sandbox(|_| {}).await?;
    let before = resident();
    let mut floods: Vec<Exec> = Vec::new();
    for _ in 0..4 {
        floods.push(scene.start(&sandbox, "streams.flood", &[], PATIENCE).await.map_err(|why| ended(&why))?);
    }
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        scene.answers(&sandbox).await?;
    }
    let after = resident();
    drop(floods);
    if after > before + (32 << 20) {
        return Err(Verdict::Through(format!("the worker took {} MiB", (after - before) >> 20)));
    }
    unharmed(scene, sandbox, Verdict::Refused("held back".to_owned())).await
}

/// The memory of this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) << 10
}

async fn deaf(scene: &mut Scene) -> Result<Verdict, Verdict> {
    let sandbox = scene.sandbox(|_| {}).await?;
    let before = resident();
    let argv = scene.words("streams.deaf", &[]);
    let request = ExecRequest { argv, stdin: true, ..ExecRequest::default() };
    let exec = sandbox.exec(request).await.map_err(|why| ended(&why))?;
    let block = vec![b'x'; 1 << 20];
    let mut taken = 0;
    let feed = async {
        for _ in 0..64 {
            exec.write(&block).await?;
            taken += 1;
        }
        Ok::<(), Error>(())
    };
    // Whoever sends must wait; whoever asks must not.
    let _ = tokio::time::timeout(Duration::from_millis(500), feed).await;
    scene.answers(&sandbox).await?;
    let after = resident();
    drop(exec);
    if taken == 64 || after > before + (32 << 20) {
        return Err(Verdict::Through(format!("{taken} MiB were taken by nobody")));
    }
    unharmed(scene, sandbox, Verdict::Refused(format!("held back after {taken} MiB"))).await
}

async fn arguments(scene: &mut Scene) -> Result<Verdict, Verdict> {
    let sandbox = scene.sandbox(|_| {}).await?;
    let long = "x".repeat(4 << 20);
    let program = super::scene::PROGRAM.to_owned();
    let request = |argv: Vec<String>, env: Vec<(String, String)>| ExecRequest {
        argv,
        env,
        timeout: Some(ANSWER),
        ..ExecRequest::default()
    };
    let requests = [
        request(vec![program.clone(), long.clone()], Vec::new()),
        request(vec![program.clone()], vec![("LONG".to_owned(), long)]),
        request((0..200_000).map(|n| if n == 0 { program.clone() } else { "x".to_owned() }).collect(), Vec::new()),
        request(vec![format!("{program}\0x")], Vec::new()),
        request(vec![program.clone()], vec![("A=B".to_owned(), "x\0y".to_owned())]),
        request(Vec::new(), Vec::new()),
        request(vec![String::new()], Vec::new()),
    ];
    for request in requests {
        let made = match sandbox.exec(request).await {
            Ok(exec) => tokio::time::timeout(PATIENCE, exec.wait()).await,
            Err(why) => return Err(ended(&why)),
        };
        match made {
            Ok(Ok(_) | Err(Error::Exec(_))) => {}
            Ok(Err(why)) => return Err(ended(&why)),
            Err(_) => return Err(Verdict::Through("a command without measure is never answered".to_owned())),
        }
        scene.answers(&sandbox).await?;
    }
    unharmed(scene, sandbox, Verdict::Refused("refused or started, and answered".to_owned())).await
}

async fn frames(scene: &mut Scene) -> Result<Verdict, Verdict> {
    let sandbox = scene.sandbox(|_| {}).await?;
    let mut forged = Vec::new();
    for id in 0..64 {
        let content = vec![json!({"type": "text", "text": "forged"})];
        for reply in [
            Reply::Tool { id, content, is_error: false, cpu_us: None },
            Reply::Exit { id, end: End { code: Some(0), ..End::default() } },
        ] {
            forged.extend(encode(&reply, &[]).map_err(|why| Verdict::Unclear(why.to_string()))?);
        }
    }
    std::fs::write(scene.workspace().join("frames"), &forged).map_err(|why| Verdict::Unclear(why.to_string()))?;
    let exec = scene.start(&sandbox, "frames.forged", &[], PATIENCE).await.map_err(|why| ended(&why))?;
    let wait = exec.wait();
    tokio::pin!(wait);
    let (status, out, _) = loop {
        tokio::select! {
            done = &mut wait => break done.map_err(|why| ended(&why))?,
            answered = scene.answers(&sandbox) => answered?,
        }
    };
    // What was printed is output, to the last byte, and its own status is told.
    if status.code != Some(2) || !out.windows(forged.len()).any(|part| part == forged) {
        return Err(Verdict::Through(format!("the command's end is told as {status:?}")));
    }
    unharmed(scene, sandbox, Verdict::Refused("output, and nothing else".to_owned())).await
}
