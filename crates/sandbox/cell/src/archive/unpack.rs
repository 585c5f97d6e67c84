//! Unpacks a file or a tree.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, fchmod, futimens, linkat, mkdirat, openat, renameat,
    symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use super::{DEEPEST, Moved};

/// Entries of one archive.
const MOST: u64 = 1_000_000;
/// What lies between the contents of two files, in bytes: long names are read into memory as a whole.
const HEADERS: u64 = 1 << 20;

/// Why an archive could not be unpacked. What was unpacked before stays; no file is there in part.
#[derive(Debug)]
pub enum Error {
    /// The place is not there.
    Place {
        /// The path.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The stream is not an archive, or ends too soon.
    Stream(io::Error),
    /// An entry is not what an archive of files has.
    Entry {
        /// Its path.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An entry could not be written.
    Write {
        /// Its path.
        path: String,
        /// What the system said.
        cause: io::Error,
    },
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Place { path, cause } => write!(f, "{}: {cause}", path.display()),
            Error::Stream(why) => write!(f, "the archive cannot be read: {why}"),
            Error::Entry { path, why } => write!(f, "the archive is refused: {path:?} {why}"),
            Error::Write { path, cause } => write!(f, "{path}: {cause}"),
        }
    }
}

impl std::error::Error for Error {}

/// Unpacks an archive at `path`: inside it when it is a directory, else beside it with the archive's uppermost name replaced
/// by its last one. No link is followed below that, no entry leaves it, and neither owners nor set-user-id bits are taken on.
///
/// # Errors
/// The entry that failed, and why.
pub fn unpack(from: impl Read, path: &Path) -> Result<Moved, Error> {
    let place = |cause| Error::Place { path: path.to_owned(), cause };
    let (base, rename) = if path.is_dir() {
        (path, None)
    } else {
        let wrong = || place(io::Error::from(io::ErrorKind::NotFound));
        let parent = path.parent().ok_or_else(wrong)?;
        (if parent.as_os_str().is_empty() { Path::new(".") } else { parent }, Some(path.file_name().ok_or_else(wrong)?))
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let base = openat(CWD, base, flags, Mode::empty()).map_err(|why| place(why.into()))?;
    let mut unpacking = Unpacking { base, rename, moved: Moved::default(), directories: Vec::new() };
    let left = Cell::new(Some(HEADERS));
    let mut archive = Archive::new(Bounded { from, left: &left });
    for entry in archive.entries().map_err(Error::Stream)? {
        left.set(None);
        unpacking.entry(entry.map_err(Error::Stream)?)?;
        left.set(Some(HEADERS));
    }
    unpacking.finish();
    Ok(unpacking.moved)
}

/// Reads no more than what is left, if that is limited.
struct Bounded<'a, R> {
    from: R,
    left: &'a Cell<Option<u64>>,
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        if let Some(left) = self.left.get() {
            let left = left.checked_sub(read as u64);
            let large = || io::Error::other(format!("the headers of one entry are larger than {HEADERS} bytes"));
            self.left.set(Some(left.ok_or_else(large)?));
        }
        Ok(read)
    }
}

struct Unpacking<'a> {
    base: OwnedFd,
    rename: Option<&'a OsStr>,
    moved: Moved,
    /// Directories get their modes and times when nothing more is written into them.
    directories: Vec<(Vec<OsString>, Mode, Timestamps)>,
}

/// Why a parent directory cannot be entered.
enum Step {
    Link,
    System(Errno),
}

