//! Control groups: limits of all processes of a sandbox together.
//!
//! Version 1 hierarchies and a delegated version 2 ([`super::delegation`]) are used where this process may make groups; elsewhere
//! the report says so. Groups are made beside the worker's own, so that whatever limits the worker limits its sandboxes too.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::delegation::{self, LEAF};
use crate::{Error, Facility, Limits, Status, Usage};

/// Where groups can be made, by controller.
#[derive(Debug, Clone, Default)]
pub(crate) struct Layout {
    pub(crate) memory: Option<Place>,
    pub(crate) pids: Option<Place>,
    pub(crate) cpu: Option<Place>,
    pub(crate) cpuacct: Option<Place>,
    pub(crate) io: Option<Place>,
    pub(crate) freezer: Option<Place>,
    /// The version 2 hierarchy, with or without controllers: it freezes, kills and counts processor time by itself.
    pub(crate) unified: Option<PathBuf>,
}

impl Layout {
    fn places(&mut self) -> [&mut Option<Place>; 6] {
        [&mut self.memory, &mut self.pids, &mut self.cpu, &mut self.cpuacct, &mut self.io, &mut self.freezer]
    }
}

/// A directory in which groups can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) directory: PathBuf,
    pub(crate) unified: bool,
}

/// A sandbox's groups.
#[derive(Debug, Default)]
pub(crate) struct Cgroups {
    name: String,
    memory: Option<Group>,
    pids: Option<Group>,
    cpu: Option<Group>,
    cpuacct: Option<Group>,
    io: Option<Group>,
    freezer: Option<Group>,
    unified: Option<PathBuf>,
    all: Vec<PathBuf>,
}

/// One controller's group.
#[derive(Debug, Clone)]
struct Group {
    directory: PathBuf,
    unified: bool,
}

impl Group {
    fn file(&self, v1: &str, v2: &str) -> PathBuf {
        self.directory.join(if self.unified { v2 } else { v1 })
    }
}

/// The machine's layout, looked up once.
pub(crate) fn layout() -> &'static Layout {
    static LAYOUT: OnceLock<Layout> = OnceLock::new();
    LAYOUT.get_or_init(|| {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let mut layout = delegation::obtain(|| find(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup")));
        sweep(&layout, true);
        for place in layout.places() {
            if place.as_ref().is_some_and(|place| !usable(&place.directory)) {
                *place = None;
            }
        }
        layout.unified = layout.unified.take().filter(|directory| usable(directory));
        layout
    })
}

/// Removes the groups of workers that have ended since this one looked last, frozen ones too.
pub(crate) fn sweep_again() {
    sweep(layout(), false);
}

/// Removes the groups of workers that ended without doing so themselves. What still runs in them is killed first: it
/// belongs to nobody. `first` says that this worker has made no group yet, so that what has its number is a predecessor's:
/// in a container that is started again every worker has the same.
fn sweep(layout: &Layout, first: bool) {
    let mut layout = layout.clone();
    let unified = layout.unified.take();
    let places = layout.places().map(|place| place.take().map(|place| place.directory));
    let until = patience();
    for place in places.into_iter().flatten().chain(unified) {
        for entry in fs::read_dir(&place).into_iter().flatten().flatten() {
            let owner = entry.file_name().to_str().and_then(owner);
            if owner.is_some_and(|pid| is_gone(pid, first)) {
                clear(&entry.path(), until);
            }
        }
    }
}

/// The process that has made a group of this name.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix("palisade-")?.split_once('-')?.0.parse().ok()
}

/// Whether the worker of this number has ended; `own` is the answer for this one.
fn is_gone(pid: u32, own: bool) -> bool {
    if pid == std::process::id() { own } else { fs::symlink_metadata(format!("/proc/{pid}")).is_err() }
}

/// Until when the kernel may take to let go of groups, all together.
fn patience() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

