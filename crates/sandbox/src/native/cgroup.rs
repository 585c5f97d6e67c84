//! Control groups: limits of all processes of a sandbox together.
//!
//! Version 1 hierarchies and a delegated version 2 are used where this process may make groups; elsewhere the report says
//! so. Groups are made beside the worker's own, so that whatever limits the worker limits its sandboxes too.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Facility, Limits, Status};

/// Where groups can be made, by controller.
#[derive(Debug, Clone, Default)]
pub(crate) struct Layout {
    pub(crate) memory: Option<Place>,
    pub(crate) pids: Option<Place>,
    pub(crate) cpu: Option<Place>,
    pub(crate) freezer: Option<Place>,
}

/// A directory in which groups can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) directory: PathBuf,
    pub(crate) unified: bool,
}

/// A sandbox's groups.
#[derive(Debug)]
pub(crate) struct Cgroups {
    memory: Option<PathBuf>,
    pids: Option<PathBuf>,
    cpu: Option<PathBuf>,
    all: Vec<PathBuf>,
}

/// The machine's layout, looked up once.
pub(crate) fn layout() -> &'static Layout {
    static LAYOUT: OnceLock<Layout> = OnceLock::new();
    LAYOUT.get_or_init(|| {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut layout = find(&mounts, &own);
        for place in [&mut layout.memory, &mut layout.pids, &mut layout.cpu, &mut layout.freezer] {
            if place.as_ref().is_some_and(|place| !usable(place)) {
                *place = None;
            }
        }
        sweep(&layout);
        layout
    })
}

/// Removes the groups of workers that ended without doing so themselves. Groups with members cannot be removed.
fn sweep(layout: &Layout) {
    for place in [&layout.memory, &layout.pids, &layout.cpu].into_iter().flatten() {
        for entry in fs::read_dir(&place.directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let owner =
                name.to_str().and_then(|name| name.strip_prefix("palisade-")?.split_once('-')?.0.parse::<u32>().ok());
            if owner.is_some_and(|pid| fs::symlink_metadata(format!("/proc/{pid}")).is_err()) {
                // Another worker may have been faster.
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}

/// Whether a group can be made and removed here.
fn usable(place: &Place) -> bool {
    let probe = place.directory.join(format!("palisade-probe-{}", std::process::id()));
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
            let path = format!("/{path}");
            let inner = path.strip_prefix(root.trim_end_matches('/')).unwrap_or(&path).trim_start_matches('/');
            Path::new(point).join(inner)
        };
        let places = [
            ("memory", &mut layout.memory),
            ("pids", &mut layout.pids),
            ("cpu", &mut layout.cpu),
            ("freezer", &mut layout.freezer),
        ];
        if kind == "cgroup" {
            for (name, place) in places {
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
        }
    }
    layout
}

impl Cgroups {
    pub(crate) const fn none() -> Cgroups {
        Cgroups { memory: None, pids: None, cpu: None, all: Vec::new() }
    }

    /// Makes the groups that the limits ask for and the machine allows.
    pub(super) fn create(limits: &Limits) -> Result<Cgroups, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let layout = layout();
        let name = format!("palisade-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut groups = Cgroups::none();
        let done = groups.fill(limits, layout, &name);
        match done {
            Ok(()) => Ok(groups),
            Err(why) => {
                groups.remove();
                Err(why)
            }
        }
    }

    fn fill(&mut self, limits: &Limits, layout: &Layout, name: &str) -> Result<(), Error> {
        if let (Some(bytes), Some(place)) = (limits.memory_bytes, &layout.memory) {
            let group = self.make(place, name)?;
            let (limit, swap) = if place.unified {
                ("memory.max", "memory.swap.max")
            } else {
                ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
            };
            write(&group.join(limit), &bytes.to_string())?;
            // Memory and swap together in version 1, swap alone in version 2; absent where swap is not accounted.
            let both = if place.unified { 0 } else { bytes };
            let _ = write(&group.join(swap), &both.to_string());
            self.memory = Some(group);
        }
        if let (Some(count), Some(place)) = (limits.pids, &layout.pids) {
            let group = self.make(place, name)?;
            write(&group.join("pids.max"), &count.to_string())?;
            self.pids = Some(group);
        }
        if let (Some(millis), Some(place)) = (limits.cpu_millis, &layout.cpu) {
            let group = self.make(place, name)?;
            if place.unified {
                write(&group.join("cpu.max"), &format!("{} 100000", millis * 100))?;
            } else {
                write(&group.join("cpu.cfs_period_us"), "100000")?;
                write(&group.join("cpu.cfs_quota_us"), &(millis * 100).to_string())?;
            }
            self.cpu = Some(group);
        }
        Ok(())
    }

    fn make(&mut self, place: &Place, name: &str) -> Result<PathBuf, Error> {
        let group = place.directory.join(name);
        match fs::create_dir(&group) {
            Ok(()) => self.all.push(group.clone()),
            // One directory serves all controllers of the unified hierarchy.
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists && self.all.contains(&group) => {}
            Err(cause) => return Err(Error::Cgroup { path: group, cause }),
        }
        Ok(group)
    }

    pub(super) fn add(&self, pid: i32) -> Result<(), Error> {
        for group in &self.all {
            write(&group.join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
    }

    /// Removes the groups of a sandbox that has ended. The kernel may need a moment to let go of the last process.
    pub(crate) fn remove(self) {
        for group in &self.all {
            for _ in 0..200 {
                match fs::remove_dir(group) {
                    Err(why) if why.raw_os_error() == Some(libc::EBUSY) => {
                        std::thread::park_timeout(std::time::Duration::from_millis(1));
                    }
                    _ => break,
                }
            }
        }
    }

    pub(crate) fn report(&self, limits: &Limits, say: &mut impl FnMut(Facility, Status)) {
        let mut one = |facility, wanted: bool, group: &Option<PathBuf>, what: String| {
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
    }
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
    fn a_mount_of_a_part_of_the_hierarchy_is_understood() {
        let mounts = "30 25 0:26 /docker/abc /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let layout = find(mounts, "4:pids:/docker/abc\n");
        assert_eq!(layout.pids.unwrap().directory, Path::new("/sys/fs/cgroup/pids/"));
    }
}
