//! From a fresh set of namespaces to a sealed sandbox, one step after the other.
//!
//! The worker has made the namespaces, mapped the user and executed this program with the capabilities that it needs to
//! build its own walls. Each step that fails is named; nothing is served unless all have succeeded.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use palisade_cell::{Bind, Setup, Source};

use crate::sys::{self, check};
use crate::{landlock, seal};

/// Where the new root is built: a directory that every system has.
const STAGE: &str = "/tmp";

/// A step that failed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) step: &'static str,
    pub(crate) detail: String,
    pub(crate) cause: io::Error,
}

pub(crate) trait Step<T> {
    fn step(self, step: &'static str, detail: impl Into<String>) -> Result<T, Failed>;
}

impl<T> Step<T> for io::Result<T> {
    fn step(self, step: &'static str, detail: impl Into<String>) -> Result<T, Failed> {
        self.map_err(|cause| Failed { step, detail: detail.into(), cause })
    }
}

/// What the sandbox has and lacks.
#[derive(Debug, Default)]
pub(crate) struct Built {
    pub(crate) landlock_abi: i32,
    pub(crate) seccomp: bool,
    pub(crate) filtered: bool,
    pub(crate) notes: Vec<String>,
}

/// Builds the sandbox around this process.
pub(crate) fn build(setup: &Setup, descriptors: Vec<OwnedFd>) -> Result<Built, Failed> {
    let mut built = Built::default();
    sys::mount(c"none", c"/", None, libc::MS_SLAVE | libc::MS_REC, None).step("mount propagation", "/")?;
    // Sources are taken before the stage hides what it covers.
    let sources = open_sources(setup, descriptors)?;
    tmpfs(STAGE, "mode=755,size=4m", libc::MS_NOSUID | libc::MS_NODEV).step("root tmpfs", STAGE)?;
    for (bind, source) in setup.binds.iter().zip(sources) {
        let Some(source) = source else { continue };
        attach(bind, &source).step("bind mount", &bind.target)?;
    }
    for (name, target) in &setup.links {
        let at = format!("{STAGE}{name}");
        make_parent(&at).step("root links", name)?;
        std::os::unix::fs::symlink(target, &at).step("root links", name)?;
    }
    for (name, content) in &setup.files {
        let at = format!("{STAGE}{name}");
        make_parent(&at).step("root files", name)?;
        fs::write(&at, content).step("root files", name)?;
    }
    writable_places(setup).step("temporary directories", "tmp, home, run")?;
    devices(&mut built)?;
    proc()?;
    pivot()?;
    hostname(&setup.hostname).step("host name", &setup.hostname)?;
    loopback().step("loopback", "lo")?;
    limits(&setup.rlimits).step("resource limits", "setrlimit")?;
    chdir(&setup.workdir).step("working directory", &setup.workdir)?;
    seal::drop_privileges(true)?;
    if setup.landlock {
        built.landlock_abi = landlock::restrict(&setup.roots).step("landlock", "restrict_self")?;
    }
    seal::install_filters(&setup.seccomp)?;
    built.seccomp = true;
    Ok(built)
}

fn open_sources(setup: &Setup, descriptors: Vec<OwnedFd>) -> Result<Vec<Option<OwnedFd>>, Failed> {
    let mut descriptors: Vec<Option<OwnedFd>> = descriptors.into_iter().map(Some).collect();
    let mut sources = Vec::with_capacity(setup.binds.len());
    for bind in &setup.binds {
        let source = match &bind.source {
            Source::Path(source) => {
                let path = sys::path(source).step("open mount source", source)?;
                match sys::open_tree(&path) {
                    Ok(fd) => Some(fd),
                    Err(why) if bind.optional && why.raw_os_error() == Some(libc::ENOENT) => None,
                    Err(cause) => return Err(Failed { step: "open mount source", detail: source.clone(), cause }),
                }
            }
            Source::Descriptor(index) => {
                let taken = descriptors.get_mut(*index).and_then(Option::take);
                let missing = || io::Error::from_raw_os_error(libc::EBADF);
                Some(taken.ok_or_else(missing).step("open mount source", &bind.target)?)
            }
        };
        sources.push(source);
    }
    Ok(sources)
}

fn attach(bind: &Bind, source: &OwnedFd) -> io::Result<()> {
    let mut flags = libc::MOUNT_ATTR_NOSUID;
    if !bind.writable {
        flags |= libc::MOUNT_ATTR_RDONLY;
    }
    if !bind.devices {
        flags |= libc::MOUNT_ATTR_NODEV;
    }
    sys::mount_setattr(source.as_raw_fd(), c"", libc::AT_EMPTY_PATH | libc::AT_RECURSIVE, flags)?;
    let target = format!("{STAGE}{}", bind.target);
    if bind.directory {
        fs::create_dir_all(&target)?;
    } else {
        make_parent(&target)?;
        drop(fs::OpenOptions::new().create(true).append(true).open(&target)?);
    }
    sys::move_mount(source, &sys::path(&target)?)
}

fn make_parent(at: &str) -> io::Result<()> {
    match at.rsplit_once('/') {
        Some((parent, _)) if !parent.is_empty() => fs::create_dir_all(parent),
        _ => Ok(()),
    }
}

fn tmpfs(at: &str, options: &str, flags: libc::c_ulong) -> io::Result<()> {
    sys::mount(c"tmpfs", &sys::path(at)?, Some(c"tmpfs"), flags, Some(&sys::path(options)?))
}

fn writable_places(setup: &Setup) -> io::Result<()> {
    let size = setup.tmp_bytes;
    // Empty files take kernel memory too.
    let inodes = (size >> 12).max(1024);
    for (name, options) in [
        ("/tmp", format!("mode=1777,size={size},nr_inodes={inodes}")),
        ("/home/agent", format!("mode=700,size={size},nr_inodes={inodes}")),
        ("/run", "mode=755,size=16m,nr_inodes=4096".to_owned()),
    ] {
        let at = format!("{STAGE}{name}");
        fs::create_dir_all(&at)?;
        tmpfs(&at, &options, libc::MS_NOSUID | libc::MS_NODEV)?;
    }
    fs::create_dir_all(format!("{STAGE}/mnt/memory"))?;
    Ok(())
}

/// A minimal `/dev`. The nodes themselves come from the host by bind mounts, as a user namespace cannot make any.
fn devices(built: &mut Built) -> Result<(), Failed> {
    let dev = format!("{STAGE}/dev");
    for (link, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        std::os::unix::fs::symlink(target, format!("{dev}/{link}")).step("device links", link)?;
    }
    let shm = format!("{dev}/shm");
    fs::create_dir_all(&shm).step("shared memory", &shm)?;
    tmpfs(&shm, "mode=1777,size=64m,nr_inodes=16384", libc::MS_NOSUID | libc::MS_NODEV).step("shared memory", &shm)?;
    let pts = format!("{dev}/pts");
    fs::create_dir_all(&pts).step("pseudo-terminals", &pts)?;
    let mounted = sys::mount(
        c"devpts",
        &sys::path(&pts).step("pseudo-terminals", &pts)?,
        Some(c"devpts"),
        libc::MS_NOSUID | libc::MS_NOEXEC,
        Some(c"newinstance,ptmxmode=0666,mode=620"),
    );
    if let Err(why) = mounted {
        built.notes.push(format!("no pseudo-terminals: {why}"));
    }
    Ok(())
}

/// A process file system of this namespace only, with what tells of the host masked.
fn proc() -> Result<(), Failed> {
    let at = format!("{STAGE}/proc");
    fs::create_dir_all(&at).step("proc", &at)?;
    let target = sys::path(&at).step("proc", &at)?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    sys::mount(c"proc", &target, Some(c"proc"), flags, Some(c"hidepid=invisible"))
        .or_else(|_| sys::mount(c"proc", &target, Some(c"proc"), flags, Some(c"hidepid=2")))
        .step("proc", &at)?;
    // A second lock on the door that the filters close: no user namespace below this one. Kernels that do not let its own
    // root set it leave the filters.
    let _ = fs::write(format!("{at}/sys/user/max_user_namespaces"), "0");
    for name in ["bus", "fs", "irq", "sys", "sysrq-trigger"] {
        let path = sys::path(&format!("{at}/{name}")).step("read-only proc", name)?;
        if let Ok(tree) = sys::open_tree(&path) {
            sys::mount_setattr(tree.as_raw_fd(), c"", libc::AT_EMPTY_PATH, libc::MOUNT_ATTR_RDONLY)
                .step("read-only proc", name)?;
            sys::move_mount(&tree, &path).step("read-only proc", name)?;
        }
    }
    let null = sys::path(&format!("{STAGE}/dev/null")).step("masked proc", "null")?;
    for name in [
        "kcore",
        "keys",
        "key-users",
        "kmsg",
        "kallsyms",
        "timer_list",
        "sched_debug",
        "latency_stats",
        "kpagecount",
        "kpageflags",
        "kpagecgroup",
        "vmallocinfo",
        "slabinfo",
        "iomem",
        "ioports",
        "modules",
        "config.gz",
        "pressure",
        "interrupts",
        "timer_stats",
    ] {
        let text = format!("{at}/{name}");
        let Ok(kind) = fs::symlink_metadata(&text) else { continue };
        let path = sys::path(&text).step("masked proc", name)?;
        if kind.is_dir() {
            tmpfs(&text, "mode=000,size=4k", libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV)
                .step("masked proc", name)?;
        } else {
            sys::mount(&null, &path, None, libc::MS_BIND, None).step("masked proc", name)?;
        }
    }
    for name in ["acpi", "scsi", "asound", "driver", "device-tree"] {
        let text = format!("{at}/{name}");
        if fs::symlink_metadata(&text).is_ok_and(|kind| kind.is_dir()) {
            tmpfs(&text, "mode=000,size=4k", libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV)
                .step("masked proc", name)?;
        }
    }
    Ok(())
}

/// Makes the stage the root and lets go of the host's.
fn pivot() -> Result<(), Failed> {
    chdir(STAGE).step("pivot root", STAGE)?;
    // SAFETY: both arguments are C strings; with the same directory twice the old root lands on top of the new one.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) }).step("pivot root", STAGE)?;
    // SAFETY: the path is a C string.
    check(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) }.into()).step("detach host root", ".")?;
    chdir("/").step("detach host root", "/")?;
    sys::mount_setattr(libc::AT_FDCWD, c"/", 0, libc::MOUNT_ATTR_RDONLY).step("read-only root", "/")?;
    sys::mount_setattr(libc::AT_FDCWD, c"/dev", 0, libc::MOUNT_ATTR_RDONLY)
        .or_else(|why| {
            // Without a mount of its own `/dev` is part of the root, which is read-only already.
            if why.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(why) }
        })
        .step("read-only dev", "/dev")
}