/// Ends what is in a group and removes it.
fn clear(group: &Path, until: Instant) {
    // A frozen process does not die before it goes on.
    for (file, word) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0"), ("cgroup.kill", "1")] {
        let file = group.join(file);
        if fs::symlink_metadata(&file).is_ok() {
            let _ = fs::write(file, word);
        }
    }
    for pid in fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines() {
        if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    remove(group, until);
}

/// Removes a group whose last process has ended. The kernel may need a moment to let go of it.
fn remove(group: &Path, until: Instant) {
    loop {
        match fs::remove_dir(group) {
            Err(why) if why.raw_os_error() == Some(libc::EBUSY) && Instant::now() < until => {
                std::thread::park_timeout(Duration::from_millis(1));
            }
            // Another worker may have been faster.
            _ => break,
        }
    }
}

/// Whether a group can be made and removed here.
fn usable(directory: &Path) -> bool {
    let probe = directory.join(format!("palisade-{}-probe", std::process::id()));
    let made = fs::create_dir(&probe).is_ok();
    made && fs::remove_dir(&probe).is_ok()
}

fn find(mounts: &str, own: &str) -> Layout {
    let own_path = |controller: Option<&str>| {
        own.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let matches = match controller {
                Some(name) => controllers.split(',').any(|controller| controller == name),
                None => controllers.is_empty(),
            };
            matches.then(|| path.trim_start_matches('/').to_owned())
        })
    };
    let mut layout = Layout::default();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let fields: Vec<&str> = left.split(' ').collect();
        let (Some(root), Some(point)) = (fields.get(3), fields.get(4)) else { continue };
        let mut right = right.split(' ');
        let (kind, options) = (right.next().unwrap_or(""), right.nth(1).unwrap_or(""));
        // The mount may show only a part of the hierarchy.
        let join = |path: String| {
            let path = format!("/{}", path.strip_suffix(LEAF).map_or(&*path, |path| path.trim_end_matches('/')));
            let inner = path.strip_prefix(root.trim_end_matches('/')).unwrap_or(&path).trim_start_matches('/');
            Path::new(point).join(inner)
        };
        let places = [
            ("memory", &mut layout.memory),
            ("pids", &mut layout.pids),
            ("cpu", &mut layout.cpu),
            ("cpuacct", &mut layout.cpuacct),
            ("io", &mut layout.io),
            ("freezer", &mut layout.freezer),
        ];
        if kind == "cgroup" {
            for (name, place) in places {
                let name = if name == "io" { "blkio" } else { name };
                if options.split(',').any(|option| option == name)
                    && let Some(path) = own_path(Some(name))
                {
                    *place = Some(Place { directory: join(path), unified: false });
                }
            }
        } else if kind == "cgroup2"
            && let Some(path) = own_path(None)
        {
            let directory = join(path);
            let enabled = fs::read_to_string(directory.join("cgroup.subtree_control")).unwrap_or_default();
            for (name, place) in places {
                if place.is_none() && enabled.split_whitespace().any(|controller| controller == name) {
                    *place = Some(Place { directory: directory.clone(), unified: true });
                }
            }
            layout.unified = Some(directory);
        }
    }
    layout
}

impl Cgroups {
    /// Makes the group that the sandbox is born in, where there is a unified hierarchy; the others come with
    /// [`Cgroups::fill`].
    pub(crate) fn birthplace() -> Result<Cgroups, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("palisade-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut groups = Cgroups { name, ..Cgroups::default() };
        if let Some(directory) = &layout().unified {
            let place = Place { directory: directory.clone(), unified: true };
            groups.unified = Some(groups.make(&place)?.directory);
        }
        Ok(groups)
    }

    /// The group that a process can be born in.
    pub(super) fn descriptor(&self) -> Result<Option<fs::File>, Error> {
        let open =
            |group: &PathBuf| fs::File::open(group).map_err(|cause| Error::Cgroup { path: group.clone(), cause });
        self.unified.as_ref().map(open).transpose()
    }

