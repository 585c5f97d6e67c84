//! Where cells are born: a process with one thread that the worker starts once, and that makes a copy of itself, in
//! namespaces of its own, for each sandbox. A sandbox is thus spared the start of a program and has no memory of the worker.
//!
//! Architecture invariant: a nursery holds nothing of any session, and no sandbox can reach it: its sockets are closed in
//! the copy before anything else happens there, and it is in no sandbox's process namespace. Cells are the worker's own
//! children: they outlive their nursery, and end with the worker.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use palisade_cell::egress::{self, Sockets};
use palisade_cell::{BIRTH, BIRTH_IN_GROUP, BIRTH_WITH_GROUPS, Nursery, Ready, VERSION, encode, write_frame};

use crate::sys::{self, check, prctl};
use crate::walls::{self, Failed, Step};
use crate::{SENSELESS, SOCKET, receive, shell, take_over_streams, tell};

/// The user inside.
const INSIDE: libc::uid_t = 1000;

/// Serves births until the worker closes the socket. Returns in each new cell, with its socket.
pub(crate) fn run() -> Result<File, ExitCode> {
    let Ok(socket) = prepare() else { return Err(ExitCode::from(SENSELESS)) };
    let senseless = |_| ExitCode::from(SENSELESS);
    let (wanted, _, descriptors) = receive::<Nursery>(&socket).map_err(senseless)?;
    if wanted.version != VERSION {
        return Err(ExitCode::from(SENSELESS));
    }
    if let Some(root) = &wanted.root {
        tell(&socket, walls::template(root, descriptors))?;
    }
    write_frame(&mut &socket, &Ready::Built { notes: Vec::new() }, &[]).map_err(|_| ExitCode::FAILURE)?;
    let egress = wanted.egress;
    drop(wanted);
    let thread = thread_id();
    let mut ahead = None;
    loop {
        // While nobody waits: the network takes longer to make than all else of a cell together. A cell that is born in it
        // has no power over it, as it belongs to the nursery's user namespace.
        ahead = ahead.or_else(|| unshare(egress));
        let (mut asked, mut descriptors) = ([0], Vec::new());
        match sys::receive(socket.as_raw_fd(), &mut asked, &mut descriptors) {
            Ok(1) => {}
            Err(why) if why.kind() == io::ErrorKind::Interrupted => continue,
            // The worker has closed its end or is gone.
            _ => return Err(ExitCode::SUCCESS),
        }
        let asked = asked[0];
        let mut descriptors = descriptors.into_iter();
        let (Some(own), true) = (descriptors.next(), asked & BIRTH != 0) else {
            return Err(ExitCode::from(SENSELESS));
        };
        let group = descriptors.next().filter(|_| asked & BIRTH_IN_GROUP != 0);
        let (answer, pidfd) = match clone(group.as_ref(), thread, ahead.is_some()) {
            Ok(Some((pid, pidfd))) => {
                // The first that is heard of the cell, which does not say anything yet. Whoever does not listen is gone.
                if let Some(Ahead(Some(sockets))) = ahead.take() {
                    let _ = hand_out(&own, sockets);
                }
                (pid, vec![pidfd])
            }
            Err(why) => (-why.raw_os_error().unwrap_or(libc::EIO), Vec::new()),
            Ok(None) => {
                // From here on nothing of the nursery is open here.
                let network = if ahead.is_some() { Network::There } else { Network::Missing { egress } };
                std::mem::forget((socket, group, ahead));
                return born(own, asked & BIRTH_WITH_GROUPS != 0, network);
            }
        };
        if sys::send(&socket, &answer.to_le_bytes(), &pidfd).is_err() {
            return Err(ExitCode::SUCCESS);
        }
    }
}

/// Becomes a process that knows nothing of the worker; returns its socket.
fn prepare() -> io::Result<File> {
    // The worker's end also tells by closing, so it does not matter if it has ended before this.
    prctl(libc::PR_SET_PDEATHSIG, [libc::SIGKILL as libc::c_ulong, 0, 0, 0])?;
    let [socket] = take_over_streams()?;
    // What is made here is for the users of sandboxes, whatever the worker keeps to itself.
    // SAFETY: no pointers, and no failure.
    unsafe { libc::umask(0o022) };
    // SAFETY: no pointers.
    if unsafe { libc::geteuid() } == 0 {
        // Without root the worker could then not map the users of cells.
        prctl(libc::PR_SET_DUMPABLE, [0, 0, 0, 0])?;
    }
    prctl(libc::PR_SET_NAME, [c"palisade-cell".as_ptr() as libc::c_ulong, 0, 0, 0])?;
    Ok(socket)
}

/// Where the C library keeps the number of this thread: in the copy it must be the copy's. Kernels that do not say so
/// leave a number that nothing here looks at.
fn thread_id() -> u64 {
    const GET_TID_ADDRESS: libc::c_int = 40; // PR_GET_TID_ADDRESS
    let mut address = 0u64;
    // SAFETY: the kernel writes one pointer, for which there is room.
    let known = unsafe { libc::prctl(GET_TID_ADDRESS, &raw mut address) };
    if known == 0 { address } else { 0 }
}

/// Namespaces that a cell can be born in rather than make.
const AHEAD: libc::c_int = libc::CLONE_NEWNET | libc::CLONE_NEWIPC;

/// The namespaces that the next cell will have are made, and where its network leads to, if anywhere.
struct Ahead(Option<Sockets>);

