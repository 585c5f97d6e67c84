//! Invocations of the runtime's program.

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::ptr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::bundle::{Bundle, Outer};
use crate::Error;
use crate::native::Cgroups;

/// Which runtime it is, as far as that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// runc, or one that takes the same arguments.
    Runc,
    /// crun, which can leave control groups alone.
    Crun,
    /// gVisor, which imitates Linux.
    Gvisor,
}

/// How long a runtime may take to notice that its container has ended, or to remove it.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// How long it may take to write a container's memory to disk, or to read it: what a session may hold, on a slow disk.
pub(super) const IMAGES: Duration = Duration::from_secs(600);

/// A runtime with its own state below a driver's directory.
#[derive(Debug, Clone)]
pub(super) struct Runtime {
    program: PathBuf,
    pub(super) name: String,
    pub(super) kind: Kind,
    /// What it says of its version, in one line.
    pub(super) version: String,
    state: PathBuf,
    arguments: Vec<String>,
}

impl Runtime {
    /// A runtime by its name or path, without a directory for its state.
    pub(super) fn find(program: &Path, arguments: Vec<String>) -> Result<Runtime, Error> {
        let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
        let kind = if name.contains("runsc") {
            Kind::Gvisor
        } else if name.contains("crun") {
            Kind::Crun
        } else {
            Kind::Runc
        };
        let state = PathBuf::new();
        let (program, version) = (program.to_owned(), String::new());
        let runtime = Runtime { program, name, kind, version, state, arguments };
        let asked = runtime.command().arg("--version").output();
        match asked {
            Ok(said) if said.status.success() => {
                Ok(Runtime { version: tidy(&String::from_utf8_lossy(&said.stdout)), ..runtime })
            }
            Ok(said) => Err(runtime.refused("--version", &said)),
            Err(cause) => Err(Error::NoRuntime { runtime: runtime.program.display().to_string(), cause }),
        }
    }

    /// The same with a directory for its state.
    pub(super) fn at(self, state: PathBuf) -> Runtime {
        Runtime { state, ..self }
    }

