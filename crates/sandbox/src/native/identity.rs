//! Whom a sandbox is to the host.
//!
//! Inside, everybody is 1000:1000. Outside, with root, each sandbox has a host user of its own, so that two of them can
//! neither signal each other nor share limits; without root it is the caller, who has nothing else to give.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fstat, openat, statat};

use crate::{Error, Spec, Status};

/// The first host user for sandboxes; chosen outside of what distributions and subordinate ranges give out.
const FIRST: u32 = 1_879_048_192;
const COUNT: u32 = 1 << 20;
/// The user inside.
pub(crate) const INSIDE: u32 = 1000;
/// Directories in directories that are given away; what is deeper stays whose it is.
const DEEPEST: usize = 128;

/// A host user, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(super) own: bool,
    /// A name that only one socket of this machine can have: the user belongs to whoever holds it, and the kernel takes it
    /// back however that process ends.
    _claim: Option<UnixDatagram>,
}

/// Whether this process may act for other users.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl Identity {
    /// Chooses a user, and makes the directories that the sandbox may write its own.
    pub(crate) fn take(spec: &Spec) -> Result<Identity, Error> {
        if !is_root() {
            let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            return Ok(Identity { uid, gid, own: false, _claim: None });
        }
        let owner = fs::metadata(spec.workspace.written()).map(|meta| meta.uid()).unwrap_or(0);
        // A workspace that was used before keeps its user, so that its files need not be given away again.
        let start = if (FIRST..FIRST + COUNT).contains(&owner) {
            owner
        } else {
            // Spread out, so that several workers seldom meet.
            FIRST + std::process::id().wrapping_mul(2_654_435_761) % COUNT
        };
        let mut users = (0..COUNT).map(|n| FIRST + (start - FIRST + n) % COUNT);
        let (uid, claim) = users
            .find_map(|uid| match claim(uid) {
                Err(why) if why.kind() == io::ErrorKind::AddrInUse => None,
                done => Some(done.map(|claim| (uid, claim))),
            })
            .ok_or_else(|| Error::Spec("all host users for sandboxes are in use".to_owned()))?
            .map_err(Error::Identity)?;
        let identity = Identity { uid, gid: uid, own: true, _claim: Some(claim) };
        identity.give_all(spec)?;
        Ok(identity)
    }

    /// The user inside under the same number, where no user is mapped: all such sandboxes share it.
    pub(crate) fn shared(spec: &Spec) -> Result<Identity, Error> {
        let identity = Identity { uid: INSIDE, gid: INSIDE, own: false, _claim: None };
        if is_root() {
            identity.give_all(spec)?;
        }
        Ok(identity)
    }

    /// Makes the directories that the sandbox may write this user's.
    fn give_all(&self, spec: &Spec) -> Result<(), Error> {
        // What is only read, and may be read by everybody, needs no new owner: several sessions can share it.
        let shared = |path: &Path| fs::symlink_metadata(path).is_ok_and(|meta| meta.mode() & 0o005 == 0o005);
        let memory = spec.memory.iter().filter(|mount| !(mount.read_only && shared(&mount.host)));
        let memory = memory.map(|mount| mount.host.as_path());
        for path in [spec.workspace.written(), &spec.outputs].into_iter().chain(memory) {
            self.give(path).map_err(|cause| Error::Directory { path: path.to_owned(), cause: cause.into() })?;
        }
        Ok(())
    }

    /// Gives a tree to this user. A tree whose top belongs to it already is left alone: the top is given last, so that this
    /// means that all of it was.
    fn give(&self, path: &Path) -> rustix::io::Result<()> {
        let top = openat(rustix::fs::CWD, path, DIRECTORY, Mode::empty())?;
        if self.has(&fstat(&top)?) {
            return Ok(());
        }
        self.give_below(top.as_fd(), 0)?;
        chownat(&top, c"", self.owner(), self.group(), AtFlags::EMPTY_PATH)
    }

    /// By descriptors and without following links: another sandbox may hold a part of the tree and turn a directory into a
    /// link at any moment. A file that has several names is left alone, as one of them may be outside.
    fn give_below(&self, directory: BorrowedFd<'_>, depth: usize) -> rustix::io::Result<()> {
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
                        self.give_below(opened.as_fd(), depth + 1)?;
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
        stat.st_uid == self.uid && stat.st_gid == self.gid
    }

    fn owner(&self) -> Option<Uid> {
        Some(Uid::from_raw(self.uid))
    }

    fn group(&self) -> Option<Gid> {
        Some(Gid::from_raw(self.gid))
    }

    pub(crate) fn status(&self) -> Status {
        if self.own {
            Status::Enforced(format!("host uid {}", self.uid))
        } else {
            Status::Unavailable("without root every sandbox is the caller's own user on the host".to_owned())
        }
    }
}

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn claim(uid: u32) -> io::Result<UnixDatagram> {
    let name = SocketAddr::from_abstract_name(format!("palisade/user/{uid}"))?;
    UnixDatagram::bind_addr(&name)
}
