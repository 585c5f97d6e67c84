//! What a sandbox is made of.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Error;

/// Describes a sandbox.
#[derive(Debug, Clone)]
pub struct Spec {
    /// What becomes `/workspace`.
    pub workspace: Workspace,
    /// A directory of the host that becomes `/mnt/session/outputs`.
    pub outputs: PathBuf,
    /// Directories of the host that appear below `/mnt/memory`.
    pub memory: Vec<MemoryMount>,
    /// Files and directories of the host that can be read inside.
    pub given: Vec<Given>,
    /// Whether the network leads to sockets that the caller takes with [`crate::Sandbox::network`]. Else it leads nowhere.
    pub egress: bool,
    /// What the rest of the file system is.
    pub rootfs: Rootfs,
    /// What may be used.
    pub limits: Limits,
    /// GPUs by the names of their devices below `/dev`, such as `nvidia0` or `dri/renderD128`.
    pub gpus: Vec<String>,
    /// Variables for commands, on top of `PATH`, `HOME`, `USER`, `LANG` and `TERM`.
    pub env: Vec<(String, String)>,
    /// The host name inside.
    pub hostname: String,
    /// What must be enforced, or the sandbox is refused.
    pub require: Vec<Facility>,
}

impl Spec {
    /// A sandbox on the host's own tools with the default limits.
    pub fn new(workspace: impl Into<Workspace>, outputs: impl Into<PathBuf>) -> Spec {
        Spec {
            workspace: workspace.into(),
            outputs: outputs.into(),
            memory: Vec::new(),
            given: Vec::new(),
            egress: false,
            rootfs: Rootfs::Host,
            limits: Limits::default(),
            gpus: Vec::new(),
            env: Vec::new(),
            hostname: "sandbox".to_owned(),
            require: Vec::new(),
        }
    }
}

/// What becomes `/workspace`: the one place that a session's work is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Workspace {
    /// A directory of the host, as it is. Without root it must belong to the caller; with root it is given to the
    /// sandbox's own user.
    Directory(PathBuf),
    /// Layers of which only the uppermost is written: what a checkpoint captures, and what sessions can share.
    Layered {
        /// Directories that are only read, topmost first. Nothing may write to them while a sandbox has them.
        lower: Vec<PathBuf>,
        /// A directory that belongs to this workspace alone. `upper` in it holds what was changed, in the format of
        /// overlayfs with `userxattr`; `work` is overlayfs's own. Both are made when they are missing.
        upper: PathBuf,
    },
}

impl Workspace {
    /// The directory of the host that is written to.
    pub fn written(&self) -> &Path {
        match self {
            Workspace::Directory(directory) => directory,
            Workspace::Layered { upper, .. } => upper,
        }
    }
}

impl<P: Into<PathBuf>> From<P> for Workspace {
    fn from(directory: P) -> Workspace {
        Workspace::Directory(directory.into())
    }
}

/// A memory store's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryMount {
    /// Where it is on the host.
    pub host: PathBuf,
    /// Its name below `/mnt/memory`: letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Whether it must not be written.
    pub read_only: bool,
}

/// Something of the host that is shown inside, to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// A file or a directory of the host.
    pub host: PathBuf,
    /// Where it is inside: below `/run`, or in the place of something that is there.
    pub target: String,
    /// Whether it is left out where there is nothing in that place.
    pub over: bool,
}

/// What the file system is, apart from the places that may be written. Always read-only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Rootfs {
    /// The host's programs and libraries, and nothing else of it.
    #[default]
    Host,
    /// A directory that holds a root file system.
    Directory(PathBuf),
    /// Layers of an image, topmost first, in the format of overlayfs with `userxattr`.
    Layers(Vec<PathBuf>),
}

/// What a sandbox may use. None means no limit of the sandbox's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Memory of all processes together, in bytes.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Processor time per second, in thousandths of a core.
    pub cpu_millis: Option<u64>,
    /// The share of a busy processor against others, 1 to 10,000; what has none counts as 100.
    pub cpu_weight: Option<u32>,
    /// The share of a busy disk against others, 1 to 10,000, where its scheduler knows shares.
    pub io_weight: Option<u32>,
    /// Open files of one process.
    pub open_files: Option<u64>,
    /// The largest file, in bytes.
    pub file_bytes: Option<u64>,
    /// What the workspace's own layer and the outputs take up on the disk, each, in bytes. What a workspace of layers is
    /// made of besides does not count. Where it is kept as a file system of its own, that system's own records count too.
    pub disk_bytes: Option<u64>,
    /// Files, directories and links in the workspace's own layer and in the outputs, each.
    pub disk_inodes: Option<u64>,
    /// `/tmp` and the home directory, each, in bytes.
    pub tmp_bytes: u64,
    /// `/dev/shm`, in bytes.
    pub shm_bytes: u64,
}