    /// Whether the sandbox was born in a group.
    pub(super) fn is_born(&self) -> bool {
        self.unified.is_some()
    }

    /// Makes the groups that the limits ask for and the machine allows, and those that freeze and count.
    pub(crate) fn fill(&mut self, limits: &Limits) -> Result<(), Error> {
        let layout = layout();
        if let (Some(bytes), Some(place)) = (limits.memory_bytes, &layout.memory) {
            let group = self.make(place)?;
            write(&group.file("memory.limit_in_bytes", "memory.max"), &bytes.to_string())?;
            // Memory and swap together in version 1, swap alone in version 2; absent where swap is not accounted.
            let both = if group.unified { 0 } else { bytes };
            let _ = write(&group.file("memory.memsw.limit_in_bytes", "memory.swap.max"), &both.to_string());
            if group.unified {
                // Running out of memory ends the whole sandbox's worst process only, not the group: the cell goes on.
                let _ = write(&group.directory.join("memory.oom.group"), "0");
            }
            self.memory = Some(group);
        }
        if let (Some(count), Some(place)) = (limits.pids, &layout.pids) {
            let group = self.make(place)?;
            write(&group.directory.join("pids.max"), &count.to_string())?;
            self.pids = Some(group);
        }
        if let (true, Some(place)) = (limits.cpu_millis.is_some() || limits.cpu_weight.is_some(), &layout.cpu) {
            let group = self.make(place)?;
            if let Some(millis) = limits.cpu_millis {
                if group.unified {
                    write(&group.directory.join("cpu.max"), &format!("{} 100000", millis * 100))?;
                } else {
                    write(&group.directory.join("cpu.cfs_period_us"), "100000")?;
                    write(&group.directory.join("cpu.cfs_quota_us"), &(millis * 100).to_string())?;
                }
            }
            if let Some(weight) = limits.cpu_weight {
                // 100 is the default of version 2, 1024 that of version 1; the proportions are the same.
                let shares = (u64::from(weight) * 1024 / 100).max(2);
                let value = if group.unified { u64::from(weight) } else { shares };
                write(&group.file("cpu.shares", "cpu.weight"), &value.to_string())?;
            }
            self.cpu = Some(group);
        }
        if let (Some(weight), Some(place)) = (limits.io_weight, &layout.io) {
            let group = self.make(place)?;
            // Only some schedulers of block devices know weights.
            let file = group.file("blkio.bfq.weight", "io.weight");
            if fs::write(&file, weight.to_string()).is_ok() {
                self.io = Some(group);
            }
        }
        if self.unified.is_none() {
            if let Some(place) = &layout.freezer {
                self.freezer = Some(self.make(place)?);
            }
            if let Some(place) = &layout.cpuacct {
                self.cpuacct = Some(self.make(place)?);
            }
        }
        Ok(())
    }

    fn make(&mut self, place: &Place) -> Result<Group, Error> {
        let directory = place.directory.join(&self.name);
        match fs::create_dir(&directory) {
            Ok(()) => self.all.push(directory.clone()),
            // One directory serves all controllers of the unified hierarchy.
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists && self.all.contains(&directory) => {}
            Err(cause) => return Err(Error::Cgroup { path: directory, cause }),
        }
        Ok(Group { directory, unified: place.unified })
    }

    /// Moves a process, and what it will start, into all groups but the one that it was born in.
    pub(crate) fn add(&self, pid: i32, born: bool) -> Result<(), Error> {
        for group in &self.all {
            if !(born && self.unified.as_ref() == Some(group)) {
                write(&group.join("cgroup.procs"), &pid.to_string())?;
            }
        }
        Ok(())
    }

