//! Writing a layer: one thread makes the names, a second one helps with the files.

use std::collections::HashSet;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{TrySendError, sync_channel};

use rustix::fs::{AtFlags, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

use super::create_in;
use crate::descent::{self, Descent};
use crate::error::At as _;
use crate::store::Store;
use crate::store::index::Index;
use crate::tree::{self, Content, Extent, Meta, Node, Tree};
use crate::{Error, Ownership, Result};

/// How many files may wait for the second thread; each keeps its directory open.
const WAITING: usize = 8;
const OPAQUE: &str = "user.overlay.opaque";

struct Job<'t> {
    dir: Arc<OwnedFd>,
    name: Box<[u8]>,
    file: &'t tree::File,
}

/// Writes `tree` to a new directory at `path`. `staging` is a directory for files with several names, made when it is needed.
pub(super) fn build(
    store: &Store,
    index: &Index,
    tree: &Tree,
    ownership: Ownership,
    path: &Path,
    staging: &Path,
) -> Result<()> {
    let build = Build { store, index, tree, path, staging, owners: Owners::new(ownership) };
    std::fs::create_dir(path).at("making", path)?;
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel::<Job<'_>>(WAITING);
        let helper = {
            let build = &build;
            scope.spawn(move || receiver.into_iter().try_for_each(|job| build.write_file(&job)))
        };
        let named = build.names(|job| match sender.try_send(job) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => build.write_file(&job),
        });
        drop(sender);
        let helped = helper.join().expect("the helper does not panic");
        named.and(helped)
    })?;
    build.finish_directories()
}

struct Build<'a> {
    store: &'a Store,
    index: &'a Index,
    tree: &'a Tree,
    path: &'a Path,
    staging: &'a Path,
    owners: Owners,
}

impl<'a> Build<'a> {
    /// Calls `enter` and `leave` for each directory.
    fn each_directory(
        &self,
        mut enter: impl FnMut(&Arc<OwnedFd>, usize) -> Result<()>,
        mut leave: impl FnMut(&Arc<OwnedFd>, usize) -> Result<()>,
    ) -> Result<()> {
        let root = descent::open_dir(self.path).at("opening", self.path)?;
        let mut descent = Descent::new(root).at("opening", self.path)?;
        enter(descent.here(), 0)?;
        let mut waiting = vec![(0, self.tree.dirs[0].entries.iter())];
        while let Some((place, level)) = waiting.last_mut() {
            let child = level.find_map(|(name, node)| match node {
                Node::Directory(child) => Some((name, *child)),
                _ => None,
            });
            if let Some((name, child)) = child {
                descent.down(name).at("opening a directory in", self.path)?;
                enter(descent.here(), child)?;
                waiting.push((child, self.tree.dirs[child].entries.iter()));
            } else {
                leave(descent.here(), *place)?;
                waiting.pop();
                descent.up().at("opening a directory in", self.path)?;
            }
        }
        Ok(())
    }