impl Limits {
    /// What a driver says of the limit of the disk when it sets none.
    pub(crate) fn without_disk(&self, driver: &str) -> Status {
        if self.disk_bytes.is_some() || self.disk_inodes.is_some() {
            Status::Unavailable(format!("the {driver} driver does not limit what a session keeps on the disk"))
        } else {
            Status::Unused
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            memory_bytes: Some(2 << 30),
            pids: Some(512),
            cpu_millis: None,
            cpu_weight: None,
            io_weight: None,
            open_files: Some(4096),
            file_bytes: Some(8 << 30),
            disk_bytes: None,
            disk_inodes: None,
            tmp_bytes: 512 << 20,
            shm_bytes: 64 << 20,
        }
    }
}

/// Something that keeps a sandbox in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Facility {
    /// User, mount, process, network, IPC, host name and cgroup namespaces.
    Namespaces,
    /// A host user that belongs to this sandbox alone.
    DistinctUser,
    /// System-call filters.
    Seccomp,
    /// Landlock.
    Landlock,
    /// No capability, no new privileges.
    Capabilities,
    /// A limit of memory by cgroup.
    MemoryLimit,
    /// A limit of processes by cgroup.
    PidLimit,
    /// A limit of processor time by cgroup.
    CpuLimit,
    /// A limit of what is written to the disk.
    DiskLimit,
    /// All processes can be stopped at once.
    Freeze,
}

impl Facility {
    /// All of them.
    pub const ALL: [Facility; 10] = [
        Facility::Namespaces,
        Facility::DistinctUser,
        Facility::Seccomp,
        Facility::Landlock,
        Facility::Capabilities,
        Facility::MemoryLimit,
        Facility::PidLimit,
        Facility::CpuLimit,
        Facility::Freeze,
        Facility::DiskLimit,
    ];
}

impl fmt::Display for Facility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Facility::Namespaces => "namespaces",
            Facility::DistinctUser => "distinct user",
            Facility::Seccomp => "seccomp",
            Facility::Landlock => "landlock",
            Facility::Capabilities => "capabilities",
            Facility::MemoryLimit => "memory limit",
            Facility::PidLimit => "process limit",
            Facility::CpuLimit => "cpu limit",
            Facility::DiskLimit => "disk limit",
            Facility::Freeze => "freeze",
        })
    }
}

/// Whether a facility is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// It is; with what is worth knowing about it.
    Enforced(String),
    /// It is not, and why.
    Unavailable(String),
    /// It was not asked for.
    Unused,
}

/// What keeps a sandbox in, and how long it took to build.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Each facility's status.
    pub facilities: BTreeMap<Facility, Status>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
    /// From the request to the sandbox being ready.
    pub startup: Duration,
    /// Whether it had waited for its session.
    pub pooled: bool,
}

impl Report {
    /// Whether this facility is in force.
    pub fn enforces(&self, facility: Facility) -> bool {
        matches!(self.facilities.get(&facility), Some(Status::Enforced(_)))
    }

    /// Refuses what is required and not in force.
    pub(crate) fn demand(&self, require: &[Facility], driver: &'static str) -> Result<(), Error> {
        for &facility in require {
            let reason = match self.facilities.get(&facility) {
                Some(Status::Enforced(_)) => continue,
                Some(Status::Unavailable(reason)) => reason.clone(),
                Some(Status::Unused) | None => "no limit is set in the spec".to_owned(),
            };
            return Err(Error::Required { facility, driver, reason });
        }
        Ok(())
    }
}

/// What a sandbox has used so far. None where the machine or the driver does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time of all its processes, those that have ended included.
    pub cpu: Option<Duration>,
    /// Memory now, in bytes, with the caches that are charged to it.
    pub memory_bytes: Option<u64>,
    /// The most memory that it had at a time, in bytes.
    pub memory_peak_bytes: Option<u64>,
    /// Processes and threads now.
    pub processes: Option<u64>,
    /// Processes that were ended for want of memory.
    pub oom_kills: Option<u64>,
    /// What the workspace's own layer and the outputs take up on the disk together, in bytes; known where they are limited.
    pub disk_bytes: Option<u64>,
}

/// What a driver can do. What a machine then gives is in the [`Report`] of each sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Works without root.
    pub rootless: bool,
    /// Can have a workspace in layers, of which a checkpoint captures the uppermost.
    pub snapshot: bool,
    /// Can stop all processes at once.
    pub freeze: bool,
    /// Can write the processes to disk and [wake](crate::Driver::wake) them later.
    pub hibernate: bool,
    /// Can pass GPUs on.
    pub gpu: bool,
    /// Gives each sandbox host users of its own.
    pub user_namespaces: bool,
    /// Keeps the network out.
    pub network_isolation: bool,
    /// Can lead the network to sockets of the caller's.
    pub egress: bool,
    /// Limits memory, processes and processor time.
    pub resource_limits: bool,
}
