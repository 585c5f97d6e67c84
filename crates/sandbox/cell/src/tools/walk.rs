//! Walks a tree by descriptors, with more than one thread when it is large.
//!
//! A directory is opened below the one that listed it, never through a link, and a file below its directory: what is swapped
//! for a link while the walk is on its way leads nowhere. Of the directories only those are open that lie on the way.

use std::ffi::{CStr, CString};
use std::mem::{MaybeUninit, take};
use std::os::fd::OwnedFd;
use std::path::{Component, Path};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, ScopedJoinHandle, scope};
use std::time::Instant;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, fstat, open, openat, statat};
use rustix::io::{Errno, Result};
use rustix::thread::sched_getaffinity;

use crate::sys;

/// Entries that a walk looks at.
const MAX_ENTRIES: usize = 200_000;
const MAX_DEPTH: usize = 40;
/// A walk that has seen so many entries is worth more threads.
const LARGE: usize = 2000;
/// Threads that help, in all walks of this sandbox at a time: their memory and their share of the processes are the session's.
const HELPERS: usize = 3;
/// Files that are one piece of work.
const BATCH: usize = 256;
/// What is read of a directory at a time.
const LISTED: usize = 32 << 10;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Without blocking: a FIFO must not hold the call.
const FILE: OFlags =
    OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

static HELPING: AtomicUsize = AtomicUsize::new(0);

/// What ends a search before it is done.
pub(crate) struct Stop {
    cancelled: Arc<AtomicBool>,
    deadline: Option<Instant>,
    seen: AtomicBool,
}

impl Stop {
    /// The call is over when the flag is set.
    pub(crate) fn when(cancelled: Arc<AtomicBool>) -> Stop {
        Stop { cancelled, deadline: None, seen: AtomicBool::new(false) }
    }

    pub(super) fn at(&self, deadline: Instant) -> Stop {
        Stop { deadline: Some(deadline), ..Stop::when(self.cancelled.clone()) }
    }

    /// Whether to leave the rest. Asked only before something that is then not done.
    pub(super) fn now(&self) -> bool {
        let now = self.cancelled.load(Ordering::Relaxed) || self.deadline.is_some_and(|at| Instant::now() > at);
        if now {
            self.seen.store(true, Ordering::Relaxed);
        }
        now
    }

    /// Whether something was left.
    pub(super) fn came(&self) -> bool {
        self.seen.load(Ordering::Relaxed)
    }
}

/// An open directory of the tree.
pub(super) struct Directory {
    fd: OwnedFd,
    device: u64,
    /// Below the root; a slash follows each part.
    path: Vec<u8>,
    depth: usize,
}

impl Directory {
    /// The root of a walk, by a path without links.
    pub(super) fn root(path: &Path) -> Result<Directory> {
        let fd = reach(path)?;
        Directory::new(openat(&fd, c".", DIRECTORY, Mode::empty())?, None, Vec::new(), 0)
    }

    fn below(&self, name: &CStr) -> Result<Directory> {
        let mut path = Vec::with_capacity(self.path.len() + name.count_bytes() + 1);
        path.extend_from_slice(&self.path);
        path.extend_from_slice(name.to_bytes());
        path.push(b'/');
        Directory::new(openat(&self.fd, name, DIRECTORY, Mode::empty())?, Some(self.device), path, self.depth + 1)
    }

    fn new(fd: OwnedFd, above: Option<u64>, path: Vec<u8>, depth: usize) -> Result<Directory> {
        let device = fstat(&fd)?.st_dev;
        allow(&fd, device, above)?;
        Ok(Directory { fd, device, path, depth })
    }

    /// Opens a regular file; with its size in bytes.
    pub(super) fn open(&self, name: &CStr) -> Result<(OwnedFd, u64)> {
        regular(openat(&self.fd, name, FILE, Mode::empty())?, Some(self.device))
    }

    /// When a file was changed, in seconds and nanoseconds of Unix time.
    pub(super) fn changed(&self, name: &CStr) -> Result<(i64, u64)> {
        let stat = statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok((stat.st_mtime as i64, stat.st_mtime_nsec as u64))
    }
}

