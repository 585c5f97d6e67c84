//! A directory that strangers' paths are written into, and nothing outside it.
//!
//! Every step of a path is opened on its own, from the descriptor of the step before, and never through a link: what an
//! earlier entry put there cannot lead anywhere. Names are single components that have been checked.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::inflate::Excess;

/// A path of checked components; empty is the root.
pub(crate) type Components = Vec<Vec<u8>>;

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    Directory,
    Regular,
    /// The mark that hides a name of lower layers: a character device 0:0.
    Whiteout,
    /// A link.
    Other,
}

/// Why a path cannot be walked.
#[derive(Debug)]
pub(crate) enum WalkError {
    /// A part of it is there and no directory.
    Obstructed,
    /// There are more directories than allowed.
    Excess(Excess),
    Io(&'static str, Errno),
}

/// The directory.
pub(crate) struct Tree {
    root: Rc<OwnedFd>,
    /// The directory that was used last: entries of one directory come one after another.
    last: Option<(Components, Rc<OwnedFd>)>,
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// The attribute by which a directory hides those of lower layers; its name where overlays are mounted with `userxattr`.
const OPAQUE: &str = "user.overlay.opaque";

fn name(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

fn kind(stat: &Stat) -> Found {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Found::Directory,
        FileType::RegularFile => Found::Regular,
        FileType::CharacterDevice if stat.st_rdev == 0 => Found::Whiteout,
        _ => Found::Other,
    }
}

impl Tree {
    /// Opens an empty directory.
    pub(crate) fn open(path: &Path) -> Result<Tree, Errno> {
        let root = rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty())?;
        Ok(Tree { root: Rc::new(root), last: None })
    }

    /// Opens the directory at `path` and makes what is missing on the way with mode 0700; `made` hears of each before it is
    /// there, and may refuse it.
    /// A whiteout on the way gives way to a directory that hides what the whiteout hid.
    pub(crate) fn directory(
        &mut self,
        path: &[Vec<u8>],
        mut made: impl FnMut(&[Vec<u8>]) -> Result<(), Excess>,
    ) -> Result<Rc<OwnedFd>, WalkError> {
        if let Some((last, fd)) = &self.last
            && last == path
        {
            return Ok(fd.clone());
        }
        let mut here = self.root.clone();
        for (depth, part) in path.iter().enumerate() {
            let next = match rustix::fs::openat(&here, name(part), DIRECTORY, Mode::empty()) {
                Ok(next) => next,
                Err(Errno::NOENT) => {
                    made(&path[..=depth]).map_err(WalkError::Excess)?;
                    make_directory(here.as_fd(), part).map_err(|cause| WalkError::Io("making a directory", cause))?
                }
                Err(Errno::NOTDIR | Errno::LOOP) => match look(here.as_fd(), part) {
                    Ok(Found::Whiteout) => {
                        made(&path[..=depth]).map_err(WalkError::Excess)?;
                        replace_whiteout(here.as_fd(), part)
                            .map_err(|cause| WalkError::Io("making a directory", cause))?
                    }
                    _ => return Err(WalkError::Obstructed),
                },
                Err(cause) => return Err(WalkError::Io("opening a directory", cause)),
            };
            here = Rc::new(next);
        }
        self.last = Some((path.to_vec(), here.clone()));
        Ok(here)
    }

    /// Opens a directory that must be there.
    pub(crate) fn existing(&self, path: &[Vec<u8>]) -> Result<Rc<OwnedFd>, Errno> {
        let mut here = self.root.clone();
        for part in path {
            here = Rc::new(rustix::fs::openat(&here, name(part), DIRECTORY, Mode::empty())?);
        }
        Ok(here)
    }

    /// Takes away what is at a name, with all that is below it.
    pub(crate) fn remove(&mut self, parent: BorrowedFd<'_>, part: &[u8]) -> Result<(), Errno> {
        // The directory that was used last may be below.
        self.last = None;
        match rustix::fs::unlinkat(parent, name(part), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR) => {}
            Err(cause) => return Err(cause),
        }
        empty(rustix::fs::openat(parent, name(part), DIRECTORY, Mode::empty())?)?;
        rustix::fs::unlinkat(parent, name(part), AtFlags::REMOVEDIR)
    }
}

