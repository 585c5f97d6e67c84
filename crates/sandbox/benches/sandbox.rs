//! What a sandbox costs: time to the first output, from nothing and from the pool, alone and in a burst; a warm call, a
//! command, memory while idle; and, when it is asked for by name, `grep` and `glob` on a tree of 100,000 files.
//!
//! Prints p50 and p99 of each, in microseconds: percentiles of whole operations are what a session feels. `bwrap`, where it
//! is installed, is measured beside it with every namespace that it has, and so is `rg`. Words choose parts: `cold`, `pool`,
//! `burst`, `warm`, `memory`; `files`, which writes 600 MB to the temporary folder first, is in no run that does not name it.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a program that measures and says what it found")]

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use palisade_sandbox::{Driver, ExecRequest, Native, Options, PoolOptions, Sandbox, Spec, ToolCall};
use serde_json::json;
use tempfile::TempDir;

fn bash(command: &str) -> ToolCall {
    ToolCall { name: "bash".to_owned(), input: json!({"command": command}), timeout: Duration::from_secs(10) }
}

fn say(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_micros();
    println!("{name:<34} p50 {:>7} us   p99 {:>7} us   ({} times)", at(50), at(99), times.len());
}

fn spec(home: &TempDir) -> Spec {
    Spec::new(home.path().join("workspace"), home.path().join("outputs"))
}

async fn create(home: &TempDir) -> Sandbox {
    Native::new(Options::default()).create(spec(home)).await.unwrap()
}

fn pooled(most: usize) -> Native {
    Native::new(Options { pool: PoolOptions { least: most, ..PoolOptions::of(most) }, ..Options::default() })
}

async fn exec(sandbox: &Sandbox) {
    let request = ExecRequest { argv: vec!["/bin/true".to_owned()], ..ExecRequest::default() };
    assert_eq!(sandbox.exec(request).await.unwrap().wait().await.unwrap().0.code, Some(0));
}

/// Until the first output of a command.
async fn echo(sandbox: &Sandbox) {
    let request = ExecRequest { argv: vec!["/bin/echo".to_owned(), "x".to_owned()], ..ExecRequest::default() };
    assert!(sandbox.exec(request).await.unwrap().next().await.unwrap().is_some());
}

