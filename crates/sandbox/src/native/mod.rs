//! The `native` driver: the kernel's own means, without a container engine.

mod cgroup;
mod identity;
mod launch;
mod program;
mod root;
mod seccomp;

use std::io;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use palisade_cell::{Place, Ready, Setup, VERSION};
use tokio::net::UnixStream;

use crate::sandbox::{Source, ready};
use crate::{Capabilities, Driver, Error, Facility, Report, Sandbox, Spec, Status};

pub(crate) use cgroup::{Cgroups, layout as cgroups};
pub(crate) use identity::{INSIDE, Identity, is_root};
pub(crate) use program::{CELL, cell};
pub(crate) use root::Root;

/// Whether the cell's program can be prepared.
pub(crate) fn program() -> io::Result<()> {
    cell().map(drop)
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
pub struct Options {}

/// Makes sandboxes out of namespaces.
#[derive(Debug, Clone, Default)]
pub struct Native {}

impl Native {
    /// A driver.
    pub fn new(_options: Options) -> Native {
        Native {}
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
            freeze: true,
            user_namespaces: true,
            network_isolation: true,
            resource_limits: true,
            ..Capabilities::default()
        }
    }

    async fn create(&self, spec: Spec) -> Result<Sandbox, Error> {
        let began = Instant::now();
        check(&spec)?;
        let require = spec.require.clone();
        let limits = spec.limits.clone();
        let env = environment(&spec);
        let (process, stream) = launch::launch(spec, env.clone()).await?;
        stream.set_nonblocking(true).map_err(Error::Socket)?;
        let (reader, writer) = UnixStream::from_std(stream).map_err(Error::Socket)?.into_split();
        let mut reader: Source = Box::new(reader);
        let ready = tokio::time::timeout(START, ready(&mut reader)).await;
        let ready = match ready.map_err(|_| Error::Timeout(START.as_secs()))? {
            Err(Error::Ended) => {
                let autopsy = tokio::task::spawn_blocking(move || process.autopsy()).await;
                return Err(autopsy.unwrap_or(Error::Ended));
            }
            ready => ready?,
        };
        let (landlock_abi, notes) = match ready {
            Ready::Up { landlock_abi, notes, .. } => (landlock_abi, notes),
            Ready::Failed { step, errno, detail } => {
                return Err(Error::Build { step, detail, cause: io::Error::from_raw_os_error(errno) });
            }
        };
        let mut report = Report { notes, startup: began.elapsed(), ..Report::default() };
        let mut say = |facility, status| {
            report.facilities.insert(facility, status);
        };
        let time = if launch::has_time_namespace() { ", time" } else { "" };
        say(Facility::Namespaces, Status::Enforced(format!("user, mount, pid, net, ipc, uts, cgroup{time}")));
        say(Facility::Capabilities, Status::Enforced("none in any set, no_new_privs".to_owned()));
        say(Facility::Seccomp, Status::Enforced("installed".to_owned()));
        say(
            Facility::Landlock,
            match landlock_abi {
                0 => Status::Unavailable("this kernel has no Landlock".to_owned()),
                abi => Status::Enforced(format!("ABI {abi}")),
            },
        );
        say(Facility::DistinctUser, process.identity().status());
        process.cgroups()?.report(&limits, &mut say);
        if let (Some(limit), Some(Status::Unavailable(_))) = (limits.pids, report.facilities.get(&Facility::PidLimit))
            && rlimits_are_own()
        {
            let status = Status::Enforced(format!("{limit} processes, as a resource limit of the sandbox's user"));
            report.facilities.insert(Facility::PidLimit, status);
        }
        report.demand(&require, self.name())?;
        Ok(Sandbox::new(Box::new(process), reader, Box::new(writer), report))
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
    if let crate::Rootfs::Directory(path) = &spec.rootfs {
        directory(path)?;
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

pub(crate) fn environment(spec: &Spec) -> Vec<(String, String)> {
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

/// The setup frame for a spec; `binds` are the mounts of the places that may be written.
pub(crate) fn setup(
    spec: &Spec,
    env: Vec<(String, String)>,
    binds: Vec<palisade_cell::Bind>,
    links: Vec<(String, String)>,
    files: Vec<(String, String)>,
) -> Result<Setup, Error> {
    let mut rlimits = vec![
        // One, not zero: zero still feeds a host's dump handler when `core_pattern` is a pipe, one never does (core(5)).
        (libc::RLIMIT_CORE, 1),
        (libc::RLIMIT_MEMLOCK, 64 << 10),
        (libc::RLIMIT_MSGQUEUE, 0),
        (libc::RLIMIT_NICE, 0),
        (libc::RLIMIT_RTPRIO, 0),
    ];
    // Counted per user namespace since Linux 5.14, and thus per sandbox; before, per user of the host.
    if rlimits_are_own() {
        rlimits.extend(spec.limits.pids.map(|limit| (libc::RLIMIT_NPROC, limit)));
    }
    rlimits.extend(spec.limits.open_files.map(|limit| (libc::RLIMIT_NOFILE, limit)));
    rlimits.extend(spec.limits.file_bytes.map(|limit| (libc::RLIMIT_FSIZE, limit)));
    let mut roots = vec![("/workspace".to_owned(), true), ("/mnt/session/outputs".to_owned(), true)];
    roots.extend(spec.memory.iter().map(|mount| (format!("/mnt/memory/{}", mount.name), !mount.read_only)));
    Ok(Setup {
        version: VERSION,
        place: Place::Own,
        workdir: "/workspace".to_owned(),
        binds,
        links,
        files,
        tmp_bytes: spec.limits.tmp_bytes,
        hostname: spec.hostname.clone(),
        env,
        rlimits,
        seccomp: seccomp::filters()?.clone(),
        roots,
        landlock: true,
    })
}
