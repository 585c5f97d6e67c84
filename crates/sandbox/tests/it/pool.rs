//! Sandboxes that wait for their sessions.

use std::fs;
use std::time::Duration;

use palisade_sandbox::{Driver, Error, Limits, Native, Options, PoolOptions, Rootfs, Sandbox, Spec, ToolCall};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;

use crate::nursery::children;
use crate::rig::{self, again};

fn spec(home: &TempDir) -> Spec {
    let (workspace, outputs) = (home.path().join("workspace"), home.path().join("outputs"));
    for directory in [&workspace, &outputs] {
        fs::create_dir_all(directory).unwrap();
    }
    Spec::new(workspace, outputs)
}

fn driver(most: usize, least: usize) -> Native {
    Native::new(Options { pool: PoolOptions { least, ..PoolOptions::of(most) }, ..Options::default() })
}

async fn bash(sandbox: &Sandbox, command: &str) -> String {
    let call =
        ToolCall { name: "bash".to_owned(), input: json!({"command": command}), timeout: Duration::from_secs(20) };
    sandbox.tool(call).await.unwrap().content[0]["text"].as_str().unwrap_or_default().to_owned()
}

/// First processes of sandboxes that this process has made.
fn cells() -> Vec<Pid> {
    children().0
}

#[tokio::test]
async fn one_that_waits_is_taken_and_replaced() {
    let home = tempfile::tempdir().unwrap();
    let driver = driver(4, 2);
    let cold = driver.create(spec(&home)).await.unwrap();
    assert!(!cold.report().pooled);
    rig::until(|| driver.waiting() == 2).await;
    for round in 0..6 {
        let mut spec = spec(&home);
        spec.hostname = format!("host-{round}");
        spec.env = vec![("ROUND".to_owned(), round.to_string())];
        let sandbox = driver.create(spec).await.unwrap();
        assert!(sandbox.report().pooled);
        let said = bash(&sandbox, "hostname; echo $ROUND; ls -A /tmp ~ | wc -w; echo x > /tmp/x; pwd").await;
        assert_eq!(said, format!("host-{round}\n{round}\n2\n/workspace"), "what is printed of two empty places");
        sandbox.destroy().await.unwrap();
        rig::until(|| driver.waiting() >= 2).await;
    }
    // Another kind has none, and its first one is made when it is asked for.
    let mut other = spec(&home);
    other.limits = Limits { pids: Some(100), ..Limits::default() };
    assert!(!driver.create(other).await.unwrap().report().pooled);
}

#[tokio::test]
async fn one_that_died_is_not_handed_out() {
    let home = tempfile::tempdir().unwrap();
    let driver = driver(3, 3);
    driver.create(spec(&home)).await.unwrap().destroy().await.unwrap();
    for _ in 0..5 {
        rig::until(|| driver.waiting() == 3).await;
        let cells = cells();
        assert_eq!(cells.len(), 3);
        for &cell in &cells {
            kill_process(cell, Signal::KILL).unwrap();
        }
        let sandbox = driver.create(spec(&home)).await.unwrap();
        assert_eq!(bash(&sandbox, "echo here").await, "here");
        assert!(!cells.contains(&Pid::from_raw(sandbox.pid().unwrap()).unwrap()));
        sandbox.destroy().await.unwrap();
        // The dead are taken out even when nobody asks.
        rig::until(|| driver.waiting() == 3 && !self::cells().iter().any(|cell| cells.contains(cell))).await;
    }
}