/// Until so many sandboxes wait.
async fn full(driver: &Native, count: usize) {
    while driver.waiting() < count {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Private memory of a process, in KiB.
fn private(pid: &str) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let lines = rollup.lines().filter(|line| line.starts_with("Private_"));
    lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

#[tokio::main]
async fn main() {
    // A session is a task among others, not the program's first thread, which takes longer to be woken.
    tokio::spawn(Box::pin(measure())).await.unwrap();
}

async fn measure() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let chosen = |part: &str| words.is_empty() || words.iter().any(|word| word == part);
    let home = tempfile::tempdir().unwrap();
    for name in ["workspace", "outputs"] {
        fs::create_dir(home.path().join(name)).unwrap();
    }
    if chosen("cold") {
        cold(&home, false).await;
        cold(&home, true).await;
        bwrap();
    }
    if chosen("pool") {
        pool(&home).await;
    }
    if chosen("burst") {
        burst(&home, 0).await;
        burst(&home, 32).await;
    }
    if chosen("warm") {
        warm(&home).await;
    }
    if chosen("memory") {
        memory(&home).await;
    }
    if words.iter().any(|word| word == "files") {
        files(&home).await;
    }
}

async fn cold(home: &TempDir, egress: bool) {
    let (mut ready, mut exec_first, mut bash_first, mut end) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..420 {
        let began = Instant::now();
        let spec = Spec { egress, ..spec(home) };
        let sandbox = Native::new(Options::default()).create(spec).await.unwrap();
        let up = began.elapsed();
        // The first output, by a command or by the shell in turn.
        let first = if round % 2 == 0 {
            echo(&sandbox).await;
            &mut exec_first
        } else {
            sandbox.tool(bash("echo")).await.unwrap();
            &mut bash_first
        };
        let done = began.elapsed();
        let ending = Instant::now();
        sandbox.destroy().await.unwrap();
        // The first ones warm the machine up.
        if round >= 20 {
            ready.push(up);
            first.push(done);
            end.push(ending.elapsed());
        }
    }
    let with = if egress { " (egress)" } else { "" };
    say(&format!("cold: create{with}"), ready);
    say(&format!("cold: create, first output{with}"), exec_first);
    say("cold: create, first bash", bash_first);
    say("destroy", end);
}

/// The same of a peer: a whole run, as it stays up for one command only.
fn bwrap() {
    let words = "--unshare-all --ro-bind /usr /usr --symlink usr/bin /bin --symlink usr/lib /lib --symlink usr/lib64 \
                 /lib64 --proc /proc --dev /dev --tmpfs /tmp /bin/echo x";
    let mut times = Vec::new();
    for _ in 0..200 {
        let began = Instant::now();
        let Ok(done) = Command::new("bwrap").args(words.split_whitespace()).output() else { return };
        assert!(done.status.success());
        times.push(began.elapsed());
    }
    say("bwrap: echo", times);
}

async fn pool(home: &TempDir) {
    let driver = pooled(4);
    driver.create(spec(home)).await.unwrap().destroy().await.unwrap();
    let (mut claimed, mut exec_first, mut bash_first) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..400 {
        full(&driver, 4).await;
        let began = Instant::now();
        let sandbox = driver.create(spec(home)).await.unwrap();
        claimed.push(began.elapsed());
        assert!(sandbox.report().pooled);
        if round % 2 == 0 {
            echo(&sandbox).await;
            exec_first.push(began.elapsed());
        } else {
            sandbox.tool(bash("echo")).await.unwrap();
            bash_first.push(began.elapsed());
        }
        sandbox.destroy().await.unwrap();
    }
    driver.close().await;
    say("pool: claim", claimed);
    say("pool: claim, first output", exec_first);
    say("pool: claim, first bash", bash_first);
}

/// A hundred sandboxes asked for at once, until each has put something out.
async fn burst(home: &TempDir, waiting: usize) {
    let mut times = Vec::new();
    for _ in 0..5 {
        let driver = pooled(waiting);
        driver.create(spec(home)).await.unwrap().destroy().await.unwrap();
        full(&driver, waiting).await;
        let began = Instant::now();
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let (driver, spec) = (driver.clone(), spec(home));
            all.spawn(async move {
                let sandbox = driver.create(spec).await.unwrap();
                echo(&sandbox).await;
                (began.elapsed(), sandbox)
            });
        }
        let all = all.join_all().await;
        for (took, sandbox) in all {
            times.push(took);
            sandbox.destroy().await.unwrap();
        }
        driver.close().await;
    }
    say(&format!("burst of 100, {waiting} waiting"), times);
}

async fn warm(home: &TempDir) {
    let sandbox = create(home).await;
    sandbox.tool(bash("true")).await.unwrap();
    fs::write(home.path().join("workspace/file"), "content").unwrap();
    let read =
        ToolCall { name: "read".to_owned(), input: json!({"file_path": "file"}), timeout: Duration::from_secs(10) };
    let (mut built_in, mut command, mut file) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..2000 {
        let began = Instant::now();
        sandbox.tool(bash("true")).await.unwrap();
        built_in.push(began.elapsed());
        let began = Instant::now();
        exec(&sandbox).await;
        command.push(began.elapsed());
        let began = Instant::now();
        sandbox.tool(read.clone()).await.unwrap();
        file.push(began.elapsed());
    }
    say("warm: bash, true", built_in);
    say("warm: command, true", command);
    say("warm: read", file);
}

async fn memory(home: &TempDir) {
    let fresh = create(home).await;
    let pid = fresh.pid().unwrap().to_string();
    println!("private memory of a fresh cell     {} KiB", private(&pid));
    fresh.tool(bash("true")).await.unwrap();
    println!("the same with a shell              {} KiB", private(&pid));
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let shells: Vec<String> = tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|children| children.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .chain(children.split_whitespace().map(str::to_owned))
        .collect();
    if let Some(shell) = shells.first() {
        println!("its shell                          {} KiB", private(shell));
    }
}

