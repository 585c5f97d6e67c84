//! The process that cells are copies of.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

use crate::rig::{self, Rig, again, is_again};

/// Children of this process that run the cell's program: those in namespaces of their own, and the others.
pub(crate) fn children() -> (Vec<Pid>, Vec<Pid>) {
    let (mut cells, mut nurseries) = (Vec::new(), Vec::new());
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace() {
            let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
            let pid = Pid::from_raw(child.parse().unwrap()).unwrap();
            match numbers.split_whitespace().count() {
                0 => {}
                1 => nurseries.push(pid),
                _ => cells.push(pid),
            }
        }
    }
    (cells, nurseries)
}

fn nursery() -> Pid {
    let (_, nurseries) = children();
    assert_eq!(nurseries.len(), 1);
    nurseries[0]
}

fn link(pid: Pid, name: &str) -> String {
    fs::read_link(format!("/proc/{}/{name}", pid.as_raw_pid())).unwrap().display().to_string()
}

#[tokio::test]
async fn cells_outlive_their_nursery_and_another_takes_its_place() {
    let rig = Rig::new().await;
    for round in 0..5 {
        let nursery = nursery();
        kill_process(nursery, Signal::KILL).unwrap();
        assert_eq!(rig.bash(&format!("echo {round}")).await, round.to_string());
        // Whether or not its end has been noticed.
        let next = Rig::new().await;
        assert_eq!(next.bash("echo next").await, "next");
        assert_ne!(self::nursery(), nursery);
    }
}

#[tokio::test]
async fn a_cell_has_nothing_of_its_nursery() {
    let (one, other) = (Rig::new().await, Rig::new().await);
    let nursery = nursery();
    let open = |pid: Pid| -> Vec<String> {
        let entries = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_pid())).unwrap().flatten();
        // What is closed meanwhile is not held.
        entries.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.display().to_string())).collect()
    };
    let sockets = |pid: Pid| -> Vec<String> {
        let mut sockets: Vec<String> = open(pid).into_iter().filter(|to| to.starts_with("socket:")).collect();
        sockets.sort();
        sockets.dedup();
        sockets
    };
    let cells = [&one, &other].map(|rig| Pid::from_raw(rig.sandbox.pid().unwrap()).unwrap());
    // It makes the network of the next cell ahead, and until then it is in that of the last one.
    let apart = |name: &str| cells.iter().all(|cell| link(*cell, name) != link(nursery, name));
    rig::until(|| apart("ns/net") && apart("ns/ipc")).await;
    // What it does that with is closed a moment later. What is compared is what was seen at once.
    let look = || [sockets(nursery), sockets(cells[0]), sockets(cells[1])];
    let mut held = look();
    for _ in 0..4000 {
        if held.iter().all(|held| held.len() == 1) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        held = look();
    }
    // One each, the way to the worker, and no two the same.
    assert!(held.iter().all(|held| held.len() == 1), "{held:?}");
    assert!(held[0] != held[1] && held[1] != held[2] && held[0] != held[2], "{held:?}");
    let of_processes = |to: &String| to.contains("pidfd") || to.starts_with("/proc") || to.contains("cgroup");
    assert!(!cells.iter().flat_map(|cell| open(*cell)).any(|to| of_processes(&to)));
    for name in ["ns/user", "ns/mnt", "ns/pid", "ns/net", "ns/ipc", "ns/uts", "ns/cgroup"] {
        let [first, second] = cells.map(|cell| link(cell, name));
        assert_ne!(first, second, "{name}");
        assert!(
            ![link(nursery, name), fs::read_link(format!("/proc/self/{name}")).unwrap().display().to_string()]
                .iter()
                .any(|outer| *outer == first || *outer == second),
            "{name}"
        );
    }
    assert_eq!(fs::read(format!("/proc/{}/environ", nursery.as_raw_pid())).unwrap(), b"");
}

#[tokio::test]
async fn a_sandbox_sees_no_nursery() {
    let rig = Rig::new().await;
    let nursery = nursery().as_raw_pid();
    let seen = rig.bash("ls -d /proc/[0-9]* | wc -l").await;
    assert!(seen.parse::<usize>().unwrap() < 10, "{seen}");
    assert!(rig.bash(&format!("kill -0 {nursery}; cat /proc/{nursery}/status")).await.contains("No such"));
    // Under its own list of processes lies none of the host's.
    let said = rig.bash("grep -c ' /proc proc\\| - proc ' /proc/self/mountinfo; umount /proc 2>&1 | wc -l").await;
    assert!(said.lines().all(|count| count.parse::<u32>().unwrap() > 0), "{said}");
    drop(rig);
    rig::until(|| children().0.is_empty()).await;
}

#[tokio::test]
async fn what_the_worker_keeps_to_itself_is_its_own_affair() {
    if is_again() {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        let rig = Rig::new().await;
        assert_eq!(
            rig.bash("id -un; umask; ls -d /etc /dev/pts /mnt/memory").await,
            "agent\n0022\n/dev/pts\n/etc\n/mnt/memory"
        );
        return;
    }
    let done = again("nursery::what_the_worker_keeps_to_itself_is_its_own_affair").output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
}
