//! Limits of a container that somebody else has made, for which runtimes and engines have no words. Whoever is in its
//! namespaces sets them: a short-lived child is, from outside, before anything but the cell runs there. Needs root, and an
//! engine on this machine. Blocks, for as long as a process takes to start and end.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr;

use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::oci::CELL;

/// The same as in `native`: of 128 that a user of the host has unless told otherwise; and a second lock on a door that filters
/// close.
const COUNTS: &[(&CStr, &[u8])] =
    &[(c"/proc/sys/user/max_inotify_instances", b"32"), (c"/proc/sys/user/max_user_namespaces", b"0")];

/// What a user of the host may watch.
const WATCHES: &str = "/proc/sys/fs/inotify/max_user_watches";

/// Limits what the kernel counts for a container's users, by its first process. They are counted for whoever made the user
/// namespace too, so one container could use up what all of them have.
///
/// # Errors
/// When the container has no user namespace of its own, that cannot be entered, or a limit cannot be set: where `/proc/sys` is
/// read-only, say.
pub(crate) fn limit_counts(pid: i32) -> io::Result<()> {
    // The limits would be the machine's.
    let namespace = foreign(pid, "user")?.ok_or_else(|| io::Error::other("it has no user namespace of its own"))?;
    let watches = palisade_cell::watches(&std::fs::read_to_string(WATCHES)?).to_string();
    let set = move || {
        enter(namespace.as_raw_fd(), libc::CLONE_NEWUSER)?;
        let watches: (&CStr, &[u8]) = (c"/proc/sys/user/max_inotify_watches", watches.as_bytes());
        for &(path, value) in COUNTS.iter().chain([&watches]) {
            // SAFETY: the path is a C string, and the value lives through the call and is as long as told. The descriptor goes
            // with the process.
            check(unsafe {
                let file = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                if file < 0 { -1 } else { libc::write(file, value.as_ptr().cast(), value.len()) }
            })?;
        }
        Ok(())
    };
    // SAFETY: it makes system calls on what was prepared before, allocates nothing and takes no lock.
    unsafe { in_child(set) }
}

/// Limits how many names there may be in places in memory, by a container's first process: empty files take memory too; and opens
/// them to the sandbox's user, whatever the image's own directories lend them of their modes. A place that is not there is left out.
///
/// # Errors
/// When the container's mounts are the worker's own or cannot be reached, or a limit cannot be set.
pub(crate) fn limit_names(pid: i32, places: &[(&str, u64)]) -> io::Result<()> {
    let namespace = foreign(pid, "mnt")?.ok_or_else(|| io::Error::other("it has no mounts of its own"))?;
    let text = |text: String| CString::new(text).map_err(io::Error::other);
    let places: Vec<(CString, CString)> = places
        .iter()
        .map(|(at, names)| Ok((text((*at).to_owned())?, text(format!("nr_inodes={names}"))?)))
        .collect::<io::Result<_>>()?;
    let set = move || {
        enter(namespace.as_raw_fd(), libc::CLONE_NEWNS)?;
        for (at, option) in &places {
            let flags = libc::MS_REMOUNT | libc::MS_NOSUID | libc::MS_NODEV;
            // SAFETY: all texts are C strings; the other pointers may be null when a mount is changed.
            let changed = unsafe { libc::mount(ptr::null(), at.as_ptr(), ptr::null(), flags, option.as_ptr().cast()) };
            match check(changed as _) {
                // Not there, or not a mount.
                Err(why) if matches!(why.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {}
                changed => {
                    changed?;
                    // SAFETY: the path is a C string.
                    check(unsafe { libc::chmod(at.as_ptr(), 0o1777) } as _)?;
                }
            }
        }
        Ok(())
    };
    // SAFETY: as above.
    unsafe { in_child(set) }
}

/// Refuses a process that is not a cell: the engine may be another machine's, and the number here somebody else's.
pub(crate) fn is_cell(pid: i32) -> io::Result<()> {
    if std::fs::read_link(format!("/proc/{pid}/exe"))? == Path::new(CELL) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "the container's first process is not on this machine"))
}

/// A namespace of a process; none when it is this process's own.
pub(crate) fn foreign(pid: i32, kind: &str) -> io::Result<Option<File>> {
    let namespace = File::open(format!("/proc/{pid}/ns/{kind}"))?;
    let own = File::open(format!("/proc/self/ns/{kind}"))?;
    let number = |file: &File| rustix::fs::fstat(file).map(|stat| (stat.st_dev, stat.st_ino));
    Ok((number(&namespace)? != number(&own)?).then_some(namespace))
}

fn enter(namespace: RawFd, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::setns(namespace, kind) } as _)
}

fn check(value: libc::ssize_t) -> io::Result<()> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Does something in a process of one thread, which alone may enter a user or mount namespace.
///
/// # Safety
/// Other threads may hold any lock at this moment: what is done must take none, and allocate nothing.
unsafe fn in_child(act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let mut pidfd: RawFd = -1;
    // SAFETY: arguments of zeros are valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = u64::from(libc::CLONE_PIDFD.unsigned_abs());
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    // SAFETY: without CLONE_VM the child has its own copy of this memory; it does what the caller vouches for, and ends without
    // running anything that its parent would run at its end.
    let child = unsafe {
        let child = libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>());
        if child == 0 {
            libc::_exit(act().err().map_or(0, |why| why.raw_os_error().unwrap_or(libc::EIO)));
        }
        child
    };
    check(child as _)?;
    // SAFETY: the kernel has written a new descriptor that belongs to nobody else.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let ended = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)?;
    match ended.and_then(|ended| ended.exit_status()) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        None => Err(io::Error::other("the process that sets it was killed")),
    }
}