/// `grep` and `glob` inside, `rg` outside, on the same tree with the same meaning.
async fn files(home: &TempDir) {
    let root = home.path().join("workspace");
    plant(&root);
    let sandbox = create(home).await;
    let pid = sandbox.pid().unwrap().to_string();
    println!("private memory of a fresh cell     {} KiB", private(&pid));
    for (name, pattern) in [
        ("rare literal", "the_only_needle"),
        ("rare regex", r"[a-z]+_need[a-z]+\s*=\s*\d{3}"),
        ("common regex", r"fn [a-z]+_\d+\("),
    ] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(search(&sandbox, "grep", pattern).await);
            let words = ["--no-ignore", "--line-number", "--no-heading", "--glob=!node_modules", "--regexp", pattern];
            theirs.extend(peer(&words, &root));
        }
        compare(&format!("grep: {name}"), ours, theirs);
    }
    for pattern in ["**/*.rs", "**/file7_0.rs"] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(search(&sandbox, "glob", pattern).await);
            theirs.extend(peer(&["--no-ignore", "--files", "--glob", pattern], &root));
        }
        compare(&format!("glob: {pattern}"), ours, theirs);
    }
    println!("private memory after the searches  {} KiB", private(&pid));
}

const ROUNDS: usize = 11;

/// A thousand directories of a hundred files, from half a KiB to 8 KiB each, one of five of them a `.rs`.
fn plant(root: &Path) {
    let mut state = 1u32;
    let mut next = |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % below
    };
    for directory in 0..1000 {
        let at = root.join(format!("part{}/unit{directory}/src", directory % 25));
        fs::create_dir_all(&at).unwrap();
        for file in 0..100 {
            let size = 512 + next(7680) as usize;
            let mut text = String::new();
            while text.len() < size {
                let _ = match next(6) {
                    0 => writeln!(text, "    fn name_{}(given: &str) -> usize {{", next(1000)),
                    1 => writeln!(text),
                    2 => writeln!(
                        text,
                        "        // what this does is said by a line of about this length, number {}",
                        next(99)
                    ),
                    3 => writeln!(text, "        let value_{} = given.len() + {};", next(100), next(100)),
                    4 => writeln!(text, "    }}"),
                    _ => writeln!(text, "        needles.push(value_{}.min({}));", next(100), next(1000)),
                };
            }
            if directory % 250 == 7 && file == 0 {
                text.push_str("let the_only_needle = 123;\n");
            }
            let kind = ["rs", "ts", "md", "py", "json"][file % 5];
            fs::write(at.join(format!("file{directory}_{file}.{kind}")), text).unwrap();
        }
    }
}

async fn search(sandbox: &Sandbox, name: &str, pattern: &str) -> Duration {
    let input = json!({"pattern": pattern});
    let began = Instant::now();
    let call = ToolCall { name: name.to_owned(), input, timeout: Duration::from_secs(60) };
    let output = sandbox.tool(call).await.unwrap();
    assert!(!output.is_error && output.content[0]["text"] != "no matches");
    began.elapsed()
}

/// The same by a peer, if it is installed.
fn peer(words: &[&str], root: &Path) -> Option<Duration> {
    let began = Instant::now();
    let done = Command::new("rg").args(words).arg(root).output().ok()?;
    assert!(done.status.success() && !done.stdout.is_empty());
    Some(began.elapsed())
}

fn compare(name: &str, mut ours: Vec<Duration>, mut theirs: Vec<Duration>) {
    ours.sort();
    theirs.sort();
    let mine = ours[ours.len() / 2];
    match theirs.get(theirs.len() / 2) {
        Some(other) => println!(
            "{name:<34} p50 {:>7} us   rg {:>7} us   ratio {:.2}",
            mine.as_micros(),
            other.as_micros(),
            mine.as_secs_f64() / other.as_secs_f64()
        ),
        None => println!("{name:<34} p50 {:>7} us   rg is not installed", mine.as_micros()),
    }
}
