//! Workers that are killed at any moment. What the kernel does not end with them is cleared away by the next one.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use palisade_sandbox::{Driver, ExecRequest, Native, Options, PoolOptions, Spec};

use crate::rig::{self, again, is_again};

/// Kills in one run; by this variable more of them.
const KILLS: u64 = 100;
const KILLS_VARIABLE: &str = "PALISADE_TEST_KILLS";
/// What is the same for all workers of a test: their directory.
const HOME: &str = "PALISADE_TEST_HOME";
/// Set for a worker that does one round and ends.
const ONCE: &str = "PALISADE_TEST_ONCE";

/// A worker: sandboxes that wait, that are claimed, in which commands run, and that end, all at once.
async fn work(home: PathBuf, once: bool) {
    let driver = Native::new(Options { pool: PoolOptions::of(2), ..Options::default() });
    let mut hands = tokio::task::JoinSet::new();
    for hand in 0..3 {
        let (driver, home) = (driver.clone(), home.join(hand.to_string()));
        hands.spawn(async move {
            let (workspace, outputs) = (home.join("workspace"), home.join("outputs"));
            for directory in [&workspace, &outputs] {
                fs::create_dir_all(directory).unwrap();
            }
            loop {
                let sandbox = driver.create(Spec::new(&workspace, &outputs)).await.unwrap();
                let argv = ["/bin/sh", "-c", "echo $$; setsid sleep 1000 & sleep 1000 & exit 0"];
                let request = ExecRequest { argv: argv.map(str::to_owned).to_vec(), ..ExecRequest::default() };
                sandbox.exec(request).await.unwrap().next().await.unwrap();
                sandbox.destroy().await.unwrap();
                if once {
                    return;
                }
            }
        });
    }
    hands.join_all().await;
    driver.close().await;
}

/// Processes of a worker that has ended: in its control groups, or in its process group, as its nursery is.
fn left(worker: u32) -> Vec<String> {
    let own = format!("/palisade-{worker}-");
    let mut left = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        // One that has ended is left to whoever has inherited it.
        if fields.starts_with(" Z") {
            continue;
        }
        let group = fields.split_whitespace().nth(2).and_then(|group| group.parse().ok());
        let groups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if group == Some(worker) || groups.contains(&own) {
            left.push(stat);
        }
    }
    left
}

#[tokio::test]
async fn killed_workers_leave_nothing() {
    if is_again() {
        let home = std::env::var_os(HOME).unwrap();
        return work(home.into(), std::env::var_os(ONCE).is_some()).await;
    }
    let home = tempfile::tempdir().unwrap();
    let kills = std::env::var(KILLS_VARIABLE).ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS);
    let worker = |once: bool| {
        let mut command = again("heavy::crash::killed_workers_leave_nothing");
        command.env(HOME, home.path()).stdout(Stdio::null());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        if once {
            command.env(ONCE, "1");
        }
        command.spawn().unwrap()
    };
    let mut workers = Vec::new();
    let mut seed = 1u64;
    for kill in 0..kills {
        let mut child = worker(false);
        // Some die before they have made anything, most in the middle of everything.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        tokio::time::sleep(Duration::from_micros((seed >> 33) % 120_000)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let id = child.id();
        rig::until(|| left(id).is_empty()).await;
        assert_eq!(rig::mounts(home.path()), Vec::<String>::new(), "after {kill} kills");
        workers.push(id);
    }
    // Each start sweeps; this one ends as it should.
    let mut last = worker(true);
    assert!(last.wait().unwrap().success());
    workers.push(last.id());
    for id in workers {
        // The number may be another's by now, and the groups with it.
        if !std::path::Path::new(&format!("/proc/{id}")).exists() {
            assert_eq!(rig::groups(id), Vec::<String>::new());
        }
    }
}