    /// What a later process needs to clean up after this one: a line each.
    pub(super) fn record(&self) -> String {
        let mut lines = vec![self.program.display().to_string()];
        lines.extend(self.arguments.iter().cloned());
        lines.join("\n")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().stdin(Stdio::null());
        // The worker's variables are nobody else's business; the runtime's own helpers are found by this one.
        command
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/sbin:/usr/bin:/sbin:/bin")));
        command.process_group(0);
        let hides = self.kind == Kind::Crun && hybrid();
        let enter = move || if hides { hide_unified() } else { Ok(()) };
        // SAFETY: system calls on constants only.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// The command with what comes before its verb.
    fn verb(&self, verb: &str) -> Command {
        let mut command = self.command();
        command.arg("--root").arg(&self.state);
        match self.kind {
            Kind::Runc => {}
            Kind::Crun => _ = command.arg("--cgroup-manager=disabled"),
            Kind::Gvisor => _ = command.args(["--ignore-cgroups", "--network=none"]),
        }
        command.args(&self.arguments).arg(verb);
        command
    }

    fn refused(&self, step: &'static str, said: &Output) -> Error {
        let text = [said.stderr.as_slice(), &said.stdout].concat();
        Error::Runtime { runtime: self.name.clone(), step, said: tidy(&String::from_utf8_lossy(&text)) }
    }

    /// Starts a container in the foreground: what is returned ends with it, and talks to its first process. With an image it
    /// has the processes that [`Runtime::checkpoint`] has written there.
    pub(super) fn run(
        &self,
        id: &str,
        bundle: &mut Bundle,
        cgroups: &Cgroups,
        image: Option<&Path>,
    ) -> Result<Child, Error> {
        let said = bundle.said();
        let errors = File::create_new(&said).map_err(|cause| Error::Scratch { path: said, cause })?;
        let verb = start(image);
        let mut command = self.verb(verb);
        if let Some(image) = image {
            command.arg("--image-path").arg(image);
        }
        command.arg("--pid-file").arg(bundle.pid_file()).arg("--bundle").arg(&bundle.path).arg(id);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let doors = if self.waits_inside() { cgroups.doors()? } else { Vec::new() };
        let outer = std::mem::take(&mut bundle.outer);
        let places = crate::disk::sized_places();
        let disks: Vec<_> = places.iter().filter_map(|at| CString::new(at.as_os_str().as_bytes()).ok()).collect();
        let way = Way::to(&self.state)?;
        let enter = move || {
            for door in &doors {
                rustix::io::write(door, b"0")?;
            }
            outside(way.as_ref(), &outer, &disks)
        };
        // SAFETY: system calls on what was prepared before; nothing is allocated and no lock is taken.
        unsafe { command.pre_exec(enter) };
        command.spawn().map_err(|cause| Error::Runtime {
            runtime: self.name.clone(),
            step: verb,
            said: format!("the control groups, the workspace or the layers could not be set up for it: {cause}"),
        })
    }

    /// Writes a container's processes to an empty directory; they have ended then.
    pub(super) fn checkpoint(&self, id: &str, to: &Path) -> Result<(), Error> {
        let mut command = self.verb("checkpoint");
        self.output(command.arg("--image-path").arg(to).arg(id), "checkpoint", IMAGES)
    }

    /// Runs a command to its end, which may not come.
    fn output(&self, command: &mut Command, step: &'static str, patience: Duration) -> Result<(), Error> {
        let wrong = |cause| Error::NoRuntime { runtime: self.program.display().to_string(), cause };
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(wrong)?;
        let late = Instant::now() + patience;
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < late {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        let _ = child.kill();
        let said = child.wait_with_output().map_err(wrong)?;
        if said.status.success() { Ok(()) } else { Err(self.refused(step, &said)) }
    }

    /// Whether what waits for the container may count as part of it. The one of runc is larger than many a sandbox.
    pub(super) fn waits_inside(&self) -> bool {
        self.kind != Kind::Runc
    }

    /// Removes what is left of a container, running or not.
    pub(super) fn delete(&self, id: &str) -> Result<(), Error> {
        if !self.knows(id) {
            return Ok(());
        }
        // It waits for whatever else has to do with the container, and that may be stuck.
        let done = self.output(self.verb("delete").args(["--force", id]), "delete", PATIENCE);
        if self.knows(id) { done } else { Ok(()) }
    }

    /// Whether there is state of a container.
    fn knows(&self, id: &str) -> bool {
        let entries = fs::read_dir(&self.state).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| {
            let name = entry.file_name();
            let rest = name.to_str().and_then(|name| name.strip_prefix(id));
            // gVisor puts more behind the name.
            rest.is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()) && !rest.ends_with(".lock"))
        })
    }

    /// Why a container did not start.
    pub(super) fn autopsy(&self, bundle: &Bundle, step: &'static str) -> Error {
        let said = fs::read_to_string(bundle.said()).unwrap_or_default();
        Error::Runtime { runtime: self.name.clone(), step, said: tidy(&said) }
    }
}

/// The verb by which a container is started.
pub(super) fn start(image: Option<&Path>) -> &'static str {
    if image.is_some() { "restore" } else { "run" }
}

/// What a program said, in one line of a bearable length.
fn tidy(said: &str) -> String {
    let line = said.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(600) {
        Some((end, _)) => format!("{} …", &line[..end]),
        None if line.is_empty() => "it ended and said nothing".to_owned(),
        None => line,
    }
}

/// Whether version 1 control groups have a version 2 hierarchy beside them, which crun takes for a reason to refuse.
fn hybrid() -> bool {
    static HYBRID: OnceLock<bool> = OnceLock::new();
    *HYBRID.get_or_init(|| {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        mounts.lines().any(|line| line.split(' ').nth(4) == Some("/sys/fs/cgroup/unified"))
    })
}

/// A way to the driver's directory for a runtime that looks for it as the sandbox's user, where others may not pass. State
/// directories are closed to them.
#[derive(Debug)]
struct Way {
    /// The first directory that is closed: in the runtime's own mounts something open lies on it.
    closed: CString,
    /// Those that are made on that, one below the other. The last is the driver's.
    below: Vec<CString>,
}

impl Way {
    /// To the directory that this one is in. None where everybody can pass.
    fn to(state: &Path) -> Result<Option<Way>, Error> {
        let wrong = |path: &Path, cause: io::Error| Error::Scratch { path: path.to_owned(), cause };
        let text = |path: &Path| {
            CString::new(path.as_os_str().as_bytes()).map_err(|_| wrong(path, io::ErrorKind::InvalidInput.into()))
        };
        // As the kernel walks it, whatever links are on the way.
        let state = fs::canonicalize(state).map_err(|cause| wrong(state, cause))?;
        let mut from_the_root: Vec<&Path> = state.ancestors().skip(1).collect();
        from_the_root.reverse();
        for (at, path) in from_the_root.iter().enumerate() {
            let mode = fs::metadata(path).map_err(|cause| wrong(path, cause))?.mode();
            if mode & 0o001 == 0 {
                let below = from_the_root[at + 1..].iter().map(|path| text(path)).collect::<Result<_, _>>()?;
                return Ok(Some(Way { closed: text(path)?, below }));
            }
        }
        Ok(None)
    }