/// Opens a regular file by a path without links; with its size in bytes.
pub(super) fn open_file(path: &Path) -> Result<(OwnedFd, u64)> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::ISDIR) };
    regular(openat(reach(above)?, name, FILE, Mode::empty())?, None)
}

/// A directory by a path without links, as a place to start from.
fn reach(path: &Path) -> Result<OwnedFd> {
    let way = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut fd = open("/", way, Mode::empty())?;
    for part in path.components() {
        if let Component::Normal(name) = part {
            fd = openat(&fd, name, way, Mode::empty())?;
        }
    }
    Ok(fd)
}

fn regular(fd: OwnedFd, directory: Option<u64>) -> Result<(OwnedFd, u64)> {
    let stat = fstat(&fd)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    allow(&fd, stat.st_dev, directory)?;
    Ok((fd, u64::try_from(stat.st_size).unwrap_or(0)))
}

/// Refuses what belongs to `/proc`; what is on the device of a directory that was allowed does not.
fn allow(fd: &OwnedFd, device: u64, allowed: Option<u64>) -> Result<()> {
    if allowed == Some(device) {
        return Ok(());
    }
    sys::refuse_process_files(fd).map_err(|_| Errno::ACCESS)
}

/// What is done with the files of a tree. Each thread has one of its own.
pub(super) trait Visit: Send {
    /// Whether a file at `path`, or below it, can still matter.
    fn wants(&self, path: &[u8]) -> bool;

    /// Attends to a regular file; its path is below the root.
    fn file(&mut self, directory: &Directory, name: &CStr, path: &[u8]);
}

/// Shows every regular file to one of the visitors, in no order. Hidden ones are left out unless asked for.
pub(super) fn walk<V: Visit>(root: Directory, hidden: bool, stop: &Stop, visitor: impl Fn() -> V + Sync) -> Vec<V> {
    let work = Work { stack: Vec::new(), busy: 1 };
    let walk = Walk { hidden, stop, entries: AtomicUsize::new(0), work: Mutex::new(work), more: Condvar::new() };
    let (walk, visitor) = (&walk, &visitor);
    let visitors = scope(|scope| {
        let mut own = Hands::new(visitor());
        walk.list(&Arc::new(root), &mut own);
        walk.done();
        let (mut helpers, mut asked) = (Vec::new(), false);
        while let Some(unit) = walk.next() {
            if !asked && walk.entries.load(Ordering::Relaxed) > LARGE {
                asked = true;
                let cores = sched_getaffinity(None).map_or(1, |set| set.count() as usize);
                // One that cannot be started is one less: the sandbox may be at its limit.
                helpers.extend((1..cores).map_while(|_| {
                    let free = |count| (count < HELPERS).then_some(count + 1);
                    HELPING.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free).ok()?;
                    let thread = Builder::new().name("search".to_owned()).stack_size(256 << 10);
                    let helper = thread.spawn_scoped(scope, || {
                        let mut own = Hands::new(visitor());
                        while let Some(unit) = walk.next() {
                            walk.attend(unit, &mut own);
                        }
                        HELPING.fetch_sub(1, Ordering::Relaxed);
                        own.visitor
                    });
                    helper.inspect_err(|_| _ = HELPING.fetch_sub(1, Ordering::Relaxed)).ok()
                }));
            }
            walk.attend(unit, &mut own);
        }
        let mut visitors = vec![own.visitor];
        visitors.extend(helpers.into_iter().filter_map(|helper: ScopedJoinHandle<'_, V>| helper.join().ok()));
        visitors
    });
    if walk.entries.load(Ordering::Relaxed) > LARGE {
        sys::give_back_memory();
    }
    visitors
}

/// A piece of work.
enum Unit {
    /// A directory that was seen in another.
    Directory { above: Arc<Directory>, name: CString },
    /// Files of a large directory; a NUL follows each name.
    Files { directory: Arc<Directory>, names: Vec<u8> },
}

struct Work {
    /// The last is the next: a tree is walked into its depth, so that few directories are open.
    stack: Vec<Unit>,
    /// Threads that have a unit, and could find more.
    busy: usize,
}

struct Walk<'a> {
    hidden: bool,
    stop: &'a Stop,
    entries: AtomicUsize,
    work: Mutex<Work>,
    more: Condvar,
}

