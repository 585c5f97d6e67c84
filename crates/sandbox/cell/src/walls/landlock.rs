//! Landlock: a second wall around the file system that does not depend on mounts.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::sys::{self, check};

// linux/landlock.h
const CREATE_RULESET_VERSION: u32 = 1;
const RULE_PATH_BENEATH: u32 = 1;
const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const ALL_V1: u64 = (1 << 13) - 1;
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;
const SCOPE_ABSTRACT_UNIX_SOCKET: u64 = 1;
const SCOPE_SIGNAL: u64 = 1 << 1;

/// `struct landlock_ruleset_attr`.
#[repr(C)]
struct Attributes {
    fs: u64,
    net: u64,
    scoped: u64,
}

#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

/// The ABI of this kernel; zero without Landlock.
fn abi() -> i32 {
    // SAFETY: with this flag the call takes no pointer and makes nothing.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, CREATE_RULESET_VERSION) };
    i32::try_from(version.max(0)).unwrap_or(0)
}

/// Rules that are not in force yet; without a descriptor there will be none.
pub(crate) struct Ruleset {
    fd: Option<OwnedFd>,
    abi: i32,
    handled: u64,
}

impl Ruleset {
    /// No rules.
    pub(crate) const fn none() -> Ruleset {
        Ruleset { fd: None, abi: 0, handled: 0 }
    }

    /// Rules for what every sandbox has below `root`; none when the kernel has no Landlock.
    pub(crate) fn new(root: &str) -> io::Result<Ruleset> {
        let abi = abi();
        if abi == 0 {
            return Ok(Ruleset::none());
        }
        let mut handled = ALL_V1;
        for (since, right) in [(2, REFER), (3, TRUNCATE), (5, IOCTL_DEV)] {
            if abi >= since {
                handled |= right;
            }
        }
        // TCP is left to the network namespace, which has a loopback device and nothing else: Landlock's rules are about
        // ports and not about addresses.
        let scoped = if abi >= 6 { SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL } else { 0 };
        let attributes = Attributes { fs: handled, net: 0, scoped };
        // Older kernels know a shorter structure and refuse a longer one unless its end is zero, which it is for them.
        let size = if abi >= 6 {
            24
        } else if abi >= 4 {
            16
        } else {
            8
        };
        // SAFETY: the structure lives through the call and is at least as long as `size` says.
        let fd = check(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attributes, size, 0) })?;
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).unwrap_or(-1)) };
        allow(&fd, &format!("{root}/"), (EXECUTE | READ_FILE | READ_DIR) & handled)?;
        let device = (EXECUTE | READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | IOCTL_DEV) & handled;
        allow(&fd, &format!("{root}/dev"), device)?;
        // Writing below /proc is left to the files' own owners: a process may name its threads.
        let process = (READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE) & handled;
        allow(&fd, &format!("{root}/proc"), process)?;
        for place in ["tmp", "home/agent", "run", "dev/shm"] {
            allow(&fd, &format!("{root}/{place}"), handled)?;
        }
        Ok(Ruleset { fd: Some(fd), abi, handled })
    }

    /// Adds the places of a session.
    pub(crate) fn allow(&mut self, roots: &[(String, bool)]) -> io::Result<()> {
        let Some(fd) = &self.fd else { return Ok(()) };
        for (root, _) in roots.iter().filter(|(_, writable)| *writable) {
            allow(fd, root, self.handled)?;
        }
        Ok(())
    }

    /// Restricts this process and all that it starts; returns the ABI in force, zero when there is none.
    pub(crate) fn restrict(self) -> io::Result<i32> {
        let Some(fd) = &self.fd else { return Ok(0) };
        // SAFETY: no pointers.
        check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, fd.as_raw_fd(), 0) })?;
        Ok(self.abi)
    }
}

fn allow(ruleset: &OwnedFd, at: &str, allowed: u64) -> io::Result<()> {
    let path = sys::path(at)?;
    // SAFETY: the path is a C string.
    let parent = check(unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) }.into())?;
    let parent = RawFd::try_from(parent).unwrap_or(-1);
    let rule = PathBeneath { allowed, parent };
    // SAFETY: the rule lives through the call and has the form that this type of rule wants.
    let added = check(unsafe {
        libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), RULE_PATH_BENEATH, &raw const rule, 0)
    });
    // SAFETY: the descriptor was made above and is not used again.
    unsafe { libc::close(parent) };
    added.map(drop)
}