    /// Lays it, in the mount namespace of the caller.
    fn open(&self) -> io::Result<()> {
        let Some(driver) = self.below.last() else { return Err(io::ErrorKind::InvalidInput.into()) };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let tree = open_tree(CWD, driver.as_c_str(), flags)?;
        let (kind, locked) = (c"tmpfs".as_ptr(), libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC);
        let options = c"mode=711,size=64k,nr_inodes=64".as_ptr().cast();
        // SAFETY: all pointers are to C strings that live through the call.
        check(unsafe { libc::mount(kind, self.closed.as_ptr(), kind, locked, options) }.into())?;
        for directory in &self.below {
            // Whatever the worker's mask is.
            // SAFETY: the path is a C string.
            check(unsafe { libc::mkdir(directory.as_ptr(), 0o711) }.into())?;
            // SAFETY: the path is a C string.
            check(unsafe { libc::chmod(directory.as_ptr(), 0o711) }.into())?;
        }
        move_mount(&tree, c"", CWD, driver.as_c_str(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        Ok(())
    }
}

/// Makes the mounts that nobody else is to see, in a mount namespace of the caller's own. What it needs of sessions' disks it has
/// mounts of; those that everybody sees go when they are closed, and not only with this container.
fn outside(way: Option<&Way>, mounts: &[Outer], disks: &[CString]) -> io::Result<()> {
    private()?;
    way.map_or(Ok(()), Way::open)?;
    for disk in disks {
        // One that is gone already is what is wanted.
        // SAFETY: the path is a C string.
        unsafe { libc::umount2(disk.as_ptr(), libc::MNT_DETACH) };
    }
    for mount in mounts {
        match mount {
            Outer::Attach { tree, target } => {
                move_mount(tree, c"", CWD, target.as_c_str(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
            }
            Outer::Overlay { target, flags, options, user } => {
                let kind = c"overlay".as_ptr();
                let mount = || {
                    // SAFETY: all pointers are to C strings that live through the call.
                    check(unsafe { libc::mount(kind, target.as_ptr(), kind, *flags, options.as_ptr().cast()) }.into())
                };
                as_user(*user, mount)?;
            }
        }
    }
    Ok(())
}

/// Does something as another user for the file system, with all of root's privileges: whoever mounts layers is whom the kernel
/// takes for the maker of what it puts beside them, and root of the host is nobody on mounts that translate owners.
fn as_user(user: u32, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    const KEEP: libc::c_ulong = 1 << 2; // SECBIT_NO_SETUID_FIXUP (linux/securebits.h)
    let become_user = |id: u32| {
        // SAFETY: no pointers; raw, as the library's own may talk to threads that are not there.
        unsafe {
            libc::syscall(libc::SYS_setfsgid, id);
            libc::syscall(libc::SYS_setfsuid, id);
        }
    };
    // SAFETY: no pointers.
    let before = unsafe { libc::prctl(libc::PR_GET_SECUREBITS, 0, 0, 0, 0) };
    let before = libc::c_ulong::try_from(before).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, before | KEEP, 0, 0, 0) }.into())?;
    become_user(user);
    let done = act();
    become_user(0);
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, before, 0, 0, 0) }.into())?;
    done
}

fn check(value: libc::c_long) -> io::Result<()> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A mount namespace that hears of the host's mounts and tells it nothing.
fn private() -> io::Result<()> {
    // SAFETY: no pointers.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let flags = libc::MS_REC | libc::MS_SLAVE;
    // SAFETY: both texts are C strings; the other pointers may be null for a change of propagation.
    match unsafe { libc::mount(c"none".as_ptr(), c"/".as_ptr(), ptr::null(), flags, ptr::null()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn hide_unified() -> io::Result<()> {
    private()?;
    // SAFETY: the path is a C string.
    match unsafe { libc::umount2(c"/sys/fs/cgroup/unified".as_ptr(), libc::MNT_DETACH) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
