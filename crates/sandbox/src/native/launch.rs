//! From a spec to a process in namespaces of its own.
//!
//! One thread of this process makes all children: a sandbox dies with its worker because the kernel ties the child to the
//! thread that made it, and that thread lives as long as the process.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};

use async_trait::async_trait;
use palisade_cell::encode;

use super::cgroup::Cgroups;
use super::identity::{INSIDE, Identity};
use super::idmap::Idmap;
use super::root::{Root, Session, Sources};
use super::{Base, program, seccomp, setup};
use crate::sandbox::Body;
use crate::{Error, Spec, Usage};

/// A sandbox's first process, with all that belongs to it outside.
#[derive(Debug)]
pub(crate) struct Process {
    pidfd: OwnedFd,
    pid: i32,
    cgroups: Option<Cgroups>,
    identity: Identity,
    reaped: bool,
}

type Job = Box<dyn FnOnce() + Send>;

/// The thread that makes children.
fn launcher() -> &'static SyncSender<Job> {
    static LAUNCHER: OnceLock<SyncSender<Job>> = OnceLock::new();
    LAUNCHER.get_or_init(|| {
        let (sender, jobs) = sync_channel::<Job>(256);
        let thread = std::thread::Builder::new().name("launcher".to_owned()).stack_size(256 << 10);
        // Without this thread no sandbox can be made, which every caller is told by its job not being answered.
        let _ = thread.spawn(move || {
            while let Ok(job) = jobs.recv() {
                job();
            }
        });
        sender
    })
}

/// Makes a sandbox of what does not depend on the session, and returns before its cell has built it.
pub(super) async fn launch(base: Base) -> Result<(Process, UnixStream), Error> {
    tokio::task::spawn_blocking(move || start(&base)).await.map_err(|_| Error::Ended)?
}

/// Hands the sandbox to its session.
pub(super) async fn claim(process: Process, stream: UnixStream, spec: Spec) -> Result<(Process, UnixStream), Error> {
    let claimed = tokio::task::spawn_blocking(move || {
        let mut stream = stream;
        hand_over(&process, &mut stream, &spec)?;
        Ok((process, stream))
    });
    claimed.await.map_err(|_| Error::Ended)?
}

/// Both at once.
pub(super) async fn launch_for(base: Base, spec: Spec) -> Result<(Process, UnixStream), Error> {
    let made = tokio::task::spawn_blocking(move || {
        let (process, mut stream) = start(&base)?;
        hand_over(&process, &mut stream, &spec)?;
        Ok((process, stream))
    });
    made.await.map_err(|_| Error::Ended)?
}

fn start(base: &Base) -> Result<(Process, UnixStream), Error> {
    let identity = Identity::take()?;
    let program = program::cell().map_err(Error::Program)?;
    let (ours, theirs) = UnixStream::pair().map_err(Error::Socket)?;
    let theirs = high(&theirs).map_err(Error::Socket)?;
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null").map_err(Error::Socket)?;
    let null = high(&null).map_err(Error::Socket)?;
    let mut cgroups = Cgroups::birthplace()?;
    let birthplace = cgroups.descriptor()?;
    let groups = identity.own();
    // The thread that makes the child is the one whose end would end it, so it is always the same.
    let (answer, made) = sync_channel(1);
    let job: Job = Box::new(move || {
        let child = Child {
            socket: theirs.as_raw_fd(),
            null: null.as_raw_fd(),
            program: program.as_raw_fd(),
            groups,
            birthplace: birthplace.as_ref().map(AsRawFd::as_raw_fd),
        };
        let _ = answer.send(clone(&child));
    });
    launcher().send(job).map_err(|_| Error::Ended)?;
    let (pid, pidfd) = match made.recv().map_err(|_| Error::Ended)? {
        Ok(made) => made,
        Err(why) => {
            cgroups.remove();
            return Err(why);
        }
    };
    let born = cgroups.is_born();
    let mut process = Process { pidfd, pid, cgroups: None, identity, reaped: false };
    // From here on a failure drops the process, which ends it.
    let filled = cgroups.fill(&base.limits);
    process.cgroups = Some(cgroups);
    map_user(pid, &process.identity)?;
    let mut stream = ours;
    stream.write_all(&[1]).map_err(Error::Socket)?;
    filled?;
    let mut sources = process.sources()?;
    let root = Root::plan(&base.rootfs, &base.gpus, &mut sources)?;
    let frame = encode(&setup(base, root), seccomp::base()).map_err(Error::Protocol)?;
    send(&mut stream, &frame, &sources.descriptors).map_err(Error::Socket)?;
    // While the cell builds its walls.
    process.cgroups()?.add(pid, born)?;
    Ok((process, stream))
}

