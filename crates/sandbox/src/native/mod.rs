//! The `native` driver: the kernel's own means, without a container engine.

mod cgroup;
mod delegation;
mod identity;
mod idmap;
mod launch;
mod nursery;
mod program;
mod root;
mod seccomp;
mod stock;

use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use palisade_cell::{Claim, Place, Root, Setup, VERSION, encode};

use crate::disk::Disks;
use crate::{
    Capabilities, Driver, Error, Facility, Given, Limits, PoolOptions, Report, Rootfs, Sandbox, Spec, Status, Workspace,
};
use stock::{Stock, Taken};

pub(crate) use cgroup::{Cgroups, Place as GroupPlace, layout as cgroups, sweep_again};
pub(crate) use identity::{INSIDE, Identity, RANGE, give, is_root};
pub(crate) use idmap::{Idmap, possible as idmapped};
pub(crate) use launch::failed;
pub(crate) use program::{CELL, cell};
pub(crate) use root::{exists, host, names, own_directory, resolver};

/// Whether the cell's program can be prepared.
pub(crate) fn program() -> io::Result<()> {
    cell().map(drop)
}

/// Whether a sandbox's network can be led to sockets: makes one that waits, and ends it. Blocks.
pub(crate) fn egress() -> Result<(), Error> {
    let base = Base {
        rootfs: Rootfs::Host,
        limits: Limits { pids: None, ..Limits::default() },
        gpus: Vec::new(),
        egress: true,
    };
    launch::make(&base).map(drop)
}

/// The Landlock ABI of this kernel; zero without Landlock.
pub(crate) fn landlock_abi() -> i64 {
    const VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the call takes no pointer and makes nothing.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, VERSION) };
    abi.max(0)
}

/// A sandbox that takes longer than this to come up never will.
pub(crate) const START: Duration = Duration::from_secs(20);

/// How sandboxes are made.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Sandboxes that wait for their sessions.
    pub pool: PoolOptions,
    /// How many are started at a time, when none waits; the others wait their turn. Zero for three per processor.
    pub starts: usize,
}

/// Makes sandboxes out of namespaces. Clones share their pool, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct Native {
    stock: Arc<Stock>,
}

impl Default for Native {
    fn default() -> Native {
        Native::new(Options::default())
    }
}

impl Native {
    /// A driver.
    pub fn new(options: Options) -> Native {
        Native { stock: Arc::new(Stock::new(&options)) }
    }

    /// How many sandboxes wait for sessions now.
    pub fn waiting(&self) -> usize {
        self.stock.waiting()
    }

    /// Ends the sandboxes that wait, and waits until they are gone. From then on each is made when it is asked for.
    pub async fn close(&self) {
        self.stock.close().await;
    }
}

#[async_trait]
impl Driver for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            rootless: true,
            snapshot: true,
            freeze: true,
            gpu: true,
            user_namespaces: true,
            network_isolation: true,
            egress: true,
            resource_limits: true,
            ..Capabilities::default()
        }
    }

    async fn create(&self, spec: Spec) -> Result<Sandbox, Error> {
        let began = Instant::now();
        check(&spec)?;
        let disks = Disks::of(&spec).await?;
        let spec = Arc::new(spec);
        let Taken { live, pooled } = self.stock.get(spec.clone()).await?;
        let (process, limits) = (live.process, &spec.limits);
        let (reader, writer) = live.stream.into_split();
        let mut report = Report { notes: live.notes, startup: began.elapsed(), pooled, ..Report::default() };
        let mut say = |facility, status| {
            report.facilities.insert(facility, status);
        };
        let time = if launch::has_time_namespace() { ", time" } else { "" };
        say(Facility::Namespaces, Status::Enforced(format!("user, mount, pid, net, ipc, uts, cgroup{time}")));
        say(Facility::Capabilities, Status::Enforced("none in any set, no_new_privs".to_owned()));
        say(Facility::Seccomp, Status::Enforced("installed".to_owned()));
        say(
            Facility::Landlock,
            match live.landlock_abi {
                0 => Status::Unavailable("this kernel has no Landlock".to_owned()),
                abi => Status::Enforced(format!("ABI {abi}")),
            },
        );
        say(Facility::DistinctUser, process.identity().status());
        process.cgroups()?.report(limits, &mut say);
        say(Facility::DiskLimit, disks.status.clone());
        if let (Some(limit), Some(Status::Unavailable(_))) = (limits.pids, report.facilities.get(&Facility::PidLimit))
            && rlimits_are_own()
        {
            let status = Status::Enforced(format!("{limit} processes, as a resource limit of the sandbox's user"));
            report.facilities.insert(Facility::PidLimit, status);
        }
        report.demand(&spec.require, self.name())?;
        let body = disks.around(Box::new(process));
        Ok(Sandbox::new(body, Box::new(reader), Box::new(writer), report).leading_to(live.network))
    }
}

