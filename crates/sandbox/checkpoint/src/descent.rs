//! Going through a directory tree by descriptors, without following a link and with few descriptors open however deep it is.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::tree::Xattrs;

/// How many of the directories on the way down stay open. A hostile tree could otherwise use up the process's descriptors.
const OPEN: usize = 32;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens a directory that the caller named. Links on the way to it are the caller's; the last part must be none.
pub(crate) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty())?)
}

/// Opens a directory in another.
pub(crate) fn open_dir_at(dir: impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(dir, name, DIRECTORY, Mode::empty())?)
}

/// The names in a directory, without those of itself and its parent, sorted.
pub(crate) fn names(dir: impl AsFd) -> io::Result<Vec<Box<[u8]>>> {
    let mut names: Vec<Box<[u8]>> = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.into());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// What a name stands for, a link being a link.
pub(crate) fn stat_at(dir: impl AsFd, name: &[u8]) -> io::Result<Stat> {
    Ok(rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// The `user.*` attributes of an open file; none where the file system has none.
pub(crate) fn xattrs(fd: impl AsFd) -> io::Result<Xattrs> {
    let mut found = Xattrs::new();
    let fd = fd.as_fd();
    let mut list = Vec::new();
    loop {
        // Nearly every file has none, which one call tells.
        let len = match rustix::fs::flistxattr_query(fd) {
            Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(found),
            Ok(len) => len,
            Err(why) => return Err(why.into()),
        };
        list.resize(len, 0);
        match rustix::fs::flistxattr(fd, &mut list[..]) {
            Ok(len) => break list.truncate(len),
            Err(Errno::RANGE) => {}
            Err(why) => return Err(why.into()),
        }
    }
    let mut value = vec![0; 65536];
    for name in list.split(|byte| *byte == 0).filter(|name| name.starts_with(b"user.")) {
        let len = rustix::fs::fgetxattr(fd, CString::new(name)?.as_c_str(), &mut value[..])?;
        found.insert(name.into(), value[..len].into());
    }
    Ok(found)
}

struct Level {
    dir: Option<Arc<OwnedFd>>,
    identity: (u64, u64),
}

/// A place in a directory tree, and the way back up.
pub(crate) struct Descent {
    levels: Vec<Level>,
}

impl Descent {
    pub(crate) fn new(root: OwnedFd) -> io::Result<Descent> {
        Ok(Descent { levels: vec![Level::new(root)?] })
    }

    /// The directory where this is.
    pub(crate) fn here(&self) -> &Arc<OwnedFd> {
        let last = self.levels.last().and_then(|level| level.dir.as_ref());
        last.expect("the root is never left, and the last level is always open")
    }

    /// Goes down into a directory.
    pub(crate) fn down(&mut self, name: &[u8]) -> io::Result<()> {
        let next = open_dir_at(self.here(), name)?;
        self.levels.push(Level::new(next)?);
        if let Some(far) = self.levels.len().checked_sub(OPEN + 1) {
            self.levels[far].dir = None;
        }
        Ok(())
    }

    /// Goes up again. The root stays.
    pub(crate) fn up(&mut self) -> io::Result<()> {
        if self.levels.len() < 2 {
            return Ok(());
        }
        let child = self.levels.pop().and_then(|level| level.dir).expect("the last level is always open");
        let parent = self.levels.last_mut().expect("there were two levels");
        if parent.dir.is_none() {
            let again = Level::new(open_dir_at(&child, b"..")?)?;
            if again.identity != parent.identity {
                return Err(io::Error::other("it was moved while it was read"));
            }
            *parent = again;
        }
        Ok(())
    }
}

impl Level {
    fn new(dir: OwnedFd) -> io::Result<Level> {
        let stat = rustix::fs::fstat(&dir)?;
        Ok(Level { dir: Some(Arc::new(dir)), identity: (stat.st_dev, stat.st_ino) })
    }
}

/// Removes a directory in another with everything in it, if it is there.
pub(crate) fn remove_tree(parent: impl AsFd, name: &[u8]) -> io::Result<()> {
    let parent = parent.as_fd();
    let root = match open_dir_at(parent, name) {
        Ok(root) => root,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(why)
            if why.kind() == io::ErrorKind::NotADirectory || why.raw_os_error() == Some(Errno::LOOP.raw_os_error()) =>
        {
            return Ok(rustix::fs::unlinkat(parent, name, AtFlags::empty())?);
        }
        Err(why) => return Err(why),
    };
    let mut descent = Descent::new(root)?;
    // Names of directories that are still to be removed, level by level.
    let mut waiting: Vec<Vec<Box<[u8]>>> = vec![clear(descent.here())?];
    while let Some(level) = waiting.last_mut() {
        if let Some(child) = level.last() {
            descent.down(child)?;
            let children = clear(descent.here())?;
            waiting.push(children);
            continue;
        }
        waiting.pop();
        if let Some(name) = waiting.last_mut().and_then(Vec::pop) {
            descent.up()?;
            rustix::fs::unlinkat(descent.here(), &*name, AtFlags::REMOVEDIR)?;
        }
    }
    Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// Removes everything but directories, and gives the names of those.
fn clear(dir: &Arc<OwnedFd>) -> io::Result<Vec<Box<[u8]>>> {
    // Without this right its owner, unless root, can remove nothing in it.
    let mode = rustix::fs::fstat(dir)?.st_mode;
    if mode & 0o700 != 0o700 {
        rustix::fs::fchmod(dir, Mode::from_raw_mode(0o700))?;
    }
    let mut directories = Vec::new();
    for name in names(dir)? {
        let stat = stat_at(dir, &name)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            directories.push(name);
        } else {
            rustix::fs::unlinkat(dir, &*name, AtFlags::empty())?;
        }
    }
    Ok(directories)
}