    /// Stops every process of the sandbox; returns when none runs.
    pub(crate) async fn freeze(&self) -> Result<(), Error> {
        // On any way out but the good one, all of them run.
        let undo = Undo(Some(self));
        if let Some(group) = &self.unified {
            write(&group.join("cgroup.freeze"), "1")?;
            settle(&group.join("cgroup.events"), |text| text.lines().any(|line| line == "frozen 1")).await?;
        } else {
            let Some(group) = &self.freezer else { return Err(Error::Unfrozen) };
            let state = group.directory.join("freezer.state");
            write(&state, "FROZEN")?;
            settle(&state, |text| text.trim() == "FROZEN").await?;
        }
        undo.keep();
        Ok(())
    }

    /// Lets the processes go on.
    pub(crate) fn thaw(&self) -> Result<(), Error> {
        if let Some(group) = &self.unified {
            return write(&group.join("cgroup.freeze"), "0");
        }
        match &self.freezer {
            Some(group) => write(&group.directory.join("freezer.state"), "THAWED"),
            None => Err(Error::Unfrozen),
        }
    }

    /// What the sandbox has used.
    pub(crate) fn usage(&self) -> Usage {
        let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let field = |path: PathBuf, name: &str| {
            let text = fs::read_to_string(path).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
            line.trim().parse::<u64>().ok()
        };
        let cpu = match (&self.unified, &self.cpuacct) {
            (Some(group), _) => field(group.join("cpu.stat"), "usage_usec").map(Duration::from_micros),
            (None, Some(group)) => number(group.directory.join("cpuacct.usage")).map(Duration::from_nanos),
            (None, None) => None,
        };
        let memory = |v1, v2| self.memory.as_ref().and_then(|group| number(group.file(v1, v2)));
        Usage {
            cpu,
            memory_bytes: memory("memory.usage_in_bytes", "memory.current"),
            memory_peak_bytes: memory("memory.max_usage_in_bytes", "memory.peak"),
            processes: self.pids.as_ref().and_then(|group| number(group.directory.join("pids.current"))),
            oom_kills: self
                .memory
                .as_ref()
                .and_then(|group| field(group.file("memory.oom_control", "memory.events"), "oom_kill")),
            disk_bytes: None,
        }
    }

    /// The files through which a process enters all groups by writing `0`: what it starts is in them from its first moment.
    pub(crate) fn doors(&self) -> Result<Vec<fs::File>, Error> {
        let open = |group: &PathBuf| {
            let path = group.join("cgroup.procs");
            fs::OpenOptions::new().write(true).open(&path).map_err(|cause| Error::Cgroup { path, cause })
        };
        self.all.iter().map(open).collect()
    }

    /// Ends whatever is still in the groups, and removes them.
    pub(crate) fn clear(self) {
        let until = patience();
        for group in &self.all {
            clear(group, until);
        }
    }

    /// Removes the groups of a sandbox that has ended.
    pub(crate) fn remove(self) {
        let until = patience();
        for group in &self.all {
            remove(group, until);
        }
    }

    /// Whether the sandbox can be stopped as a whole.
    pub(crate) fn can_freeze(&self) -> bool {
        self.unified.is_some() || self.freezer.is_some()
    }

    pub(crate) fn report(&self, limits: &Limits, say: &mut impl FnMut(Facility, Status)) {
        let mut one = |facility, wanted: bool, group: &Option<Group>, what: String| {
            say(
                facility,
                match (wanted, group) {
                    (false, _) => Status::Unused,
                    (true, Some(_)) => Status::Enforced(what),
                    (true, None) => {
                        Status::Unavailable("no control group of this controller can be made here".to_owned())
                    }
                },
            );
        };
        let memory = limits.memory_bytes.unwrap_or(0) >> 20;
        one(Facility::MemoryLimit, limits.memory_bytes.is_some(), &self.memory, format!("{memory} MiB"));
        let pids = limits.pids.unwrap_or(0);
        one(Facility::PidLimit, limits.pids.is_some(), &self.pids, format!("{pids} processes"));
        let cpu = limits.cpu_millis.unwrap_or(0);
        one(Facility::CpuLimit, limits.cpu_millis.is_some(), &self.cpu, format!("{cpu} thousandths of a core"));
        say(
            Facility::Freeze,
            if self.can_freeze() {
                Status::Enforced("every process at once, by control group".to_owned())
            } else {
                Status::Unavailable("no control group that freezes can be made here".to_owned())
            },
        );
    }
}

