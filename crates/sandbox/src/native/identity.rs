//! Whom a sandbox is to the host.
//!
//! Inside, programs are 1000:1000. Outside, with root, each sandbox has a range of users of its own, so that two of them can
//! neither signal each other nor share limits; without root it is the caller, who has nothing else to give. On disk files
//! have the owners that they have inside: mounts translate, so that nothing is given away when a session comes back as
//! another range.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fstat, openat, statat};

use crate::{Error, Status};

/// The first host user for sandboxes; chosen outside of what distributions and subordinate ranges give out.
pub(super) const FIRST: u32 = 0x7000_0000;
/// Users of one sandbox: what the files of an image may belong to.
pub(crate) const RANGE: u32 = 1 << 16;
/// Sandboxes at a time on one machine.
const COUNT: u32 = 1 << 15;
/// The user inside.
pub(crate) const INSIDE: u32 = 1000;
/// Directories in directories that are given away; what is deeper stays whose it is.
const DEEPEST: usize = 128;

/// Host users, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Identity {
    /// The host user that is user 0 of the sandbox when it has a range, else its only user.
    first: u32,
    group: u32,
    /// A name that only one socket of this machine can have: the range belongs to whoever holds it, and the kernel takes it
    /// back however that process ends. None without root.
    claim: Option<UnixDatagram>,
}

/// Whether this process may act for other users.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl Identity {
    /// Claims a range of users; without root it is the caller.
    pub(crate) fn take() -> Result<Identity, Error> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !is_root() {
            let (first, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            return Ok(Identity { first, group, claim: None });
        }
        // Spread out, so that several workers seldom meet; and not the one that was just let go of.
        let start = std::process::id().wrapping_mul(2_654_435_761).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        for n in 0..COUNT {
            let first = FIRST + start.wrapping_add(n) % COUNT * RANGE;
            match claim(first) {
                Err(why) if why.kind() == io::ErrorKind::AddrInUse => {}
                Err(why) => return Err(Error::Identity(why)),
                Ok(claim) => return Ok(Identity { first, group: first, claim: Some(claim) }),
            }
        }
        Err(Error::Spec("all host users for sandboxes are in use".to_owned()))
    }

    /// Whether the range belongs to this sandbox alone.
    pub(super) fn own(&self) -> bool {
        self.claim.is_some()
    }

    /// The map of users, and that of groups, as the kernel takes them.
    pub(crate) fn maps(&self) -> [String; 2] {
        let count = if self.own() { RANGE } else { 1 };
        let inside = if self.own() { 0 } else { INSIDE };
        [self.first, self.group].map(|first| format!("{inside} {first} {count}"))
    }

    /// The host's number for root inside, with a range.
    pub(crate) fn root(&self) -> u32 {
        self.first
    }

    /// The host's number for the user inside.
    pub(super) fn user(&self) -> u32 {
        if self.own() { self.first + INSIDE } else { self.first }
    }

    pub(crate) fn status(&self) -> Status {
        if self.own() {
            Status::Enforced(format!("host users {} to {}", self.first, self.first + RANGE - 1))
        } else {
            Status::Unavailable("without root every sandbox is the caller's own user on the host".to_owned())
        }
    }
}

/// Makes what belongs to root belong to `user`, so that it can be written inside. A tree whose top belongs to somebody else
/// is left as it is.
pub(crate) fn give(path: &Path, user: u32) -> rustix::io::Result<()> {
    let top = openat(rustix::fs::CWD, path, DIRECTORY, Mode::empty())?;
    if fstat(&top)?.st_uid != 0 {
        return Ok(());
    }
    let gift = Gift { user };
    gift.below(top.as_fd(), 0)?;
    // Last, so that a top with its new owner means that all of it was given.
    chownat(&top, c"", gift.owner(), gift.group(), AtFlags::EMPTY_PATH)
}

struct Gift {
    user: u32,
}

impl Gift {
    /// By descriptors and without following links: another sandbox may hold a part of the tree and turn a directory into a
    /// link at any moment. A file that has several names is left alone, as one of them may be outside.
    fn below(&self, directory: BorrowedFd<'_>, depth: usize) -> rustix::io::Result<()> {
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            let opened: OwnedFd;
            // Devices, sockets and pipes are of no use inside.
            let file = match kind {
                FileType::Directory => {
                    opened = openat(directory, name, DIRECTORY, Mode::empty())?;
                    if depth < DEEPEST {
                        self.below(opened.as_fd(), depth + 1)?;
                    }
                    &opened
                }
                FileType::RegularFile | FileType::Symlink => {
                    opened = openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
                    &opened
                }
                _ => continue,
            };
            // Looked at once more: what was opened is what is given.
            let stat = fstat(file)?;
            let several = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink > 1;
            if !several && !self.has(&stat) {
                chownat(file, c"", self.owner(), self.group(), AtFlags::EMPTY_PATH)?;
            }
        }
        Ok(())
    }

    fn has(&self, stat: &Stat) -> bool {
        stat.st_uid == self.user && stat.st_gid == self.user
    }

    fn owner(&self) -> Option<Uid> {
        Some(Uid::from_raw(self.user))
    }

    fn group(&self) -> Option<Gid> {
        Some(Gid::from_raw(self.user))
    }
}

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn claim(first: u32) -> io::Result<UnixDatagram> {
    let name = SocketAddr::from_abstract_name(format!("palisade/user/{first}"))?;
    UnixDatagram::bind_addr(&name)
}