    /// Makes every name; files go to `write`.
    fn names(&self, mut write: impl FnMut(Job<'a>) -> Result<()>) -> Result<()> {
        let mut linked = HashSet::new();
        let enter = |here: &Arc<OwnedFd>, place: usize| {
            for (name, node) in &self.tree.dirs[place].entries {
                match node {
                    Node::Directory(_) => {
                        rustix::fs::mkdirat(here, &**name, Mode::RWXU).at("making a directory in", self.path)?
                    }
                    Node::Whiteout => {
                        let made = rustix::fs::mknodat(here, &**name, FileType::CharacterDevice, Mode::empty(), 0);
                        made.at("making a whiteout in", self.path)?;
                    }
                    Node::Symlink { meta, target } => self.symlink(here, name, meta, target)?,
                    Node::File(file @ tree::File { link: Some(link), .. }) => {
                        self.link(here, name, file, *link, &mut linked)?;
                    }
                    Node::File(file) => write(Job { dir: here.clone(), name: name.clone(), file })?,
                }
            }
            Ok(())
        };
        self.each_directory(enter, |_, _| Ok(()))
    }

    fn symlink(&self, here: &OwnedFd, name: &[u8], meta: &Meta, target: &[u8]) -> Result<()> {
        let made = || -> io::Result<()> {
            rustix::fs::symlinkat(target, here, name)?;
            if let Some((uid, gid)) = self.owners.other(meta) {
                rustix::fs::chownat(here, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            rustix::fs::utimensat(here, name, &times(meta), AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(())
        };
        made().at("making a symbolic link in", self.path)
    }

    /// A file with several names is written once, outside of the layer, and linked to each.
    fn link(
        &self,
        here: &OwnedFd,
        name: &[u8],
        file: &'a tree::File,
        link: u32,
        linked: &mut HashSet<u32>,
    ) -> Result<()> {
        if linked.is_empty() {
            std::fs::create_dir(self.staging).at("making", self.staging)?;
        }
        let staging = descent::open_dir(self.staging).at("opening", self.staging)?;
        let staged = link.to_string().into_bytes();
        if linked.insert(link) {
            self.write_file(&Job {
                dir: Arc::new(staging.try_clone().at("opening", self.staging)?),
                name: staged.clone().into(),
                file,
            })?;
        }
        rustix::fs::linkat(staging, &*staged, here, name, AtFlags::empty()).at("making a hard link in", self.path)
    }

    fn write_file(&self, job: &Job<'_>) -> Result<()> {
        let writing = |why: io::Error| Error::io("writing a file in", self.path, why);
        let mut file = create_in(&job.dir, &job.name).map_err(writing)?;
        match &job.file.content {
            Content::Inline(bytes) => file.write_all(bytes).map_err(writing)?,
            Content::Extents(extents) => {
                let mut holes = false;
                for extent in extents {
                    match extent {
                        Extent::Hole { len } => {
                            holes = true;
                            let len = i64::try_from(*len).map_err(|_| writing(io::ErrorKind::FileTooLarge.into()))?;
                            file.seek(SeekFrom::Current(len)).map_err(writing)?;
                        }
                        Extent::Chunk { id, len } => {
                            let raw = self.store.read(self.index, id)?;
                            if raw.len() != *len as usize {
                                return Err(Error::corrupt(
                                    self.path,
                                    format!("chunk {id} is not as long as its file says"),
                                ));
                            }
                            file.write_all(&raw).map_err(writing)?;
                        }
                    }
                }
                if holes {
                    file.set_len(job.file.content.size()).map_err(writing)?;
                }
            }
        }
        self.finish(&file, &job.file.meta).map_err(writing)
    }

    /// Gives an open file or directory everything but content. Changing the owner clears setuid and writing sets the time, so
    /// the order matters.
    fn finish(&self, file: impl AsFd, meta: &Meta) -> io::Result<()> {
        let file = file.as_fd();
        for (name, value) in &meta.xattrs {
            rustix::fs::fsetxattr(file, &**name, value, XattrFlags::empty())?;
        }
        if let Some((uid, gid)) = self.owners.other(meta) {
            rustix::fs::fchown(file, Some(uid), Some(gid))?;
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(meta.mode))?;
        rustix::fs::futimens(file, &times(meta))?;
        Ok(())
    }

    /// After everything in it is there: making names changes a directory's time, and its mode may forbid it.
    fn finish_directories(&self) -> Result<()> {
        let leave = |here: &Arc<OwnedFd>, place: usize| {
            let dir = &self.tree.dirs[place];
            let finished = || -> io::Result<()> {
                if dir.opaque {
                    rustix::fs::fsetxattr(here, OPAQUE, b"y", XattrFlags::empty())?;
                }
                self.finish(here, &dir.meta)
            };
            finished().at("finishing a directory in", self.path)
        };
        self.each_directory(|_, _| Ok(()), leave)
    }
}

fn times(meta: &Meta) -> Timestamps {
    let time = Timespec { tv_sec: meta.mtime.0, tv_nsec: i64::from(meta.mtime.1) as _ };
    Timestamps { last_access: time, last_modification: time }
}

/// Who owns what is made here, and who should.
struct Owners {
    keep: bool,
    mine: (u32, u32),
}

impl Owners {
    fn new(ownership: Ownership) -> Owners {
        let mine = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Owners { keep: ownership == Ownership::Kept, mine }
    }

    /// The owner to change to, when it is another than the one that a new file has.
    fn other(&self, meta: &Meta) -> Option<(Uid, Gid)> {
        let wanted = self.keep && (meta.uid, meta.gid) != self.mine;
        wanted.then(|| (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid)))
    }
}