/// What a new cell knows of its network.
enum Network {
    /// It was made before.
    There,
    /// It is the cell's to make.
    Missing { egress: bool },
}

/// Moves this process into the namespaces that the next cell will have. Without root it cannot, and the cell makes them.
fn unshare(egress: bool) -> Option<Ahead> {
    // SAFETY: no pointers.
    let alone = unsafe { libc::geteuid() == 0 && libc::unshare(AHEAD) == 0 };
    if !alone || egress::up().is_err() {
        return None;
    }
    // What fails here fails again in the cell, which says so.
    if egress { egress::lead().ok().map(|sockets| Ahead(Some(sockets))) } else { Some(Ahead(None)) }
}

/// Gives the worker the sockets to which a cell's network leads; nobody else keeps them.
fn hand_out(to: &impl AsRawFd, sockets: Sockets) -> io::Result<()> {
    sys::send(to, &encode(&Ready::Led, &[])?, &sockets.into_array())
}

/// Makes a copy of this process in new namespaces, as a child of the worker. None in the copy.
fn clone(group: Option<&OwnedFd>, thread: u64, ahead: bool) -> io::Result<Option<(i32, OwnedFd)>> {
    const INTO_CGROUP: u64 = 0x2_0000_0000; // CLONE_INTO_CGROUP
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWUTS
        | libc::CLONE_PARENT
        | libc::CLONE_PIDFD
        | if ahead { 0 } else { AHEAD }
        | if thread != 0 { libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID } else { 0 };
    // SAFETY: arguments of zeros are valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = u64::from(flags.unsigned_abs());
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.child_tid = thread;
    if let Some(group) = group {
        arguments.flags |= INTO_CGROUP;
        arguments.cgroup = u64::try_from(group.as_raw_fd()).unwrap_or(0);
    }
    let time = u64::from(libc::CLONE_NEWTIME.unsigned_abs());
    let mut pid = -1;
    // Kernels before 5.6, or built without them, have no time namespaces.
    for time in [time, 0] {
        arguments.flags = arguments.flags & !u64::from(libc::CLONE_NEWTIME.unsigned_abs()) | time;
        // SAFETY: this process has one thread, so its copy is whole; without CLONE_VM each has its own memory. The
        // arguments live through the call, and the thread's number is where the C library has it.
        pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) };
        if pid >= 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL) {
            break;
        }
    }
    match check(pid)? {
        0 => Ok(None),
        // SAFETY: the kernel has written a new descriptor that belongs to nobody else.
        pid => Ok(Some((i32::try_from(pid).unwrap_or(-1), unsafe { OwnedFd::from_raw_fd(pidfd) }))),
    }
}

/// The cell's first moments: it lets go of all that was the nursery's, and becomes its user once that is mapped.
fn born(own: OwnedFd, groups: bool, network: Network) -> Result<File, ExitCode> {
    // The parent says when the user is mapped; if it dies first, so does this.
    if take_over(own).is_err() {
        return Err(ExitCode::from(SENSELESS));
    }
    // SAFETY: the descriptor was just put there and belongs to nobody else.
    let mut socket = unsafe { File::from_raw_fd(SOCKET) };
    if let Network::Missing { egress } = network {
        let up = egress::up().step("loopback", "lo");
        tell(&socket, up)?;
        if egress {
            let led = egress::lead().map_err(|failed| Failed {
                step: "egress network",
                detail: failed.step.to_owned(),
                cause: failed.cause,
            });
            let sockets = tell(&socket, led)?;
            hand_out(&socket, sockets).map_err(|_| ExitCode::FAILURE)?;
        }
    }
    let mut word = [0];
    if io::Read::read_exact(&mut socket, &mut word).is_err() {
        return Err(ExitCode::FAILURE);
    }
    let become_user = become_user(groups);
    tell(&socket, become_user)?;
    Ok(socket)
}

fn take_over(own: OwnedFd) -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, [libc::SIGKILL as libc::c_ulong, 0, 0, 0])?;
    // SAFETY: no pointers; what had this number was the nursery's.
    check(unsafe { libc::dup3(own.as_raw_fd(), SOCKET, libc::O_CLOEXEC) }.into())?;
    drop(own);
    for (first, last) in [(SOCKET + 1, shell::STATUS - 1), (shell::STATUS + 1, RawFd::MAX)] {
        // SAFETY: no pointers; nothing else is in use here.
        check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    }
    Ok(())
}

fn become_user(groups: bool) -> Result<(), Failed> {
    // SAFETY: no pointers.
    check(unsafe { libc::setsid() }.into()).step("session", "setsid")?;
    if groups {
        // SAFETY: no groups need no pointer.
        check(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) })
            .step("giving up the worker's groups", "setgroups")?;
    }
    for call in [libc::SYS_setresgid, libc::SYS_setresuid] {
        // The capabilities in the new user namespace stay: the user that this was is not the root of that.
        // SAFETY: no pointers.
        check(unsafe { libc::syscall(call, INSIDE, INSIDE, INSIDE) }).step("becoming the sandbox's user", "setres")?;
    }
    // The change of user has cleared the one and set the other.
    prctl(libc::PR_SET_PDEATHSIG, [libc::SIGKILL as libc::c_ulong, 0, 0, 0]).step("parent death signal", "set")?;
    prctl(libc::PR_SET_DUMPABLE, [1, 0, 0, 0]).step("dumpable", "set")
}