fn hand_over(process: &Process, stream: &mut UnixStream, spec: &Spec) -> Result<(), Error> {
    let mut sources = process.sources()?;
    let session = Session::plan(spec, &mut sources)?;
    let frame = encode(&super::claim(spec, session), seccomp::seal()).map_err(Error::Protocol)?;
    send(stream, &frame, &sources.descriptors).map_err(Error::Socket)
}

/// A descriptor above those that the child rearranges.
fn high(fd: &impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, 10)?)
}

fn map_user(pid: i32, identity: &Identity) -> Result<(), Error> {
    let write = |name: &str, content: &str| fs::write(format!("/proc/{pid}/{name}"), content).map_err(Error::UserMap);
    if !identity.own() {
        // Required of those who map their own group.
        write("setgroups", "deny")?;
    }
    let [users, groups] = identity.maps();
    write("uid_map", &users)?;
    write("gid_map", &groups)
}

/// Sends a frame with its descriptors.
fn send(stream: &mut UnixStream, frame: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = vec![std::mem::MaybeUninit::uninit(); 64 + 8 * (borrowed.len() + 8)];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other("too many mounts in one sandbox"));
    }
    let sent = sendmsg(&*stream, &[io::IoSlice::new(frame)], &mut control, SendFlags::NOSIGNAL)?;
    stream.write_all(&frame[sent..])
}

/// What the child needs, all of it made before it is.
struct Child {
    socket: RawFd,
    null: RawFd,
    program: RawFd,
    groups: bool,
    /// The control group that it is born in.
    birthplace: Option<RawFd>,
}

/// Whether this kernel has time namespaces (Linux 5.6, when configured).
pub(super) fn has_time_namespace() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| fs::symlink_metadata("/proc/self/ns/time").is_ok())
}

/// Makes the child in new namespaces.
fn clone(child: &Child) -> Result<(i32, OwnedFd), Error> {
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_PIDFD
        | if has_time_namespace() { libc::CLONE_NEWTIME } else { 0 };
    // SAFETY: arguments of zeros are valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = u64::from(flags.unsigned_abs());
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    if let Some(birthplace) = child.birthplace {
        const INTO_CGROUP: u64 = 0x2_0000_0000; // CLONE_INTO_CGROUP
        arguments.flags |= INTO_CGROUP;
        arguments.cgroup = u64::try_from(birthplace).unwrap_or(0);
    }
    // SAFETY: without CLONE_VM the child has its own copy of this memory, and the arguments live through the call. The
    // child makes nothing but system calls until it executes another program, so that no lock that another thread held
    // at this moment can matter.
    let pid = unsafe {
        let pid = libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>());
        if pid == 0 {
            become_cell(child);
        }
        pid
    };
    if pid < 0 {
        return Err(Error::Clone(io::Error::last_os_error()));
    }
    // SAFETY: the kernel has written a new descriptor that belongs to nobody else.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((i32::try_from(pid).unwrap_or(-1), pidfd))
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

// What the child's exit status says about how far it came.
const ORPHAN: i32 = 101;
const GROUPS: i32 = 102;
const USER: i32 = 103;
const EXECUTE: i32 = 104;

