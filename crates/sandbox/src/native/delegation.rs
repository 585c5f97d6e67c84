//! How this process comes by a control group of version 2 that may have groups with controllers below it.
//!
//! Version 2 has processes in the leaves of its tree only, and each part of the tree has one owner. Tried in this order, until
//! the controllers are there: the group that this process is in, when it has it to itself; a scope of its own, asked of systemd,
//! which owns the tree where it runs; and for root, where systemd does not run, the nearest group above that has them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use super::cgroup::{Layout, Place};
use super::is_root;

/// The group that this process moves into, so that its own can have others below it.
pub(super) const LEAF: &str = "palisade-worker";

/// How long systemd may take to make a scope.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where systemd says that it runs this machine.
const SYSTEMD: &str = "/run/systemd/system";

/// What asks systemd. Not looked for in `PATH`: it is called as root.
const BUSCTL: [&str; 3] = ["/usr/bin/busctl", "/bin/busctl", "/run/current-system/sw/bin/busctl"];

/// Makes the controllers that version 1 does not have available to this process, and says where; `find` looks at what there is.
/// What cannot be done leaves things as they are, and the report says what is missing.
pub(super) fn obtain(find: impl Fn() -> Layout) -> Layout {
    let mut layout = find();
    if own(&layout) {
        layout = find();
    }
    // Weights of disks are worth no scope.
    if missing(&layout).iter().all(|name| *name == "io") {
        return layout;
    }
    let systemd = Path::new(SYSTEMD).is_dir();
    if systemd && scope() {
        layout = find();
        if own(&layout) {
            layout = find();
        }
    } else if !systemd && is_root() {
        above(&mut layout);
    }
    layout
}

/// The controllers that are not there and that version 2 has.
fn missing(layout: &Layout) -> Vec<&'static str> {
    let Some(directory) = &layout.unified else { return Vec::new() };
    // The root of the tree says what the kernel has; below, what the groups above give.
    let top = directory.ancestors().take_while(|at| at.join(CONTROLLERS).exists()).last().unwrap_or(directory);
    let known = read(&top.join(CONTROLLERS));
    [("memory", &layout.memory), ("pids", &layout.pids), ("cpu", &layout.cpu), ("io", &layout.io)]
        .into_iter()
        .filter(|(name, place)| place.is_none() && known.split_whitespace().any(|there| there == *name))
        .map(|(name, _)| name)
        .collect()
}

const CONTROLLERS: &str = "cgroup.controllers";
const ENABLED: &str = "cgroup.subtree_control";
const MEMBERS: &str = "cgroup.procs";

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_default()
}

/// Makes controllers available below the group that this process is in, if that has no members but this process and what it
/// has started. Says whether anything has changed.
fn own(layout: &Layout) -> bool {
    let Some(directory) = &layout.unified else { return false };
    let available = read(&directory.join(CONTROLLERS));
    let enable: Vec<&str> =
        missing(layout).into_iter().filter(|name| available.split_whitespace().any(|there| there == *name)).collect();
    if enable.is_empty() {
        return false;
    }
    let members = read(&directory.join(MEMBERS));
    let members: BTreeSet<u32> = members.lines().filter_map(|pid| pid.parse().ok()).collect();
    if !members.is_subset(&family(std::process::id())) {
        // Somebody else's shell is not moved about.
        return false;
    }
    if !members.is_empty() {
        let leaf = directory.join(LEAF);
        let made = fs::create_dir(&leaf).or_else(|why| match why.kind() {
            io::ErrorKind::AlreadyExists => Ok(()),
            _ => Err(why),
        });
        let procs = leaf.join(MEMBERS);
        // One that has ended meanwhile is no matter: what keeps the controllers away shows when they are asked for.
        let moved = made.map(|()| members.iter().filter(|pid| fs::write(&procs, pid.to_string()).is_ok()).count());
        if moved.unwrap_or(0) == 0 {
            return false;
        }
    }
    // One by one: those that can be had are.
    for controller in enable {
        let _ = fs::write(directory.join(ENABLED), format!("+{controller}"));
    }
    true
}

/// A process, and all that it has started and that has not ended.
fn family(first: u32) -> BTreeSet<u32> {
    let mut family = BTreeSet::from([first]);
    let mut new = vec![first];
    while let Some(parent) = new.pop() {
        for task in fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten() {
            let children = read(&task.path().join("children"));
            new.extend(
                children.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(|pid| family.insert(*pid)),
            );
        }
    }
    family
}

