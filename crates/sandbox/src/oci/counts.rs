//! What the kernel counts for each user of the host, limited for one container.
//!
//! A container's user namespace is root's, so what is counted for its users is counted for root too: one container could use
//! up what all of them have. The limits are settings of a user namespace, for which runtimes have no words, and whoever is in
//! it with its privileges sets them. A short-lived child does, from outside.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::{WaitId, WaitIdOptions, waitid};

/// The same as in `native`: of 128 that root has in all unless told otherwise, and a second lock on a door that filters close.
const LIMITS: &[(&CStr, &[u8])] =
    &[(c"/proc/sys/user/max_inotify_instances", b"32"), (c"/proc/sys/user/max_user_namespaces", b"0")];

/// Limits what the users of a container can have, by its first process. Needs root. Blocks, for as long as a process takes
/// to start and end.
///
/// # Errors
/// When the namespace cannot be entered, or a limit cannot be set: where `/proc/sys` is read-only, say.
pub(super) fn limit(pid: i32) -> io::Result<()> {
    let namespace = File::open(format!("/proc/{pid}/ns/user"))?;
    let own = File::open("/proc/self/ns/user")?;
    let number = |file: &File| rustix::fs::fstat(file).map(|stat| (stat.st_dev, stat.st_ino));
    if number(&namespace)? == number(&own)? {
        // The limits would be the machine's.
        return Err(io::Error::other("the container has no user namespace of its own"));
    }
    let mut pidfd: RawFd = -1;
    // SAFETY: arguments of zeros are valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = u64::from(libc::CLONE_PIDFD.unsigned_abs());
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    // Only a process of one thread can enter a user namespace.
    // SAFETY: without CLONE_VM the child has its own copy of this memory. It makes system calls on what was prepared before,
    // allocates nothing, takes no lock, and ends without running anything that its parent would run at its end.
    let child = unsafe {
        let child = libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>());
        if child == 0 {
            libc::_exit(enter(namespace.as_raw_fd()));
        }
        child
    };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has written a new descriptor that belongs to nobody else.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let ended = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)?;
    match ended.and_then(|ended| ended.exit_status()) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        None => Err(io::Error::other("the process that sets them was killed")),
    }
}

/// In the child: the number of the error, or zero.
fn enter(namespace: RawFd) -> i32 {
    let errno = || io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    // SAFETY: no pointers.
    if unsafe { libc::setns(namespace, libc::CLONE_NEWUSER) } != 0 {
        return errno();
    }
    for (path, value) in LIMITS {
        // SAFETY: the path is a C string, and the value lives through the call and is as long as told. The descriptor goes
        // with the process.
        let written = unsafe {
            let file = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if file < 0 { -1 } else { libc::write(file, value.as_ptr().cast(), value.len()) }
        };
        if written < 0 {
            return errno();
        }
    }
    0
}