/// The child's side: waits for its user, keeps the capabilities over the execution of the cell, and executes it.
///
/// # Safety
/// To be called in a child that shares no memory with its parent. Makes system calls only: no allocation, no locks.
unsafe fn become_cell(child: &Child) -> ! {
    let id = libc::c_long::from(INSIDE);
    let argv: [*const libc::c_char; 2] = [c"palisade-cell".as_ptr(), std::ptr::null()];
    let envp: [*const libc::c_char; 1] = [std::ptr::null()];
    let mut word = 0u8;
    // SAFETY: every pointer is to a local or static that lives through its call; the rest are numbers. Raw system calls
    // are used where the C library would talk to threads that are not there.
    unsafe {
        // The parent says when the user is mapped; if it dies first, so does this.
        libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        if libc::syscall(libc::SYS_read, child.socket, &raw mut word, 1) != 1 {
            libc::syscall(libc::SYS_exit_group, ORPHAN);
        }
        libc::syscall(libc::SYS_setsid);
        if child.groups && libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) != 0 {
            libc::syscall(libc::SYS_exit_group, GROUPS);
        }
        if libc::syscall(libc::SYS_setresgid, id, id, id) != 0 || libc::syscall(libc::SYS_setresuid, id, id, id) != 0 {
            libc::syscall(libc::SYS_exit_group, USER);
        }
        // Another program keeps capabilities of a user that is not root only when they are ambient.
        let header = CapHeader { version: 0x2008_0522, pid: 0 };
        let mut sets = [0u32; 6];
        libc::syscall(libc::SYS_capget, &raw const header, sets.as_mut_ptr());
        sets[2] = sets[1];
        sets[5] = sets[4];
        libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr());
        let mut capability = 0;
        while capability < 64 {
            libc::syscall(libc::SYS_prctl, libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, capability, 0, 0);
            capability += 1;
        }
        for fd in 0..3 {
            libc::syscall(libc::SYS_dup3, child.null, fd, 0);
        }
        libc::syscall(libc::SYS_dup3, child.socket, 3, 0);
        // A change of credentials clears it.
        libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        libc::syscall(
            libc::SYS_execveat,
            child.program,
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
        libc::syscall(libc::SYS_exit_group, EXECUTE);
    }
    // The call above does not return.
    loop {
        std::hint::spin_loop();
    }
}

impl Process {
    /// Where its mounts come from.
    fn sources(&self) -> Result<Sources<'_>, Error> {
        let idmap = self.identity.own().then(|| Idmap::of(&self.identity, self.pid)).transpose()?;
        Ok(Sources::new(idmap))
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its control groups, which it has until it is buried.
    pub(crate) fn cgroups(&self) -> Result<&Cgroups, Error> {
        self.cgroups.as_ref().ok_or(Error::Ended)
    }

    fn kill(&self) {
        let signal = rustix::process::Signal::KILL;
        // Gone already is what is wanted.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, signal);
    }

    /// Why there was no word from a cell. Blocks until the process is gone.
    pub(super) fn autopsy(mut self) -> Error {
        let step = match self.bury() {
            Some(GROUPS) => "giving up the worker's groups",
            Some(USER) => "becoming the sandbox's user",
            Some(EXECUTE) => "executing the cell's program",
            _ => return Error::Ended,
        };
        let cause = io::Error::other("refused by the system; see `palisade doctor` for what this machine allows");
        Error::Build { step: step.to_owned(), detail: "before the cell".to_owned(), cause }
    }

    /// Ends it, once; its exit status, if it had ended by itself.
    fn bury(&mut self) -> Option<i32> {
        if std::mem::replace(&mut self.reaped, true) {
            return None;
        }
        self.kill();
        // A frozen process does not die before it goes on.
        if let Some(cgroups) = self.cgroups.as_ref().filter(|cgroups| cgroups.can_freeze()) {
            let _ = cgroups.thaw();
        }
        let options = rustix::process::WaitIdOptions::EXITED;
        let status = rustix::process::waitid(rustix::process::WaitId::PidFd(self.pidfd.as_fd()), options);
        if let Some(cgroups) = self.cgroups.take() {
            cgroups.remove();
        }
        status.ok().flatten().and_then(|status| status.exit_status())
    }
}

#[async_trait]
impl Body for Process {
    fn pid(&self) -> Option<i32> {
        Some(self.pid)
    }

    async fn freeze(&self) -> Result<(), Error> {
        self.cgroups()?.freeze()
    }

    async fn thaw(&self) -> Result<(), Error> {
        self.cgroups()?.thaw()
    }

    async fn usage(&self) -> Result<Usage, Error> {
        Ok(self.cgroups()?.usage())
    }

    async fn end(mut self: Box<Self>) -> Result<(), Error> {
        tokio::task::spawn_blocking(move || _ = self.bury()).await.map_err(|_| Error::Ended)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.bury();
    }
}
