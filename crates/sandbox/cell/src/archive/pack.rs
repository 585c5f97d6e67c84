//! Packs a file or a tree.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, openat, readlinkat, statat};
use tar::{Builder, EntryType, Header};

use super::{DEEPEST, Moved};

/// Names of what was skipped that are told.
const TOLD: usize = 100;

/// Packs what is at `path`, under its own last name. A link there is packed as a link.
///
/// # Errors
/// When something cannot be read or the stream cannot be written.
pub fn pack(path: &Path, to: impl Write) -> io::Result<Moved> {
    let mut packing = Packing { builder: Builder::new(Gate { to, shut: false }), moved: Moved::default() };
    if let Err(why) = packing.all(path) {
        // The builder ends its archive in good order when it is dropped, which would make a part look whole.
        packing.builder.get_mut().shut = true;
        return Err(why);
    }
    packing.builder.into_inner()?.to.flush()?;
    Ok(packing.moved)
}

/// Lets nothing through once it is shut.
struct Gate<W> {
    to: W,
    shut: bool,
}

impl<W: Write> Write for Gate<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.shut { Ok(bytes.len()) } else { self.to.write(bytes) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn named<T>(done: io::Result<T>, path: &Path) -> io::Result<T> {
    done.map_err(|why| io::Error::new(why.kind(), format!("{}: {why}", path.display())))
}

fn directory(at: impl AsFd, name: &OsStr, more: OFlags) -> io::Result<OwnedFd> {
    Ok(openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | more, Mode::empty())?)
}

struct Packing<W: Write> {
    builder: Builder<Gate<W>>,
    moved: Moved,
}

impl<W: Write> Packing<W> {
    fn all(&mut self, path: &Path) -> io::Result<()> {
        match path.file_name() {
            Some(name) => {
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let parent = named(directory(CWD, parent.as_os_str(), OFlags::empty()), parent)?;
                self.add(&parent, name, Path::new(name), 0)
            }
            // A directory that is named by where it is.
            None => {
                let directory = named(directory(CWD, path.as_os_str(), OFlags::empty()), path)?;
                self.inside(directory, Path::new(""), 0)
            }
        }
    }

    fn add(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path, depth: usize) -> io::Result<()> {
        // As many names as unpacking takes.
        if depth >= DEEPEST {
            return Err(io::Error::other(format!("{}: more than {DEEPEST} names deep", path.display())));
        }
        let stat = named(statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from), path)?;
        let mut header = header(&stat);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let opened = named(directory(parent, name, OFlags::NOFOLLOW), path)?;
                header.set_entry_type(EntryType::Directory);
                header.set_size(0);
                let mut slashed = path.as_os_str().to_owned();
                slashed.push("/");
                self.builder.append_data(&mut header, PathBuf::from(slashed), io::empty())?;
                self.moved.entries += 1;
                self.inside(opened, path, depth + 1)?;
            }
            FileType::Symlink => {
                let target = named(readlinkat(parent, name, Vec::new()).map_err(io::Error::from), path)?;
                header.set_entry_type(EntryType::Symlink);
                header.set_size(0);
                self.builder.append_link(&mut header, path, OsStr::from_bytes(target.as_bytes()))?;
                self.moved.entries += 1;
            }
            FileType::RegularFile => {
                // Not to wait for a pipe that has taken the file's place.
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = named(openat(parent, name, flags, Mode::empty()).map_err(io::Error::from), path)?;
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                header.set_entry_type(EntryType::Regular);
                header.set_size(size);
                self.builder.append_data(&mut header, path, Exactly { file: File::from(file), left: size })?;
                self.moved.entries += 1;
                self.moved.bytes += size;
            }
            _ if self.moved.skipped.len() < TOLD => self.moved.skipped.push(path.display().to_string()),
            _ => {}
        }
        Ok(())
    }

    fn inside(&mut self, opened: OwnedFd, path: &Path, depth: usize) -> io::Result<()> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&opened)? {
            let entry = named(entry.map_err(io::Error::from), path)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        names.sort_unstable();
        for name in names {
            match self.add(&opened, &name, &path.join(&name), depth) {
                // It was there a moment ago: the tree is in use.
                Err(why) if why.kind() == io::ErrorKind::NotFound => {}
                done => done?,
            }
        }
        Ok(())
    }
}

fn header(stat: &Stat) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(stat.st_mode & 0o777);
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// As many bytes as were announced, whatever has become of the file since.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let buffer = &mut buffer[..most];
        let mut read = self.file.read(buffer)?;
        if read == 0 {
            buffer.fill(0);
            read = buffer.len();
        }
        self.left -= read as u64;
        Ok(read)
    }
}
