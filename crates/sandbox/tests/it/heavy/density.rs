//! Many sandboxes at once, and many one after another.

use std::fs;
use std::path::Path;
use std::time::Duration;

use palisade_sandbox::{Driver, Native, Options, Sandbox, Spec, ToolCall};
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::json;

use crate::rig;

/// Sandboxes that live at the same time, and that are made and ended afterwards; by this variable more of them.
const MANY: usize = 200;
const MANY_VARIABLE: &str = "PALISADE_TEST_SANDBOXES";

/// Waits until nothing is left on the host of sandboxes that have ended, and no more descriptors are open here. Tasks that
/// were told to end let go of their ends of sockets a moment later.
async fn nothing_left(home: &Path, descriptors: usize) {
    rig::until(|| rig::mounts(home).is_empty() && rig::groups(std::process::id()).is_empty() && open() <= descriptors)
        .await;
}

fn open() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A number of `/proc/PID/smaps_rollup` or the like, in KiB.
fn field(path: &str, names: &[&str]) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines = text.lines().filter(|line| names.iter().any(|name| line.starts_with(name)));
    lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

async fn bash(sandbox: &Sandbox) {
    let call =
        ToolCall { name: "bash".to_owned(), input: json!({"command": "echo here"}), timeout: Duration::from_secs(60) };
    assert_eq!(sandbox.tool(call).await.unwrap().content[0]["text"], "here");
}

async fn many(driver: &Native, spec: &Spec, count: usize) -> Vec<Sandbox> {
    let mut made = tokio::task::JoinSet::new();
    for _ in 0..count {
        let (driver, spec) = (driver.clone(), spec.clone());
        made.spawn(async move {
            let sandbox = driver.create(spec).await.unwrap();
            bash(&sandbox).await;
            sandbox
        });
    }
    made.join_all().await
}

async fn end(sandboxes: Vec<Sandbox>) {
    for sandbox in sandboxes {
        sandbox.destroy().await.unwrap();
    }
}

#[tokio::test]
async fn many_sandboxes_leave_nothing_and_cost_little() {
    let count = std::env::var(MANY_VARIABLE).ok().and_then(|count| count.parse().ok()).unwrap_or(MANY);
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let home = tempfile::tempdir().unwrap();
    let (workspace, outputs) = (home.path().join("workspace"), home.path().join("outputs"));
    for directory in [&workspace, &outputs] {
        fs::create_dir(directory).unwrap();
    }
    let spec = Spec::new(workspace, outputs);
    let driver = Native::new(Options::default());
    // What is made once: the nursery, threads, the runtime's own descriptors.
    end(many(&driver, &spec, 8).await).await;
    let before = open();

    let alive = many(&driver, &spec, count).await;
    let private: u64 = alive
        .iter()
        .map(|sandbox| field(&format!("/proc/{}/smaps_rollup", sandbox.pid().unwrap()), &["Private_"]))
        .sum();
    let each = private / count as u64;
    println!("{count} sandboxes with a shell: {each} KiB of private memory in each cell");
    assert!(each <= 1024, "{each} KiB");
    for sandbox in &alive {
        bash(sandbox).await;
    }
    end(alive).await;
    nothing_left(home.path(), before).await;

    let memory = || field("/proc/self/status", &["VmRSS:"]);
    let at_first = memory();
    for _ in 0..count / 10 {
        end(many(&driver, &spec, 10).await).await;
        nothing_left(home.path(), before).await;
    }
    let more = memory().saturating_sub(at_first);
    println!("{count} made and ended: {more} KiB more");
    assert!(more < 8 << 10, "{more} KiB");
    assert_eq!(fs::read_dir(spec.workspace.written()).unwrap().count(), 0);
}
