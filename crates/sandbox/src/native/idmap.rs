//! Mounts on which owners are translated: files keep on disk the owners that they have inside.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::mount::{OpenTreeFlags, open_tree};

use super::identity::{FIRST, INSIDE, Identity, RANGE};
use crate::Error;

/// Makes detached mounts whose owners are those of one sandbox.
#[derive(Debug)]
pub(crate) struct Idmap<'a> {
    identity: &'a Identity,
    /// The sandbox's own user namespace: what is 1000 on disk is 1000 inside.
    straight: OwnedFd,
}

impl<'a> Idmap<'a> {
    /// For the sandbox of the process `pid`, whose user is mapped.
    pub(super) fn of(identity: &'a Identity, pid: i32) -> Result<Idmap<'a>, Error> {
        let straight = fs::File::open(format!("/proc/{pid}/ns/user")).map_err(Error::UserMap)?;
        Ok(Idmap { identity, straight: straight.into() })
    }

    /// For a sandbox that is not there yet.
    pub(crate) fn ahead(identity: &'a Identity) -> Result<Idmap<'a>, Error> {
        let [users, groups] = identity.maps();
        let straight = namespace(&users, &groups).map_err(Error::UserMap)?;
        Ok(Idmap { identity, straight })
    }

    /// A detached mount of `path`. What belongs to the owner of its top on disk belongs to the user inside.
    pub(crate) fn mount(&self, path: &Path, writable: bool) -> Result<OwnedFd, Error> {
        let wrong = |cause| Error::Directory { path: path.to_owned(), cause };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(rustix::fs::CWD, path, flags).map_err(|why| wrong(why.into()))?;
        let top = fs::metadata(path).map_err(wrong)?;
        let crooked;
        // What only root may write and nobody writes here needs no translation of its own.
        let (user, group) = (top.uid(), top.gid());
        let straight = user == INSIDE || user == 0;
        let namespace = if straight {
            &self.straight
        } else {
            crooked = namespace(
                &format!("{user} {} 1", self.identity.user()),
                &format!("{group} {} 1", self.identity.user()),
            )
            .map_err(Error::UserMap)?;
            &crooked
        };
        let read_only = if writable { 0 } else { libc::MOUNT_ATTR_RDONLY };
        translate(&tree, namespace, read_only).map_err(|cause| Error::Idmap { path: path.to_owned(), cause })?;
        Ok(tree)
    }
}

/// Whether owners can be translated at this place. The mount that it is tried on is seen by nobody.
pub(crate) fn possible(path: &Path) -> Result<(), Error> {
    let wrong = |cause| Error::Idmap { path: path.to_owned(), cause };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(rustix::fs::CWD, path, flags).map_err(|why| wrong(why.into()))?;
    let map = format!("0 {FIRST} {RANGE}");
    let namespace = namespace(&map, &map).map_err(Error::UserMap)?;
    translate(&tree, &namespace, libc::MOUNT_ATTR_RDONLY).map_err(wrong)
}

/// Gives a detached mount the owners of a user namespace, and takes from it what no sandbox may have.
fn translate(tree: &OwnedFd, namespace: &OwnedFd, more: u64) -> io::Result<()> {
    let set = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_IDMAP | more;
    let userns_fd = u64::try_from(namespace.as_raw_fd()).unwrap_or(0);
    let attr = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd };
    // SAFETY: the structure and the empty path live through the call, and the size is the structure's own.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A user namespace with these maps, which lasts as long as its descriptor.
fn namespace(users: &str, groups: &str) -> io::Result<OwnedFd> {
    let mut pidfd: RawFd = -1;
    // SAFETY: arguments of zeros are valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = u64::from((libc::CLONE_NEWUSER | libc::CLONE_PIDFD).unsigned_abs());
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    // SAFETY: without CLONE_VM the child has its own copy of this memory. It makes one system call, which does not return
    // before it is killed.
    let pid = unsafe {
        let pid = libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>());
        if pid == 0 {
            loop {
                libc::syscall(
                    libc::SYS_ppoll,
                    std::ptr::null::<libc::pollfd>(),
                    0,
                    std::ptr::null::<libc::timespec>(),
                    0,
                    0,
                );
            }
        }
        pid
    };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has written a new descriptor that belongs to nobody else.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let made = fs::write(format!("/proc/{pid}/uid_map"), users)
        .and_then(|()| fs::write(format!("/proc/{pid}/gid_map"), groups))
        .and_then(|()| fs::File::open(format!("/proc/{pid}/ns/user")));
    let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
    let _ =
        rustix::process::waitid(rustix::process::WaitId::PidFd(pidfd.as_fd()), rustix::process::WaitIdOptions::EXITED);
    made.map(Into::into)
}