/// What a thread works with.
struct Hands<V> {
    visitor: V,
    listing: Vec<MaybeUninit<u8>>,
    names: Vec<u8>,
    path: Vec<u8>,
}

impl<V: Visit> Hands<V> {
    fn new(visitor: V) -> Hands<V> {
        Hands { visitor, listing: vec![MaybeUninit::uninit(); LISTED], names: Vec::new(), path: Vec::new() }
    }

    fn files(&mut self, directory: &Directory, names: &[u8], stop: &Stop) {
        self.path.clear();
        self.path.extend_from_slice(&directory.path);
        for name in names.split_inclusive(|byte| *byte == 0) {
            let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
            self.path.truncate(directory.path.len());
            self.path.extend_from_slice(name.to_bytes());
            if self.visitor.wants(&self.path) {
                if stop.now() {
                    return;
                }
                self.visitor.file(directory, name, &self.path);
            }
        }
    }
}

impl Walk<'_> {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next unit; none when there is none and nobody can find one.
    fn next(&self) -> Option<Unit> {
        let mut work = self.lock();
        loop {
            if let Some(unit) = work.stack.pop() {
                work.busy += 1;
                return Some(unit);
            }
            if work.busy == 0 {
                return None;
            }
            work = self.more.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn attend<V: Visit>(&self, unit: Unit, hands: &mut Hands<V>) {
        match unit {
            Unit::Files { directory, names } => hands.files(&directory, &names, self.stop),
            Unit::Directory { above, name } => {
                hands.path.clear();
                hands.path.extend_from_slice(&above.path);
                hands.path.extend_from_slice(name.to_bytes());
                if hands.visitor.wants(&hands.path)
                    && !self.stop.now()
                    && let Ok(directory) = above.below(&name)
                {
                    drop(above);
                    self.list(&Arc::new(directory), hands);
                }
            }
        }
        self.done();
    }

    fn done(&self) {
        let mut work = self.lock();
        work.busy -= 1;
        if work.busy == 0 && work.stack.is_empty() {
            self.more.notify_all();
        }
    }

    fn put(&self, units: impl Iterator<Item = Unit>) {
        self.lock().stack.extend(units);
        self.more.notify_all();
    }

    fn list<V: Visit>(&self, directory: &Arc<Directory>, hands: &mut Hands<V>) {
        let (mut names, mut count) = (take(&mut hands.names), 0);
        let mut directories = Vec::new();
        let mut listing = RawDir::new(&directory.fd, &mut hands.listing);
        while let Some(Ok(entry)) = listing.next() {
            let name = entry.file_name();
            let bytes = name.to_bytes();
            if matches!(bytes, b"." | b"..") {
                continue;
            }
            if self.entries.fetch_add(1, Ordering::Relaxed) >= MAX_ENTRIES {
                break;
            }
            if (bytes.starts_with(b".") && !self.hidden) || bytes == b"node_modules" {
                continue;
            }
            let kind = match entry.file_type() {
                // Some file systems do not say.
                FileType::Unknown => match statat(&directory.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                    Err(_) => continue,
                },
                kind => kind,
            };
            if kind == FileType::Directory {
                if directory.depth < MAX_DEPTH {
                    directories.push(name.to_owned());
                }
            } else if kind == FileType::RegularFile {
                names.extend_from_slice(name.to_bytes_with_nul());
                count += 1;
                if count % BATCH == 0 {
                    let names = take(&mut names);
                    self.put(std::iter::once(Unit::Files { directory: directory.clone(), names }));
                }
            }
        }
        if !directories.is_empty() {
            // The first is taken first: what is found early in the order of paths can make the rest needless.
            directories.sort_unstable_by(|a, b| b.cmp(a));
            self.put(directories.into_iter().map(|name| Unit::Directory { above: directory.clone(), name }));
        }
        hands.files(directory, &names, self.stop);
        names.clear();
        hands.names = names;
    }
}

/// Compares paths part by part: a slash is less than any other byte.
pub(super) fn order(a: &[u8], b: &[u8]) -> std::cmp::Ordering {
    let rank = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    a.iter().map(rank).cmp(b.iter().map(rank))
}