#[tokio::test]
async fn nothing_waits_after_the_end() {
    let home = tempfile::tempdir().unwrap();
    let closed = driver(4, 4);
    let dropped = driver(4, 4);
    for driver in [&closed, &dropped] {
        driver.create(spec(&home)).await.unwrap().destroy().await.unwrap();
        rig::until(|| driver.waiting() == 4).await;
    }
    assert_eq!(cells().len(), 8);
    closed.close().await;
    assert_eq!((closed.waiting(), cells().len()), (0, 4));
    let cold = closed.create(spec(&home)).await.unwrap();
    assert!(!cold.report().pooled);
    cold.destroy().await.unwrap();
    drop(dropped);
    rig::until(|| cells().is_empty()).await;
    assert_eq!(rig::groups(std::process::id()), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_wrong_with_a_session_is_said_and_costs_nothing_else() {
    let home = tempfile::tempdir().unwrap();
    let driver = driver(2, 2);
    driver.create(spec(&home)).await.unwrap().destroy().await.unwrap();
    rig::until(|| driver.waiting() == 2).await;
    let mut wrong = spec(&home);
    wrong.outputs = home.path().join("missing");
    assert!(matches!(driver.create(wrong).await.unwrap_err(), Error::Directory { .. }));
    assert_eq!(driver.waiting(), 2);
    assert!(driver.create(spec(&home)).await.unwrap().report().pooled);
}

#[tokio::test]
async fn a_burst_is_served_by_those_that_wait_and_those_that_are_made() {
    let home = tempfile::tempdir().unwrap();
    let driver = driver(4, 4);
    driver.create(spec(&home)).await.unwrap().destroy().await.unwrap();
    rig::until(|| driver.waiting() == 4).await;
    let mut burst = tokio::task::JoinSet::new();
    for n in 0..24 {
        let (driver, spec) = (driver.clone(), spec(&home));
        burst.spawn(async move {
            let sandbox = driver.create(spec).await.unwrap();
            assert_eq!(bash(&sandbox, &format!("echo {n}")).await, n.to_string());
            sandbox
        });
    }
    let sandboxes = burst.join_all().await;
    let pooled = sandboxes.iter().filter(|sandbox| sandbox.report().pooled).count();
    assert!(pooled >= 4, "{pooled}");
    // Demand was great, but no more than the bound wait for the next one.
    rig::until(|| driver.waiting() == 4).await;
    drop(sandboxes);
    driver.close().await;
    rig::until(|| cells().is_empty()).await;
}

#[tokio::test]
async fn one_whose_root_was_replaced_is_not_handed_out() {
    if !rustix::process::geteuid().is_root() {
        println!("not root, so nobody can look into the sandbox's root from outside");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let root = home.path().join("root");
    let driver = driver(2, 2);
    for content in ["first", "second"] {
        fs::create_dir(&root).unwrap();
        fs::write(root.join("release"), content).unwrap();
        for pooled in [false, true] {
            let mut spec = spec(&home);
            spec.rootfs = Rootfs::Directory(root.clone());
            let sandbox = driver.create(spec).await.unwrap();
            assert_eq!(sandbox.report().pooled, pooled);
            let release = format!("/proc/{}/root/release", sandbox.pid().unwrap());
            assert_eq!(fs::read_to_string(release).unwrap(), content);
            sandbox.destroy().await.unwrap();
            rig::until(|| driver.waiting() == 2).await;
        }
        fs::rename(&root, home.path().join(content)).unwrap();
    }
}

/// What attacks the boundary itself.
const AGAIN: &[&str] = &[
    "bombs::descriptors_locks_and_signals_without_end",
    "bombs::forks_without_end",
    "bombs::places_in_memory_have_a_size",
    "calls::nobody_has_a_capability_or_gets_one",
    "calls::other_ways_into_the_kernel_are_closed",
    "calls::the_cell_survives_what_is_done_to_it",
    "calls::the_sandbox_has_every_namespace_of_its_own",
    "egress::every_connection_leads_to_the_worker",
    "egress::nothing_else_leads_anywhere",
    "egress::what_is_given_is_read_and_no_more",
    "lifecycle::a_command_runs_as_nobody_special",
    "lifecycle::the_cell_runs_in_an_empty_root",
    "network::nothing_reaches_the_host_or_the_world",
    "network::two_sandboxes_share_nothing",
    "secrets::a_command_inherits_three_descriptors_and_no_more",
    "secrets::links_lead_nowhere_outside",
    "secrets::the_cell_cannot_be_looked_into",
    "secrets::the_host_is_not_to_be_seen_in_the_file_system",
    "secrets::what_is_read_only_stays_as_it_is",
];

#[test]
fn the_guarantees_hold_for_those_that_waited() {
    let mut failures = Vec::new();
    for name in AGAIN {
        let done = again(name).env(rig::POOLED, "1").output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        if !done.status.success() || !said.contains("1 passed") {
            failures.push(format!("{name}: {said}{}", String::from_utf8_lossy(&done.stderr)));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