/// Asks systemd for a scope that is this process's own to make groups in, and moves there. Says whether that was done.
fn scope() -> bool {
    let path = unified(&read(Path::new("/proc/self/cgroup")));
    // What a unit has started stays in it, or its manager would lose it: `Delegate=yes` is for it.
    if path.ends_with(".service") && std::env::var_os("INVOCATION_ID").is_some() {
        return false;
    }
    let Some(busctl) = BUSCTL.into_iter().find(|path| Path::new(path).is_file()) else { return false };
    let started = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_millis();
    // Not as the groups of sandboxes are called, by which the next worker knows what was left.
    let name = format!("palisade.{}.{started:x}.scope", std::process::id());
    let family = family(std::process::id());
    let mut command = Command::new(busctl);
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if !is_root() {
        // SAFETY: no pointers.
        let runtime = format!("/run/user/{}", unsafe { libc::geteuid() });
        command.arg("--user").env("XDG_RUNTIME_DIR", runtime);
    }
    command.args(["call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"]);
    command.args(["StartTransientUnit", "ssa(sv)a(sa(sv))", &name, "fail", "4"]);
    command.args(["Description", "s", "Palisade and its sandboxes", "Delegate", "b", "true"]);
    command.args(["CollectMode", "s", "inactive-or-failed", "PIDs", "au", &family.len().to_string()]);
    command.args(family.iter().map(u32::to_string)).arg("0");
    let until = Instant::now() + PATIENCE;
    let Ok(mut asking) = command.spawn() else { return false };
    let asked = loop {
        match asking.try_wait() {
            Ok(None) if Instant::now() < until => std::thread::park_timeout(Duration::from_millis(2)),
            Ok(Some(status)) => break status.success(),
            Ok(None) | Err(_) => {
                let _ = asking.kill();
                let _ = asking.wait();
                break false;
            }
        }
    };
    // The answer is the number of a job; its end shows.
    while asked && Instant::now() < until {
        if unified(&read(Path::new("/proc/self/cgroup"))).ends_with(&name) {
            return true;
        }
        std::thread::park_timeout(Duration::from_millis(2));
    }
    false
}

/// The path of version 2 in what `/proc/*/cgroup` says.
fn unified(text: &str) -> String {
    text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned()
}

/// Takes the nearest group above for what is missing, if that has it: what is limited there, and not what limits this
/// process alone, limits its sandboxes too.
fn above(layout: &mut Layout) {
    let missing = missing(layout);
    let Some(directory) = layout.unified.clone() else { return };
    let gives = |at: &&Path| {
        let enabled = read(&at.join(ENABLED));
        missing.iter().all(|name| enabled.split_whitespace().any(|there| there == *name))
    };
    let Some(found) = directory.ancestors().take_while(|at| at.join(ENABLED).exists()).find(gives) else { return };
    let found: PathBuf = found.to_owned();
    let take = |name: &str, place: &mut Option<Place>| {
        if missing.contains(&name) {
            *place = Some(Place { directory: found.clone(), unified: true });
        }
    };
    take("memory", &mut layout.memory);
    take("pids", &mut layout.pids);
    take("cpu", &mut layout.cpu);
    take("io", &mut layout.io);
    // One group is all controllers'.
    layout.unified = Some(found);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(at: &Path, controllers: &str, enabled: &str, members: &str) {
        fs::create_dir_all(at).unwrap();
        for (name, text) in [(CONTROLLERS, controllers), (ENABLED, enabled), (MEMBERS, members)] {
            fs::write(at.join(name), text).unwrap();
        }
    }

    fn at(directory: &Path) -> Layout {
        Layout { unified: Some(directory.to_owned()), ..Layout::default() }
    }

    #[test]
    fn a_process_alone_in_its_group_makes_room_for_others_below_it() {
        let tree = tempfile::tempdir().unwrap();
        let own_group = tree.path().join("system.slice/palisade.service");
        let me = std::process::id().to_string();
        fs::create_dir_all(own_group.join(LEAF)).unwrap();
        group(&own_group, "cpu memory hugetlb", "", &me);
        assert!(own(&at(&own_group)));
        assert_eq!(read(&own_group.join(LEAF).join(MEMBERS)), me);
        // A plain file keeps what was written last; the tree has no pids.
        assert_eq!(read(&own_group.join(ENABLED)), "+cpu");
        let empty = tree.path().join("empty");
        group(&empty, "memory", "", "");
        assert!(own(&at(&empty)));
        assert!(!empty.join(LEAF).exists());
        let nothing = tree.path().join("nothing");
        group(&nothing, "hugetlb", "", &me);
        assert!(!own(&at(&nothing)) && !own(&Layout::default()));
    }

    #[test]
    fn somebody_elses_processes_are_not_moved_and_ones_own_children_are() {
        let tree = tempfile::tempdir().unwrap();
        let shared = tree.path().join("shared");
        let me = std::process::id();
        group(&shared, "memory", "", &format!("1\n{me}\n"));
        assert!(!own(&at(&shared)));
        assert!(!shared.join(LEAF).exists() && read(&shared.join(ENABLED)).is_empty());
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let family = family(me);
        group(&shared, "memory", "", &format!("{}\n{me}\n", child.id()));
        let moved = own(&at(&shared));
        let known = family.contains(&child.id()) && family.contains(&me) && !family.contains(&1);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(moved && known);
    }

    #[test]
    fn the_nearest_group_that_has_them_all_is_taken() {
        let tree = tempfile::tempdir().unwrap();
        let [top, middle, leaf] = ["", "middle", "middle/leaf"].map(|name| tree.path().join(name));
        group(&top, "cpu io memory pids", "memory pids cpu io", "");
        group(&middle, "cpu io memory pids", "pids", "");
        group(&leaf, "pids", "", "1");
        let mut layout = at(&leaf);
        above(&mut layout);
        let place = Some(Place { directory: top.clone(), unified: true });
        assert_eq!((&layout.memory, &layout.pids, layout.unified.as_ref()), (&place, &place, Some(&top)));
        group(&top, "cpu io memory pids", "pids", "");
        let mut layout = at(&leaf);
        above(&mut layout);
        assert_eq!((layout.memory.as_ref(), layout.unified.as_ref()), (None, Some(&leaf)));
    }
}
