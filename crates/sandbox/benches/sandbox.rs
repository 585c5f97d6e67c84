//! What a sandbox costs: time to the first output, a warm call, a command, memory while idle.
//!
//! Prints p50 and p99 of each, in microseconds: percentiles of whole operations are what a session feels.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a program that measures and says what it found")]

use std::fs;
use std::time::{Duration, Instant};

use palisade_sandbox::{Driver, ExecRequest, Native, Options, Sandbox, Spec, ToolCall};
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

async fn create(home: &TempDir) -> Sandbox {
    let spec = Spec::new(home.path().join("workspace"), home.path().join("outputs"));
    Native::new(Options::default()).create(spec).await.unwrap()
}

async fn exec(sandbox: &Sandbox) {
    let request = ExecRequest { argv: vec!["/bin/true".to_owned()], ..ExecRequest::default() };
    assert_eq!(sandbox.exec(request).await.unwrap().wait().await.unwrap().0.code, Some(0));
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
    let home = tempfile::tempdir().unwrap();
    for name in ["workspace", "outputs"] {
        fs::create_dir(home.path().join(name)).unwrap();
    }
    let (mut ready, mut exec_first, mut bash_first, mut end) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..220 {
        let began = Instant::now();
        let sandbox = create(&home).await;
        let up = began.elapsed();
        // The first output, by a command or by the shell in turn.
        let first = if round % 2 == 0 {
            exec(&sandbox).await;
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
    say("cold: create", ready);
    say("cold: create, first command", exec_first);
    say("cold: create, first bash", bash_first);
    say("destroy", end);

    let sandbox = create(&home).await;
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

    let fresh = create(&home).await;
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