/// Removes all that is in a directory. It goes as deep as paths may go.
fn empty(directory: OwnedFd) -> Result<(), Errno> {
    let entries: Vec<Vec<u8>> = Dir::read_from(&directory)?
        .map(|entry| entry.map(|entry| entry.file_name().to_bytes().to_vec()))
        .collect::<Result<_, _>>()?;
    for entry in entries.iter().filter(|entry| !matches!(entry.as_slice(), b"." | b"..")) {
        match rustix::fs::unlinkat(&directory, name(entry), AtFlags::empty()) {
            Err(Errno::ISDIR) => {
                empty(rustix::fs::openat(&directory, name(entry), DIRECTORY, Mode::empty())?)?;
                rustix::fs::unlinkat(&directory, name(entry), AtFlags::REMOVEDIR)?;
            }
            other => other?,
        }
    }
    Ok(())
}

/// What is at a name.
pub(crate) fn look(parent: BorrowedFd<'_>, part: &[u8]) -> Result<Found, Errno> {
    match rustix::fs::statat(parent, name(part), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(kind(&stat)),
        Err(Errno::NOENT) => Ok(Found::Nothing),
        Err(cause) => Err(cause),
    }
}

/// Makes a directory that must not be there and opens it.
pub(crate) fn make_directory(parent: BorrowedFd<'_>, part: &[u8]) -> Result<OwnedFd, Errno> {
    rustix::fs::mkdirat(parent, name(part), Mode::RWXU)?;
    rustix::fs::openat(parent, name(part), DIRECTORY, Mode::empty())
}

/// Puts a directory in place of a whiteout.
pub(crate) fn replace_whiteout(parent: BorrowedFd<'_>, part: &[u8]) -> Result<OwnedFd, Errno> {
    rustix::fs::unlinkat(parent, name(part), AtFlags::empty())?;
    let directory = make_directory(parent, part)?;
    set_opaque(directory.as_fd())?;
    Ok(directory)
}

/// Makes a file that must not be there.
pub(crate) fn make_file(parent: BorrowedFd<'_>, part: &[u8]) -> Result<File, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name(part), flags, Mode::RUSR | Mode::WUSR).map(File::from)
}

/// Makes a symbolic link that must not be there. Where it leads is nobody's business here.
pub(crate) fn make_link(parent: BorrowedFd<'_>, part: &[u8], target: &[u8]) -> Result<(), Errno> {
    rustix::fs::symlinkat(name(target), parent, name(part))
}

/// Gives a link its owner and time. It is not followed.
pub(crate) fn finish_link(
    parent: BorrowedFd<'_>,
    part: &[u8],
    owner: Option<(u32, u32)>,
    times: &Timestamps,
) -> Result<(), Errno> {
    if let Some((user, group)) = owner {
        let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
        rustix::fs::chownat(parent, name(part), user, group, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    rustix::fs::utimensat(parent, name(part), times, AtFlags::SYMLINK_NOFOLLOW)
}

/// Gives a file a second name.
pub(crate) fn make_hard_link(
    from: BorrowedFd<'_>,
    from_part: &[u8],
    to: BorrowedFd<'_>,
    to_part: &[u8],
) -> Result<(), Errno> {
    rustix::fs::linkat(from, name(from_part), to, name(to_part), AtFlags::empty())
}

/// Makes a whiteout. Everybody may make this one device since Linux 5.8.
pub(crate) fn make_whiteout(parent: BorrowedFd<'_>, part: &[u8]) -> Result<(), Errno> {
    rustix::fs::mknodat(parent, name(part), FileType::CharacterDevice, Mode::empty(), 0)
}

/// Has a directory hide what lower layers have at its path.
pub(crate) fn set_opaque(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::fs::fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty())
}
