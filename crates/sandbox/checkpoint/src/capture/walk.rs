//! Reading an upper directory: one thread goes through it, a second one helps with the content.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use rustix::fs::{FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::cache::{Cache, Stamp};
use super::{CaptureOptions, Ownership};
use crate::descent::{self, Descent};
use crate::error::At as _;
use crate::ingest::{Ingest, Scratch};
use crate::tree::{self, Content, Dir, Extent, INLINE, MAX_DEPTH, MAX_ENTRIES, Meta, Node, Tree, Xattrs};
use crate::{Error, LayerPath, Result};

/// How many open files may wait for the second thread. With a longer line the last ones would all be left to it.
const WAITING: usize = 8;
/// A file changed within this time before the capture began may have been changed in the same tick of the clock: 20 ms.
const TICK: u32 = 20_000_000;

/// How many of the entries that are left out are named.
const NAMED: usize = 100;

/// What was found in a layer.
pub(super) struct Walked {
    pub(super) tree: Tree,
    pub(super) cache: Cache,
    pub(super) read: u64,
    pub(super) reused: u64,
    pub(super) skipped: u64,
    pub(super) skipped_paths: Vec<LayerPath>,
}

/// A file whose content is to be read.
struct Job {
    slot: usize,
    file: File,
    size: u64,
    sparse: bool,
}

/// Where the content of a slot goes.
struct Place {
    dir: usize,
    name: Box<[u8]>,
    stamp: Stamp,
}

type Done = Vec<(usize, Content)>;

/// Reads the layer at `upper`. Its content goes to `ingest`.
pub(super) fn walk(upper: &Path, options: &CaptureOptions, ingest: &Ingest<'_>, old: &Cache) -> Result<Walked> {
    let root = descent::open_dir(upper).at("opening the layer", upper)?;
    let settled = earlier(ingest.began()?);
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel::<Job>(WAITING);
        let helper = scope.spawn(|| help(receiver, ingest));
        let mut walk = Walk {
            upper,
            ownership: options.ownership,
            ingest,
            old,
            sender: Some(sender),
            scratch: Scratch::new(),
            done: Vec::new(),
            places: Vec::new(),
            links: HashMap::new(),
            parents: vec![(0, Box::default())],
            settled,
            entries: 0,
            walked: Walked {
                tree: Tree::new(""),
                cache: Cache::default(),
                read: 0,
                reused: 0,
                skipped: 0,
                skipped_paths: Vec::new(),
            },
        };
        let went = walk.everything(root);
        // Without a sender the helper ends.
        walk.sender = None;
        let helped = helper.join().expect("the helper does not panic");
        went?;
        let helped = helped.map_err(|failed| walk.located(failed))?;
        Ok(walk.collected(helped))
    })
}

/// A failure to read a slot's content.
struct Failed {
    slot: usize,
    why: Why,
}

enum Why {
    Store(Error),
    Read(io::Error),
}

fn help(receiver: Receiver<Job>, ingest: &Ingest<'_>) -> Result<Done, Failed> {
    let mut scratch = Scratch::new();
    let mut done = Vec::new();
    for job in receiver {
        done.push((job.slot, content(&job, ingest, &mut scratch)?));
    }
    Ok(done)
}

fn content(job: &Job, ingest: &Ingest<'_>, scratch: &mut Scratch) -> Result<Content, Failed> {
    let failed = |why| Failed { slot: job.slot, why };
    let read =
        if job.sparse { sparse(job, ingest, scratch) } else { ingest.content(&mut &job.file, job.size, scratch) };
    let content = read.map_err(|why| failed(Why::Store(why)))?.map_err(|why| failed(Why::Read(why)))?;
    // A file that grew while it was read is as torn as one that shrank.
    match job.file.metadata() {
        Ok(stat) if stat.len() == job.size => Ok(content),
        Ok(_) => Err(failed(Why::Read(io::ErrorKind::UnexpectedEof.into()))),
        Err(why) => Err(failed(Why::Read(why))),
    }
}

/// Content with holes, which stay holes.
fn sparse(job: &Job, ingest: &Ingest<'_>, scratch: &mut Scratch) -> Result<io::Result<Content>> {
    let mut extents = Vec::new();
    let mut at = 0;
    while at < job.size {
        let data = match rustix::fs::seek(&job.file, SeekFrom::Data(at)) {
            Ok(data) => data.min(job.size),
            Err(Errno::NXIO) => job.size,
            Err(why) => return Ok(Err(why.into())),
        };
        if data > at {
            extents.push(Extent::Hole { len: data - at });
        }
        if data >= job.size {
            break;
        }
        let hole = match rustix::fs::seek(&job.file, SeekFrom::Hole(data)) {
            Ok(hole) => hole.min(job.size),
            Err(why) => return Ok(Err(why.into())),
        };
        if hole <= data {
            return Ok(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        let mut stretch = Stretch { file: &job.file, at: data };
        if let Err(why) = ingest.extents(&mut stretch, hole - data, scratch, &mut extents)? {
            return Ok(Err(why));
        }
        at = hole;
    }
    Ok(Ok(Content::Extents(extents)))
}

struct Stretch<'a> {
    file: &'a File,
    at: u64,
}

impl Read for Stretch<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.file.read_at(buffer, self.at)?;
        self.at += len as u64;
        Ok(len)
    }
}