pub(crate) fn check(spec: &Spec) -> Result<(), Error> {
    let name = |text: &str| {
        !text.is_empty()
            && text.len() <= 64
            && !text.starts_with('.')
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    if !name(&spec.hostname) {
        return Err(Error::Spec(format!("hostname {:?}: use letters, digits and '-'", spec.hostname)));
    }
    for mount in &spec.memory {
        if !name(&mount.name) {
            return Err(Error::Spec(format!("memory mount {:?}: use letters, digits, '-' and '_'", mount.name)));
        }
    }
    for (key, value) in &spec.env {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            return Err(Error::Spec(format!("environment variable {key:?} is malformed")));
        }
    }
    let memory = spec.memory.iter().map(|mount| mount.host.as_path());
    for path in [spec.workspace.written(), &spec.outputs].into_iter().chain(memory) {
        directory(path)?;
    }
    if let Workspace::Layered { lower, .. } = &spec.workspace {
        if lower.is_empty() {
            return Err(Error::Spec("the workspace has no lower layer: name at least an empty directory".to_owned()));
        }
        lower.iter().try_for_each(|path| directory(path))?;
    }
    match &spec.rootfs {
        Rootfs::Host => {}
        Rootfs::Directory(path) => directory(path)?,
        Rootfs::Layers(layers) => layers.iter().try_for_each(|path| directory(path))?,
    }
    for given in &spec.given {
        let plain = given.target.starts_with('/') && !given.target.split('/').any(|part| part == "..");
        if !plain || !given.host.is_absolute() {
            let Given { host, target, .. } = given;
            return Err(Error::Spec(format!("given {} at {target:?}: both paths must be absolute", host.display())));
        }
    }
    for gpu in &spec.gpus {
        let known =
            ["nvidia", "dri/renderD", "dri/card", "kfd", "accel/accel"].iter().any(|kind| gpu.starts_with(kind));
        let plain = gpu.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'/'));
        let there = std::fs::symlink_metadata(Path::new("/dev").join(gpu))
            .is_ok_and(|meta| std::os::unix::fs::FileTypeExt::is_char_device(&meta.file_type()));
        if !(known && plain) {
            return Err(Error::Spec(format!("gpu {gpu:?}: name a device such as nvidia0 or dri/renderD128")));
        }
        if !there {
            return Err(Error::Spec(format!("gpu {gpu:?}: there is no /dev/{gpu} on this machine")));
        }
    }
    Ok(())
}

/// Refuses what only this driver can do.
pub(crate) fn without_egress(spec: &Spec, driver: &str) -> Result<(), Error> {
    if spec.egress || !spec.given.is_empty() {
        let why = format!("the {driver} driver leads no network to the egress service; use native, or no egress");
        return Err(Error::Spec(why));
    }
    Ok(())
}

fn directory(path: &Path) -> Result<(), Error> {
    let wrong = |cause| Error::Directory { path: path.to_owned(), cause };
    if !path.is_absolute() {
        return Err(wrong(io::Error::other("the path must be absolute")));
    }
    // A link could be turned elsewhere between this check and its use.
    let meta = std::fs::symlink_metadata(path).map_err(wrong)?;
    if meta.is_dir() { Ok(()) } else { Err(wrong(io::Error::from_raw_os_error(libc::ENOTDIR))) }
}

