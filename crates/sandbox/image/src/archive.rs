//! Files by name, in a directory or in a tar: what layouts and the archives of `docker save` are made of.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::inflate::{self, Compression};
use crate::policy::Limits;

/// Members of an archive that are looked at.
const MOST_MEMBERS: usize = 20_000;
/// Steps from a link of an archive to a link.
const LINKS: usize = 8;

/// Files by name.
pub(crate) enum Files {
    Directory(PathBuf),
    Archive { file: File, members: HashMap<String, Member> },
}

/// A file of an archive.
#[derive(Debug, Clone)]
pub(crate) enum Member {
    Content {
        offset: u64,
        size: u64,
    },
    /// Old archives have one layer once and link to it.
    Link(String),
}

impl Files {
    /// Opens a directory, or an archive that may be compressed; then it is unpacked to `scratch` first, to be read in any
    /// order.
    pub(crate) fn open(path: &Path, scratch: impl FnOnce() -> io::Result<File>, limits: &Limits) -> io::Result<Files> {
        // A pipe would be waited for, and a device read.
        let options = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let mut file = File::options().read(true).custom_flags(options).open(path)?;
        let found = file.metadata()?;
        if found.is_dir() {
            return Ok(Files::Directory(path.to_owned()));
        }
        if !found.is_file() {
            return Err(io::Error::other("it is neither a directory nor a file"));
        }
        if Compression::of_file(&mut file)? != Compression::None {
            // All layers are in it, so it may be as large as an image.
            let limits = Limits { layer_bytes: limits.image_bytes, ..limits.clone() };
            let (mut inflate, _) = inflate::archive(file, &limits)?;
            let mut plain = scratch()?;
            io::copy(&mut inflate, &mut plain)?;
            plain.rewind()?;
            file = plain;
        }
        let members = members(&mut file)?;
        Ok(Files::Archive { file, members })
    }

    /// Opens a file; None when there is none. The second value is its size in bytes.
    pub(crate) fn file(&self, name: &str) -> io::Result<Option<(Box<dyn Read + Send>, u64)>> {
        match self {
            Files::Directory(directory) => {
                let options = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
                let file = match File::options().read(true).custom_flags(options).open(directory.join(name)) {
                    Ok(file) => file,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(error),
                };
                let found = file.metadata()?;
                if !found.is_file() {
                    return Err(io::Error::other(format!("{name} is not a file")));
                }
                Ok(Some((Box::new(file), found.len())))
            }
            Files::Archive { file, members } => {
                let mut name = name.to_owned();
                for _ in 0..LINKS {
                    match members.get(&name) {
                        None => return Ok(None),
                        Some(Member::Link(target)) => name.clone_from(target),
                        Some(Member::Content { offset, size }) => {
                            let section = Section { file: file.try_clone()?, at: *offset, left: *size };
                            return Ok(Some((Box::new(section), *size)));
                        }
                    }
                }
                Err(io::Error::other(format!("{name} is a link that leads to links")))
            }
        }
    }

    /// Reads a small file; None when there is none.
    pub(crate) fn read(&self, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let Some((file, size)) = self.file(name)? else { return Ok(None) };
        if size > limit {
            return Err(io::Error::other(format!("{name} has {size} bytes, more than {limit}")));
        }
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }
}

/// A part of a file. It is read by position, so that two may be read at once.
struct Section {
    file: File,
    at: u64,
    left: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use std::os::unix::fs::FileExt as _;
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let read = self.file.read_at(&mut buffer[..most], self.at)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// Where the members of an archive are.
fn members(file: &mut File) -> io::Result<HashMap<String, Member>> {
    let length = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    let mut members = HashMap::new();
    let mut archive = tar::Archive::new(Bounded { file: &mut *file, most: HEADERS, left: HEADERS });
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        if members.len() >= MOST_MEMBERS {
            return Err(io::Error::other(format!("it has more than {MOST_MEMBERS} members")));
        }
        let Some(name) = clean("", &String::from_utf8_lossy(&entry.path_bytes())) else { continue };
        let kind = entry.header().entry_type();
        if kind.is_file() || kind.is_contiguous() {
            let (offset, size) = (entry.raw_file_position(), entry.size());
            if offset.checked_add(size).is_none_or(|end| end > length) {
                return Err(io::Error::other(format!("{name} is cut off")));
            }
            members.insert(name, Member::Content { offset, size });
        } else if let Some(target) = entry.link_name_bytes() {
            let target = String::from_utf8_lossy(&target);
            // Symbolic links start from where they are, hard links from the root.
            let from = if kind.is_symlink() { name.rsplit_once('/').map_or("", |(parent, _)| parent) } else { "" };
            if let Some(target) = clean(from, &target) {
                members.insert(name, Member::Link(target));
            }
        }
    }
    file.rewind()?;
    Ok(members)
}

/// Long names are read into memory as a whole; between two of them there are seeks.
const HEADERS: u64 = 1024 * 1024;

/// Reads no more than so much between two seeks.
struct Bounded<'a> {
    file: &'a mut File,
    most: u64,
    left: u64,
}

impl Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| {
            io::Error::other(format!("the headers of one member are larger than {} bytes", self.most))
        })?;
        Ok(read)
    }
}

impl io::Seek for Bounded<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.left = self.most;
        self.file.seek(to)
    }
}

/// A name inside an archive, seen from one of its directories; None when it leaves it.
fn clean(from: &str, name: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').filter(|part| !part.is_empty()).collect();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}