impl Unpacking<'_> {
    fn entry<R: Read>(&mut self, mut entry: Entry<'_, R>) -> Result<(), Error> {
        let path = entry.path().map_err(Error::Stream)?.into_owned();
        let shown: String = path.display().to_string().chars().take(200).collect();
        let refuse = |why| Error::Entry { path: shown.clone(), why };
        self.moved.entries += 1;
        if self.moved.entries > MOST {
            return Err(refuse("is one too many"));
        }
        let parts = self.parts(&path).map_err(refuse)?;
        let Some((name, parents)) = parts.split_last() else { return Ok(()) };
        let header = entry.header();
        let mode = Mode::from_raw_mode(header.mode().map_err(Error::Stream)? & 0o777);
        let seconds = i64::try_from(header.mtime().map_err(Error::Stream)?).unwrap_or(0);
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: seconds, tv_nsec: 0 },
        };
        let kind = header.entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let step = |step| match step {
            Step::Link => refuse("goes through something that is not a directory"),
            Step::System(why) => Error::Write { path: shown.clone(), cause: why.into() },
        };
        let failed = |why: Errno| step(Step::System(why));
        let parent = self.open(parents, true).map_err(step)?;
        match kind {
            EntryType::Directory => {
                match mkdirat(&parent, name, Mode::RWXU) {
                    Err(why) if why != Errno::EXIST => return Err(failed(why)),
                    _ => {}
                }
                self.open(&parts, false).map_err(step)?;
                self.directories.push((parts, mode, times));
            }
            EntryType::Regular | EntryType::Continuous => {
                let (file, temporary) = create(&parent).map_err(failed)?;
                let mut file = File::from(file);
                let size = entry.size();
                let written = io::copy(&mut entry, &mut file)
                    .and_then(|bytes| {
                        if bytes != size {
                            return Err(io::Error::new(
                                io::ErrorKind::UnexpectedEof,
                                "the archive ends within this file",
                            ));
                        }
                        fchmod(&file, mode)?;
                        futimens(&file, &times)?;
                        Ok(bytes)
                    })
                    .map_err(|cause| Error::Write { path: shown.clone(), cause });
                match written.and_then(|bytes| {
                    renameat(&parent, &temporary, &parent, name).map_err(failed)?;
                    Ok(bytes)
                }) {
                    Ok(bytes) => self.moved.bytes += bytes,
                    Err(why) => {
                        let _ = unlinkat(&parent, &temporary, AtFlags::empty());
                        return Err(why);
                    }
                }
            }
            EntryType::Symlink => {
                let target = entry.link_name().map_err(Error::Stream)?.ok_or_else(|| refuse("is a link to nothing"))?;
                let target = target.as_os_str();
                let temporary = unused(|temporary| symlinkat(target, &parent, temporary).map(drop)).map_err(failed)?.1;
                place(&parent, &temporary, name).map_err(failed)?;
                let _ = utimensat(&parent, name, &times, AtFlags::SYMLINK_NOFOLLOW);
            }
            EntryType::Link => {
                let target = entry.link_name().map_err(Error::Stream)?.ok_or_else(|| refuse("is a link to nothing"))?;
                let target = self.parts(&target).map_err(refuse)?;
                let (last, above) = target.split_last().ok_or_else(|| refuse("is a link to nothing"))?;
                let above = self.open(above, false).map_err(step)?;
                let linked = |temporary: &OsStr| linkat(&above, last, &parent, temporary, AtFlags::empty());
                let temporary = unused(linked).map_err(failed)?.1;
                place(&parent, &temporary, name).map_err(failed)?;
            }
            // A few bytes of it can stand for more than any disk holds, and what packs here writes none.
            EntryType::GNUSparse => return Err(refuse("is a file with holes, which must be packed without")),
            _ => return Err(refuse("is neither a file, a directory nor a link")),
        }
        Ok(())
    }

    /// The names on the way to an entry.
    fn parts(&self, path: &Path) -> Result<Vec<OsString>, &'static str> {
        let mut parts = Vec::new();
        for part in path.components() {
            match part {
                Component::Normal(name) => parts.push(name.to_owned()),
                Component::CurDir => {}
                Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                    return Err("leaves the directory that it is unpacked in");
                }
            }
        }
        if parts.len() > DEEPEST {
            return Err("is too deep");
        }
        if let (Some(first), Some(rename)) = (parts.first_mut(), self.rename) {
            rename.clone_into(first);
        }
        Ok(parts)
    }

    /// Opens a directory by walking to it, one name at a time.
    fn open(&self, parts: &[OsString], make: bool) -> Result<OwnedFd, Step> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut at = openat(&self.base, ".", flags, Mode::empty()).map_err(Step::System)?;
        for part in parts {
            let mut next = openat(&at, part, flags, Mode::empty());
            if make && matches!(next, Err(Errno::NOENT)) {
                match mkdirat(&at, part, Mode::from_raw_mode(0o755)) {
                    Err(why) if why != Errno::EXIST => return Err(Step::System(why)),
                    _ => next = openat(&at, part, flags, Mode::empty()),
                }
            }
            at = next.map_err(|why| match why {
                Errno::LOOP | Errno::NOTDIR => Step::Link,
                why => Step::System(why),
            })?;
        }
        Ok(at)
    }

    fn finish(&mut self) {
        // The innermost first: a directory that may not be written must not keep its children from being finished.
        for (parts, mode, times) in std::mem::take(&mut self.directories).into_iter().rev() {
            if let Ok(directory) = self.open(&parts, false) {
                // What has become of a directory meanwhile is its owner's business.
                let _ = futimens(&directory, &times);
                let _ = fchmod(&directory, mode);
            }
        }
    }
}

/// Makes something under a name that nobody has, by trying.
fn unused<T>(mut make: impl FnMut(&OsStr) -> Result<T, Errno>) -> Result<(T, OsString), Errno> {
    for number in 0..1000 {
        let name = OsString::from(format!(".palisade-{}-{number}", std::process::id()));
        match make(&name) {
            Err(Errno::EXIST) => {}
            done => return Ok((done?, name)),
        }
    }
    Err(Errno::EXIST)
}

fn create(parent: &impl AsFd) -> Result<(OwnedFd, OsString), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    unused(|name| openat(parent, name, flags, Mode::RUSR | Mode::WUSR))
}

/// Gives what was made its own name, in place of what had it.
fn place(parent: &impl AsFd, temporary: &OsStr, name: &OsStr) -> Result<(), Errno> {
    let done = renameat(parent, temporary, parent, name);
    // Two names of one file are left as they are by a renaming.
    let _ = unlinkat(parent, temporary, AtFlags::empty());
    done
}