fn environment(spec: &Spec) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("HOME", "/home/agent"),
        ("USER", "agent"),
        ("LOGNAME", "agent"),
        ("SHELL", "/bin/bash"),
        ("LANG", "C.UTF-8"),
        ("TERM", "dumb"),
        ("TMPDIR", "/tmp"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect();
    for (name, value) in &spec.env {
        env.retain(|(known, _)| known != name);
        env.push((name.clone(), value.clone()));
    }
    env
}

/// Whether a user namespace counts its users' processes for itself (Linux 5.14).
fn rlimits_are_own() -> bool {
    static OWN: OnceLock<bool> = OnceLock::new();
    *OWN.get_or_init(|| {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0u32));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (5, 14)
    })
}

/// What of a spec does not depend on the session: sandboxes of the same base are the same until they are claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Base {
    rootfs: Rootfs,
    limits: Limits,
    gpus: Vec<String>,
    egress: bool,
}

impl Base {
    fn of(spec: &Spec) -> Base {
        let Spec { rootfs, limits, gpus, egress, .. } = spec;
        Base { rootfs: rootfs.clone(), limits: limits.clone(), gpus: gpus.clone(), egress: *egress }
    }

    /// The directories that it is made of.
    fn sources(&self) -> Vec<nursery::Seen> {
        match &self.rootfs {
            Rootfs::Host => Vec::new(),
            Rootfs::Directory(path) => nursery::seen([path]),
            Rootfs::Layers(layers) => nursery::seen(layers),
        }
    }
}

/// The first frame.
fn setup(base: &Base, root: Option<Root>) -> Setup {
    let limits = &base.limits;
    let mut rlimits = vec![
        // One, not zero: zero still feeds a host's dump handler when `core_pattern` is a pipe, one never does (core(5)).
        (libc::RLIMIT_CORE, 1),
        (libc::RLIMIT_MEMLOCK, 64 << 10),
        (libc::RLIMIT_MSGQUEUE, 0),
        // Queued signals and timers are counted for whoever made the user namespace too, and so for all its sandboxes.
        (libc::RLIMIT_SIGPENDING, 1024),
        (libc::RLIMIT_NICE, 0),
        (libc::RLIMIT_RTPRIO, 0),
    ];
    // Counted per user namespace since Linux 5.14, and thus per sandbox; before, per user of the host.
    if rlimits_are_own() {
        rlimits.extend(limits.pids.map(|limit| (libc::RLIMIT_NPROC, limit)));
    }
    rlimits.extend(limits.open_files.map(|limit| (libc::RLIMIT_NOFILE, limit)));
    rlimits.extend(limits.file_bytes.map(|limit| (libc::RLIMIT_FSIZE, limit)));
    Setup {
        version: VERSION,
        place: Place::Own,
        root,
        tmp_bytes: limits.tmp_bytes,
        shm_bytes: limits.shm_bytes,
        rlimits,
        landlock: true,
        leave_early: is_root(),
        own_users: false,
    }
}

/// The second frame.
fn claim(spec: &Spec, session: root::Session) -> Claim {
    let mut roots = vec![("/workspace".to_owned(), true), ("/mnt/session/outputs".to_owned(), true)];
    roots.extend(spec.memory.iter().map(|mount| (format!("/mnt/memory/{}", mount.name), !mount.read_only)));
    Claim {
        binds: session.binds,
        overlays: session.overlays,
        hostname: spec.hostname.clone(),
        env: environment(spec),
        workdir: "/workspace".to_owned(),
        roots,
    }
}

/// Both frames of a sandbox whose walls are somebody else's, for a change before they are encoded.
pub(crate) fn frames(spec: &Spec) -> (Setup, Claim) {
    let setup = Setup { place: Place::Given, ..setup(&Base::of(spec), None) };
    (setup, claim(spec, root::Session::default()))
}

/// The two as bytes, with the filters that go with them.
pub(crate) fn encoded((setup, claim): &(Setup, Claim)) -> Result<Vec<u8>, Error> {
    let mut bytes = encode(setup, seccomp::base()).map_err(Error::Protocol)?;
    bytes.extend(encode(claim, seccomp::seal()).map_err(Error::Protocol)?);
    Ok(bytes)
}