#[expect(clippy::disallowed_methods, reason = "there is no other thread yet")]
pub(crate) fn chdir(to: &str) -> io::Result<()> {
    std::env::set_current_dir(to)
}

fn hostname(name: &str) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of one string.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }.into()).map(drop)
}

fn loopback() -> io::Result<()> {
    // SAFETY: no pointers.
    let socket = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }.into())?;
    let socket = RawFd::try_from(socket).unwrap_or(-1);
    // SAFETY: a request of zeros is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request lives through the call and has the form that this operation wants.
    let done = check(unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS as _, &raw mut request) }.into());
    // SAFETY: the descriptor was made above and is not used again.
    unsafe { libc::close(socket) };
    done.map(drop)
}

pub(crate) fn limits(limits: &[(u32, u64)]) -> io::Result<()> {
    for &(resource, wanted) in limits {
        let mut now = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the structure lives through the call.
        check(unsafe { libc::getrlimit64(resource as _, &raw mut now) }.into())?;
        // Never raised: an unprivileged process may not, and the host's own limit stands.
        let limit = wanted.min(now.rlim_max);
        let limit = libc::rlimit64 { rlim_cur: limit, rlim_max: limit };
        // SAFETY: as above.
        check(unsafe { libc::setrlimit64(resource as _, &raw const limit) }.into())?;
    }
    Ok(())
}