/// Lets a sandbox go on whose freezing failed or was given up.
struct Undo<'a>(Option<&'a Cgroups>);

impl Undo<'_> {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if let Some(cgroups) = self.0 {
            let _ = cgroups.thaw();
        }
    }
}

/// Waits until a file says that all stand still.
async fn settle(file: &Path, done: impl Fn(&str) -> bool) -> Result<(), Error> {
    // A process in the middle of a system call that cannot be interrupted holds the others up.
    for round in 0..10_000u32 {
        let text = fs::read_to_string(file).map_err(|cause| Error::Cgroup { path: file.to_owned(), cause })?;
        if done(&text) {
            return Ok(());
        }
        match round {
            0..20 => tokio::task::yield_now().await,
            // The runtime's own timer is no finer than a millisecond, for which all inside would stand still for nothing.
            20..40 => std::thread::park_timeout(Duration::from_micros(50)),
            _ => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
    Err(Error::Cgroup { path: file.to_owned(), cause: io::ErrorKind::TimedOut.into() })
}

fn write(path: &Path, value: &str) -> Result<(), Error> {
    fs::write(path, value).map_err(|cause| Error::Cgroup { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_layout_is_understood() {
        let mounts = "30 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      31 25 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let layout = find(mounts, "4:memory:/user/x\n0::/\n");
        let memory = layout.memory.unwrap();
        assert_eq!(memory.directory, Path::new("/sys/fs/cgroup/memory/user/x"));
        assert!(!memory.unified);
        assert!(layout.pids.is_none());
    }

    #[test]
    fn a_delegated_group_is_used_from_its_leaf() {
        let tree = tempfile::tempdir().unwrap();
        let group = tree.path().join("system.slice/palisade.service");
        fs::create_dir_all(&group).unwrap();
        let mounts = format!("30 25 0:26 / {} rw - cgroup2 cgroup2 rw\n", tree.path().display());
        let layout = find(&mounts, "0::/system.slice/palisade.service\n");
        assert_eq!((layout.unified.as_deref(), layout.memory.as_ref()), (Some(group.as_path()), None));
        fs::write(group.join("cgroup.subtree_control"), "cpu memory pids").unwrap();
        let layout = find(&mounts, "0::/system.slice/palisade.service/palisade-worker\n");
        let place = Some(Place { directory: group, unified: true });
        assert_eq!((&layout.memory, &layout.pids, &layout.cpu), (&place, &place, &place));
        let group = Group { directory: "g".into(), unified: true };
        assert_eq!(group.file("memory.limit_in_bytes", "memory.max"), Path::new("g/memory.max"));
    }

    #[test]
    fn groups_tell_whose_they_are() {
        assert_eq!(owner("palisade-17-3"), Some(17));
        assert_eq!([owner("palisade-worker"), owner("palisade--1"), owner("user.slice")], [None; 3]);
        assert!(is_gone(std::process::id(), true) && is_gone(u32::MAX, false) && !is_gone(1, true));
        // Later, what has it is alive.
        assert!(!is_gone(std::process::id(), false));
    }

    #[test]
    fn a_mount_of_a_part_of_the_hierarchy_is_understood() {
        let mounts = "30 25 0:26 /docker/abc /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let layout = find(mounts, "4:pids:/docker/abc\n");
        assert_eq!(layout.pids.unwrap().directory, Path::new("/sys/fs/cgroup/pids/"));
    }
}