fn earlier((seconds, nanos): (i64, u32)) -> (i64, u32) {
    if nanos >= TICK { (seconds, nanos - TICK) } else { (seconds - 1, nanos + 1_000_000_000 - TICK) }
}

struct Walk<'a> {
    upper: &'a Path,
    ownership: Ownership,
    ingest: &'a Ingest<'a>,
    old: &'a Cache,
    sender: Option<SyncSender<Job>>,
    scratch: Scratch,
    done: Done,
    places: Vec<Place>,
    links: HashMap<(u64, u64), u32>,
    /// Each directory's parent, and its name there.
    parents: Vec<(usize, Box<[u8]>)>,
    /// What changed before this looks different after the next change.
    settled: (i64, u32),
    entries: u64,
    walked: Walked,
}

impl Walk<'_> {
    /// The path of a directory.
    fn path(&self, mut place: usize) -> LayerPath {
        let mut names: Vec<&[u8]> = Vec::new();
        while place != 0 {
            let (parent, name) = &self.parents[place];
            names.push(name);
            place = *parent;
        }
        names.reverse();
        LayerPath(names.join(&b'/'))
    }

    fn everything(&mut self, root: OwnedFd) -> Result<()> {
        let mut descent = Descent::new(root).at("reading the layer", self.upper)?;
        let mut waiting = vec![self.directory(&descent, 0)?];
        while let Some(level) = waiting.last_mut() {
            let Some((name, place)) = level.pop() else {
                waiting.pop();
                descent.up().at("reading the layer", self.upper)?;
                continue;
            };
            descent.down(&name).map_err(|cause| Error::Unreadable { path: self.path(place), cause })?;
            if waiting.len() >= MAX_DEPTH {
                return Err(Error::Limit { what: "the depth of the layer", limit: MAX_DEPTH as u64 });
            }
            waiting.push(self.directory(&descent, place)?);
        }
        Ok(())
    }

    /// Reads the directory where `descent` is, and gives the directories in it.
    fn directory(&mut self, descent: &Descent, place: usize) -> Result<Vec<(Box<[u8]>, usize)>> {
        let here = descent.here();
        let unreadable = |walk: &Walk<'_>, cause: io::Error| Error::Unreadable { path: walk.path(place), cause };
        let stat = rustix::fs::fstat(here).map_err(|why| unreadable(self, why.into()))?;
        let mut xattrs = descent::xattrs(here).map_err(|why| unreadable(self, why))?;
        let marked = |value: &[u8]| value == b"y";
        let opaque = xattrs.get(&b"user.overlay.opaque"[..]).is_some_and(|value| marked(value));
        // Directories with whiteouts of another kind, which no mount of ours makes, are marked so.
        let foreign = xattrs.get(&b"user.overlay.opaque"[..]).is_some_and(|value| !marked(value));
        if foreign || xattrs.contains_key(&b"user.overlay.redirect"[..]) {
            return Err(Error::Redirect(self.path(place)));
        }
        xattrs.retain(|name, _| tree::is_xattr(name));
        let dir = &mut self.walked.tree.dirs[place];
        dir.opaque = opaque && place != 0;
        dir.meta = meta(&stat, xattrs, self.ownership);
        let mut directories = Vec::new();
        for name in descent::names(here).map_err(|why| unreadable(self, why))? {
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(Error::Limit { what: "the number of entries", limit: MAX_ENTRIES });
            }
            let path = |walk: &Walk<'_>| walk.path(place).join(&name);
            let unreadable = |walk: &Walk<'_>, cause: io::Error| Error::Unreadable { path: path(walk), cause };
            let stat = descent::stat_at(here, &name).map_err(|why| unreadable(self, why))?;
            let node = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    let next = self.walked.tree.dirs.len();
                    self.walked.tree.dirs.push(Dir::default());
                    self.parents.push((place, name.clone()));
                    directories.push((name.clone(), next));
                    Node::Directory(next)
                }
                FileType::RegularFile => match self.file(here, place, &name, &stat) {
                    Ok(file) => Node::File(file),
                    Err(Why::Read(cause)) => return Err(unreadable(self, cause)),
                    Err(Why::Store(error)) => return Err(error),
                },
                FileType::Symlink => {
                    let target = rustix::fs::readlinkat(here, &*name, Vec::new());
                    let target = target.map_err(|why| unreadable(self, why.into()))?;
                    let meta = meta(&stat, Xattrs::new(), self.ownership);
                    Node::Symlink { meta: Meta { mode: 0o777, ..meta }, target: target.into_bytes().into() }
                }
                FileType::CharacterDevice if stat.st_rdev == 0 => Node::Whiteout,
                FileType::Fifo | FileType::Socket => {
                    self.walked.skipped += 1;
                    if self.walked.skipped_paths.len() < NAMED {
                        let path = path(self);
                        self.walked.skipped_paths.push(path);
                    }
                    continue;
                }
                _ => return Err(Error::Device(path(self))),
            };
            self.walked.tree.dirs[place].entries.insert(name, node);
        }
        Ok(directories)
    }

    fn file(&mut self, here: &OwnedFd, dir: usize, name: &[u8], stat: &Stat) -> Result<tree::File, Why> {
        let stamp = Stamp {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size as u64,
            changed: (stat.st_ctime, stat.st_ctime_nsec as u32),
            modified: (stat.st_mtime, stat.st_mtime_nsec as u32),
        };
        let link = (stat.st_nlink > 1).then(|| {
            let next = u32::try_from(self.links.len()).expect("a layer has fewer entries than 2^32");
            *self.links.entry((stat.st_dev, stat.st_ino)).or_insert(next)
        });
        if let Some((content, xattrs)) = self.old.files.get(&stamp).filter(|(content, _)| self.ingest.has(content)) {
            self.walked.reused += 1;
            self.walked.cache.files.insert(stamp, (content.clone(), xattrs.clone()));
            return Ok(tree::File { meta: meta(stat, xattrs.clone(), self.ownership), content: content.clone(), link });
        }
        // Without NONBLOCK a pipe that took the file's place would be waited for; without NOATIME every capture would write.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let open = |flags| rustix::fs::openat(here, name, flags, Mode::empty());
        let file = open(flags | OFlags::NOATIME).or_else(|why| if why == Errno::PERM { open(flags) } else { Err(why) });
        let file = file.map_err(|why| Why::Read(why.into()))?;
        let opened = rustix::fs::fstat(&file).map_err(|why| Why::Read(why.into()))?;
        let changed = (opened.st_ino, opened.st_dev, opened.st_size) != (stat.st_ino, stat.st_dev, stat.st_size);
        let mut xattrs = descent::xattrs(&file).map_err(Why::Read)?;
        if changed {
            return Err(Why::Store(Error::Changed(self.path(dir).join(name))));
        }
        if [&b"user.overlay.metacopy"[..], b"user.overlay.redirect", b"user.overlay.whiteout"]
            .iter()
            .any(|it| xattrs.contains_key(*it))
        {
            return Err(Why::Store(Error::Redirect(self.path(dir).join(name))));
        }
        xattrs.retain(|name, _| tree::is_xattr(name));
        self.walked.read += 1;
        let slot = self.places.len();
        self.places.push(Place { dir, name: name.into(), stamp });
        let size = stamp.size;
        let sparse = size > INLINE && (stat.st_blocks as u64).saturating_mul(512) < size;
        let job = Job { slot, file: file.into(), size, sparse };
        let left = match self.sender.as_ref().map(|sender| sender.try_send(job)) {
            Some(Err(TrySendError::Full(job) | TrySendError::Disconnected(job))) => Some(job),
            Some(Ok(())) | None => None,
        };
        if let Some(job) = left {
            match content(&job, self.ingest, &mut self.scratch) {
                Ok(content) => self.done.push((slot, content)),
                Err(failed) => return Err(Why::Store(self.located(failed))),
            }
        }
        // The content is put in its place when all of it is known.
        Ok(tree::File { meta: meta(stat, xattrs, self.ownership), content: Content::Extents(Vec::new()), link })
    }

    /// The error for a failure: with the path of the file, which only this thread knows.
    fn located(&self, failed: Failed) -> Error {
        let place = &self.places[failed.slot];
        let path = || self.path(place.dir).join(&place.name);
        match failed.why {
            Why::Store(error) => error,
            Why::Read(why) if why.kind() == io::ErrorKind::UnexpectedEof => Error::Changed(path()),
            Why::Read(cause) => Error::Unreadable { path: path(), cause },
        }
    }

    fn collected(mut self, helped: Done) -> Walked {
        for (slot, content) in self.done.into_iter().chain(helped) {
            let Place { dir, name, stamp } = &self.places[slot];
            let Some(Node::File(file)) = self.walked.tree.dirs[*dir].entries.get_mut(name) else { continue };
            if stamp.changed < self.settled {
                self.walked.cache.files.insert(*stamp, (content.clone(), file.meta.xattrs.clone()));
            }
            file.content = content;
        }
        self.walked
    }
}

fn meta(stat: &Stat, xattrs: Xattrs, ownership: Ownership) -> Meta {
    let (uid, gid) = match ownership {
        Ownership::Kept => (stat.st_uid, stat.st_gid),
        Ownership::Flat { uid, gid } => (uid, gid),
    };
    let mtime = (stat.st_mtime, stat.st_mtime_nsec as u32);
    Meta { mode: stat.st_mode & 0o7777, uid, gid, mtime, xattrs }
}
