//! A layer becomes a directory that an overlay can be mounted on: whiteouts in the kernel's form, and of everything else
//! only what a sandbox may see.
//!
//! An archive is hostile until shown otherwise. What cannot be meant well (paths that leave the layer or lead through links,
//! hard links to anything but a file of the same layer) refuses the layer; what is common but not wanted (device nodes,
//! set-user-id bits, attributes with a meaning for the kernel) is left out, and noted.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use rustix::fs::{Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tar::{Entry, EntryType};

use crate::digest::Digest;
use crate::inflate::{self, Excess, Inflate, Meter};
use crate::policy::Limits;
use crate::tree::{self, Components, Found, Tree, WalkError};

/// All headers of one entry, long names and attributes included, in bytes.
const HEADERS: u64 = 2 * 1024 * 1024;
/// Linux's limits of a name, a path and a link's target, in bytes.
const LONGEST_NAME: usize = 255;
const LONGEST_PATH: usize = 4096;
/// The highest user or group of an image. What is above belongs to nobody inside a sandbox.
const HIGHEST_OWNER: u64 = 65_535;
/// Attributes of one entry.
const MOST_ATTRIBUTES: usize = 64;
/// Names of examples in notes.
const EXAMPLES: usize = 3;
/// What is read of a file at once.
const BUFFER: usize = 64 * 1024;
/// What one part of a path takes in memory besides its bytes.
const PART: u64 = 32;

/// Who owns the files of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ownership {
    /// Whoever owns them in the image.
    Kept,
    /// Whoever unpacked them, who may read every file and enter every directory.
    Flattened,
}

impl Ownership {
    /// What this process can do: root that has all of an image's users can keep owners.
    pub(crate) fn possible() -> Ownership {
        let whole = |map: &str| {
            std::fs::read_to_string(map).is_ok_and(|text| {
                text.lines().any(|line| {
                    let mut fields = line.split_whitespace().map(|field| field.parse::<u64>().ok());
                    let (inside, _, count) = (fields.next(), fields.next(), fields.next());
                    inside == Some(Some(0)) && count.flatten().is_some_and(|count| count > HIGHEST_OWNER)
                })
            })
        };
        let root = rustix::process::geteuid().is_root();
        if root && whole("/proc/self/uid_map") && whole("/proc/self/gid_map") {
            Ownership::Kept
        } else {
            Ownership::Flattened
        }
    }
}

/// Why a layer is not unpacked. Nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// A path that must not be.
    #[error("the entry {entry:?} {why}: do not use this image")]
    Path {
        /// The path, as it is in the archive.
        entry: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A hard link that leads elsewhere.
    #[error("the hard link {entry:?} leads to {target:?}, which {why}: do not use this image")]
    HardLink {
        /// The link.
        entry: String,
        /// What it names.
        target: String,
        /// What is wrong with that.
        why: &'static str,
    },
    /// An owner that no sandbox has.
    #[error(
        "the entry {entry:?} belongs to {owner}, beyond {HIGHEST_OWNER}: rebuild the image with lower user numbers"
    )]
    Owner {
        /// The entry.
        entry: String,
        /// The user or group.
        owner: u64,
    },
    /// An entry that is not supported.
    #[error("the entry {entry:?} is {what}, which is not supported: rebuild the image without it")]
    Kind {
        /// The entry.
        entry: String,
        /// What it is.
        what: String,
    },
    /// Larger than allowed.
    #[error("the layer is too large: {0}; raise the limit if the image is meant to be so large")]
    Excess(#[from] Excess),
    /// The archive is damaged.
    #[error("the layer's archive cannot be read: {0}: download it again, or rebuild the image")]
    Archive(io::Error),
    /// Another archive than the configuration names.
    #[error("the layer is {found} where the image's configuration says {expected}: do not use this image")]
    DiffId {
        /// What the configuration says.
        expected: Digest,
        /// What was unpacked.
        found: Digest,
    },
    /// The file system does not take it.
    #[error("{step} for {entry:?} failed: {cause}; check the space and the file system of the store")]
    Write {
        /// The step.
        step: &'static str,
        /// The entry.
        entry: String,
        /// What the system said.
        cause: io::Error,
    },
    /// The file system has no user attributes, without which directories cannot hide others.
    #[error("the store's file system has no user attributes: put the store on ext4, xfs, btrfs or a current tmpfs")]
    Attributes,
}

/// What was unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// Names that were made.
    pub(crate) entries: u64,
    /// Bytes of files.
    pub(crate) bytes: u64,
    /// Whether the layer hides everything below it.
    #[serde(default)]
    pub(crate) opaque: bool,
    /// What was left out.
    pub(crate) notes: Vec<String>,
}

/// What was left out, by reason, with a few examples.
#[derive(Default)]
struct Notes(BTreeMap<&'static str, (u64, Vec<String>)>);

impl Notes {
    fn add(&mut self, what: &'static str, path: &[u8]) {
        let (count, examples) = self.0.entry(what).or_default();
        *count += 1;
        if examples.len() < EXAMPLES {
            examples.push(shown(path));
        }
    }

    fn into_lines(self) -> Vec<String> {
        let line = |(what, (count, examples)): (_, (u64, Vec<String>))| {
            let more = if count > examples.len() as u64 { ", …" } else { "" };
            format!("{what}: {count} ({}{more})", examples.join(", "))
        };
        self.0.into_iter().map(line).collect()
    }
}

/// A path for people: all of it is visible, none of it is long.
fn shown(path: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(path).chars().take(200).collect();
    text.replace(char::is_control, "\u{fffd}")
}

/// What a file or directory gets when its content is there.
#[derive(Clone)]
struct Attributes {
    mode: u32,
    owner: (u32, u32),
    modified: i64,
    user: Vec<(String, Vec<u8>)>,
}

impl Attributes {
    /// Those of a directory without an entry.
    fn plain() -> Attributes {
        Attributes { mode: 0o755, owner: (0, 0), modified: 0, user: Vec::new() }
    }
}

/// The directories of a layer. They get their modes last, since before they must be written to; until then they are held in
/// memory, which is limited.
struct Directories {
    held: BTreeMap<Components, Attributes>,
    bytes: u64,
    limit: u64,
}

impl Directories {
    fn new(limit: u64) -> Directories {
        Directories { held: BTreeMap::new(), bytes: 0, limit }
    }

    /// What one takes, in bytes.
    fn weight(path: &[Vec<u8>], attributes: &Attributes) -> u64 {
        let path: u64 = path.iter().map(|part| part.len() as u64 + PART).sum();
        let user: u64 = attributes.user.iter().map(|(name, value)| (name.len() + value.len()) as u64 + 2 * PART).sum();
        path + user
    }

    fn insert(&mut self, path: &[Vec<u8>], attributes: Attributes) -> Result<(), Excess> {
        self.remove(path);
        self.bytes += Directories::weight(path, &attributes);
        if self.bytes > self.limit {
            return Err(Excess::Paths(self.limit));
        }
        self.held.insert(path.to_vec(), attributes);
        Ok(())
    }

    fn remove(&mut self, path: &[Vec<u8>]) {
        if let Some(old) = self.held.remove(path) {
            self.bytes -= Directories::weight(path, &old);
        }
    }

    /// Forgets a directory and all below it.
    fn remove_all(&mut self, path: &[Vec<u8>]) {
        let below = self.held.range(path.to_vec()..).map(|(directory, _)| directory);
        let below: Vec<Components> = below.take_while(|directory| directory.starts_with(path)).cloned().collect();
        below.iter().for_each(|directory| self.remove(directory));
    }
}

/// Counts an entry, or a directory that has none.
fn count(entries: &mut u64, limits: &Limits) -> Result<(), Excess> {
    *entries += 1;
    if *entries > limits.entries { Err(Excess::Entries(limits.entries)) } else { Ok(()) }
}

/// Unpacks a layer into an empty directory.
pub(crate) fn unpack(
    layer: File,
    into: &Path,
    expected: Option<Digest>,
    ownership: Ownership,
    limits: &Limits,
) -> Result<Summary, UnpackError> {
    let (reader, meter) = inflate::archive(layer, limits).map_err(broken)?;
    let root = Tree::open(into).map_err(|cause| write("opening the directory", b"/")(cause))?;
    let mut unpacking = Unpacking {
        tree: root,
        directories: Directories::new(limits.path_bytes),
        entries: 0,
        buffer: vec![0; BUFFER],
        summary: Summary::default(),
        notes: Notes::default(),
        ownership,
        limits,
    };
    let mut archive = tar::Archive::new(reader);
    unpacking.entries(&mut archive, &meter)?;
    // What follows the archive's end mark belongs to the layer's digest.
    meter.allow(u64::MAX);
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(broken)?;
    let found = meter.digest();
    if let Some(expected) = expected.filter(|expected| *expected != found) {
        return Err(UnpackError::DiffId { expected, found });
    }
    unpacking.finish()
}

/// A number of a header; some tools leave out those that are 0.
fn number(field: &[u8], read: io::Result<u64>) -> Result<u64, UnpackError> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) { Ok(0) } else { read.map_err(broken) }
}

/// An error of reading, which may be a limit.
fn broken(error: io::Error) -> UnpackError {
    Excess::of(&error).map_or(UnpackError::Archive(error), UnpackError::Excess)
}

/// An error of writing.
fn write(step: &'static str, entry: &[u8]) -> impl FnOnce(Errno) -> UnpackError + use<> {
    let entry = shown(entry);
    move |cause| UnpackError::Write { step, entry, cause: cause.into() }
}

/// An error of marking a directory as opaque.
fn marking(entry: &[u8]) -> impl FnOnce(Errno) -> UnpackError + use<> {
    let write = write("marking a directory", entry);
    move |cause| if cause == Errno::OPNOTSUPP { UnpackError::Attributes } else { write(cause) }
}

struct Unpacking<'a> {
    tree: Tree,
    directories: Directories,
    /// Entries so far, and directories without one.
    entries: u64,
    /// For the content of files, one after another.
    buffer: Vec<u8>,
    summary: Summary,
    notes: Notes,
    ownership: Ownership,
    limits: &'a Limits,
}

impl Unpacking<'_> {
    fn entries(&mut self, archive: &mut tar::Archive<Inflate>, meter: &Meter) -> Result<(), UnpackError> {
        meter.allow(HEADERS);
        // The headers of one entry are read into memory as a whole, so they get a limit of their own.
        for entry in archive.entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            count(&mut self.entries, self.limits)?;
            meter.allow(u64::MAX);
            self.entry(&mut entry)?;
            // Also what was not wanted of it is read here, before the next headers.
            io::copy(&mut entry, &mut io::sink()).map_err(broken)?;
            meter.allow(HEADERS);
        }
        Ok(())
    }

    fn entry(&mut self, entry: &mut Entry<'_, Inflate>) -> Result<(), UnpackError> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let raw = entry.path_bytes().into_owned();
        // The oldest archives mark directories by their names alone.
        let kind = if kind == EntryType::Regular && raw.ends_with(b"/") { EntryType::Directory } else { kind };
        let path = components(&raw, self.limits.depth)?;
        let Some((last, parent)) = path.split_last() else {
            return self.root(entry, kind, &raw);
        };
        if parent.iter().any(|part| part.starts_with(b".wh.")) {
            return Err(refuse(&raw, "is below a whiteout"));
        }
        if let Some(hidden) = last.strip_prefix(b".wh.") {
            if !matches!(kind, EntryType::Regular | EntryType::Link | EntryType::Continuous) {
                return Err(refuse(&raw, "is a whiteout and something else"));
            }
            return self.whiteout(&raw, parent, hidden);
        }
        match kind {
            EntryType::Directory => self.directory(entry, &raw, &path),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => self.file(entry, &raw, parent, last),
            EntryType::Symlink => self.link(entry, &raw, parent, last),
            EntryType::Link => self.hard_link(entry, &raw, &path),
            EntryType::Char | EntryType::Block => {
                self.notes.add("device nodes left out", &raw);
                Ok(())
            }
            EntryType::Fifo => {
                self.notes.add("named pipes left out", &raw);
                Ok(())
            }
            other => {
                let what = format!("of the type {:?}", char::from(other.as_byte()));
                Err(UnpackError::Kind { entry: shown(&raw), what })
            }
        }
    }

    /// The entry of the layer's root itself.
    fn root(&mut self, entry: &mut Entry<'_, Inflate>, kind: EntryType, raw: &[u8]) -> Result<(), UnpackError> {
        if kind != EntryType::Directory {
            return Err(refuse(raw, "would replace the root"));
        }
        let attributes = self.attributes(entry, raw)?;
        self.directories.insert(&[], attributes)?;
        Ok(())
    }

    fn attributes(&mut self, entry: &mut Entry<'_, Inflate>, raw: &[u8]) -> Result<Attributes, UnpackError> {
        let header = entry.header();
        let fields = header.as_old();
        let mode = u32::try_from(number(&fields.mode, header.mode().map(u64::from))?).unwrap_or_default();
        let modified = number(&fields.mtime, header.mtime())?;
        let mut owner = (0, 0);
        if self.ownership == Ownership::Kept {
            let limited = |owner: u64| {
                let small = u32::try_from(owner).ok().filter(|_| owner <= HIGHEST_OWNER);
                small.ok_or_else(|| UnpackError::Owner { entry: shown(raw), owner })
            };
            let (user, group) = (number(&fields.uid, header.uid())?, number(&fields.gid, header.gid())?);
            owner = (limited(user)?, limited(group)?);
        }
        let directory = header.entry_type() == EntryType::Directory || raw.ends_with(b"/");
        // A set-group-id bit on a directory is inherited by programs' files, so it goes, too.
        if mode & 0o6000 != 0 {
            self.notes.add("set-user-id and set-group-id bits removed", raw);
        }
        let user = self.user_attributes(entry, raw)?;
        let mode = mode & if directory { 0o1777 } else { 0o777 };
        Ok(Attributes { mode, owner, modified: i64::try_from(modified).unwrap_or(0), user })
    }

    /// The extended attributes that are nothing but data.
    fn user_attributes(
        &mut self,
        entry: &mut Entry<'_, Inflate>,
        raw: &[u8],
    ) -> Result<Vec<(String, Vec<u8>)>, UnpackError> {
        let mut kept = Vec::new();
        let Some(extensions) = entry.pax_extensions().map_err(broken)? else { return Ok(kept) };
        for extension in extensions {
            let extension = extension.map_err(broken)?;
            let key = extension.key_bytes();
            if key.starts_with(b"GNU.sparse.") {
                return Err(UnpackError::Kind {
                    entry: shown(raw),
                    what: "a sparse file in the PAX format".to_owned(),
                });
            }
            let Some(name) = key.strip_prefix(b"SCHILY.xattr.") else { continue };
            let plain = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.") && name.len() <= LONGEST_NAME;
            match std::str::from_utf8(name) {
                Ok(name) if plain && kept.len() < MOST_ATTRIBUTES && !name.contains('\0') => {
                    kept.push((name.to_owned(), extension.value_bytes().to_vec()));
                }
                _ => self.notes.add("extended attributes left out", raw),
            }
        }
        Ok(kept)
    }

    /// Opens the directory that an entry is in.
    fn parent(&mut self, raw: &[u8], parent: &[Vec<u8>]) -> Result<std::rc::Rc<std::os::fd::OwnedFd>, UnpackError> {
        let (notes, directories, entries) = (&mut self.notes, &mut self.directories, &mut self.entries);
        let made = |path: &[Vec<u8>]| {
            // One entry may name as many of them as a path has parts.
            count(entries, self.limits)?;
            notes.add("directories without an entry, made with mode 0755", &path.join(&b'/'));
            directories.insert(path, Attributes::plain())
        };
        self.tree.directory(parent, made).map_err(|error| match error {
            WalkError::Obstructed => refuse(raw, "leads through something that is no directory"),
            WalkError::Excess(excess) => excess.into(),
            WalkError::Io(step, cause) => write(step, raw)(cause),
        })
    }

    /// Takes away what an earlier entry put at a name, so that something else can be there.
    fn clear(&mut self, raw: &[u8], parent: BorrowedFd<'_>, path: &[Vec<u8>]) -> Result<(), UnpackError> {
        let Some(last) = path.last() else { return Err(refuse(raw, "would replace the root")) };
        let found = tree::look(parent, last).map_err(write("looking at a name", raw))?;
        if found == Found::Nothing {
            return Ok(());
        }
        if found == Found::Directory {
            self.directories.remove_all(path);
        }
        self.tree.remove(parent, last).map_err(write("replacing an earlier entry", raw))
    }

    fn directory(&mut self, entry: &mut Entry<'_, Inflate>, raw: &[u8], path: &[Vec<u8>]) -> Result<(), UnpackError> {
        let attributes = self.attributes(entry, raw)?;
        let (last, parent) = path.split_last().expect("the root is handled elsewhere");
        let parent = self.parent(raw, parent)?;
        match tree::look(parent.as_fd(), last).map_err(write("looking at a name", raw))? {
            Found::Directory => {}
            Found::Whiteout => {
                tree::replace_whiteout(parent.as_fd(), last).map_err(marking(raw))?;
            }
            Found::Nothing => {
                tree::make_directory(parent.as_fd(), last).map_err(write("making a directory", raw))?;
            }
            Found::Regular | Found::Other => {
                self.clear(raw, parent.as_fd(), path)?;
                tree::make_directory(parent.as_fd(), last).map_err(write("making a directory", raw))?;
            }
        }
        self.summary.entries += 1;
        self.directories.insert(path, attributes)?;
        Ok(())
    }

    fn file(
        &mut self,
        entry: &mut Entry<'_, Inflate>,
        raw: &[u8],
        parent_path: &[Vec<u8>],
        last: &[u8],
    ) -> Result<(), UnpackError> {
        let attributes = self.attributes(entry, raw)?;
        let parent = self.parent(raw, parent_path)?;
        let path = joined(parent_path, last);
        self.clear(raw, parent.as_fd(), &path)?;
        let mut file = tree::make_file(parent.as_fd(), last).map_err(write("making a file", raw))?;
        self.content(entry, raw, &mut file)?;
        self.finish_file(raw, &file, &attributes)?;
        self.summary.entries += 1;
        Ok(())
    }

    /// Writes a file's content; holes stay holes.
    fn content(&mut self, entry: &mut Entry<'_, Inflate>, raw: &[u8], file: &mut File) -> Result<(), UnpackError> {
        let failed = |cause| UnpackError::Write { step: "writing a file", entry: shown(raw), cause };
        let size = entry.size();
        let sparse = entry.header().entry_type() == EntryType::GNUSparse;
        let excess = Excess::Bytes(self.limits.layer_bytes);
        // A sparse file may be larger than all that was read.
        if size > self.limits.layer_bytes.saturating_sub(self.summary.bytes) {
            return Err(excess.into());
        }
        let buffer = &mut self.buffer;
        let mut total = 0;
        loop {
            let read = match entry.read(buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(broken(error)),
            };
            total += read as u64;
            if sparse && buffer[..read].iter().all(|byte| *byte == 0) {
                file.seek(SeekFrom::Current(i64::try_from(read).expect("a buffer's size"))).map_err(failed)?;
            } else {
                file.write_all(&buffer[..read]).map_err(failed)?;
            }
        }
        if total != size {
            return Err(UnpackError::Archive(io::ErrorKind::UnexpectedEof.into()));
        }
        if sparse {
            file.set_len(size).map_err(failed)?;
        }
        self.summary.bytes += total;
        Ok(())
    }

    fn finish_file(&mut self, raw: &[u8], file: &File, attributes: &Attributes) -> Result<(), UnpackError> {
        self.set_user_attributes(raw, file.as_fd(), attributes)?;
        let mut mode = attributes.mode;
        match self.ownership {
            Ownership::Kept => {
                let (user, group) = attributes.owner;
                rustix::fs::fchown(file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))
                    .map_err(write("setting the owner", raw))?;
            }
            Ownership::Flattened => mode |= 0o400,
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode)).map_err(write("setting the mode", raw))?;
        rustix::fs::futimens(file, &times(attributes.modified)).map_err(write("setting the time", raw))
    }

    fn set_user_attributes(
        &mut self,
        raw: &[u8],
        file: BorrowedFd<'_>,
        attributes: &Attributes,
    ) -> Result<(), UnpackError> {
        for (name, value) in &attributes.user {
            match rustix::fs::fsetxattr(file, name.as_str(), value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSPC | Errno::TOOBIG | Errno::RANGE) => {
                    self.notes.add("extended attributes left out", raw);
                }
                Err(cause) => return Err(write("setting an attribute", raw)(cause)),
            }
        }
        Ok(())
    }

    fn link(
        &mut self,
        entry: &mut Entry<'_, Inflate>,
        raw: &[u8],
        parent_path: &[Vec<u8>],
        last: &[u8],
    ) -> Result<(), UnpackError> {
        let target = entry.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default();
        if target.is_empty() || target.len() >= LONGEST_PATH || target.contains(&0) {
            return Err(refuse(raw, "is a link to nothing that can be named"));
        }
        let attributes = self.attributes(entry, raw)?;
        let parent = self.parent(raw, parent_path)?;
        self.clear(raw, parent.as_fd(), &joined(parent_path, last))?;
        tree::make_link(parent.as_fd(), last, &target).map_err(write("making a link", raw))?;
        let owner = (self.ownership == Ownership::Kept).then_some(attributes.owner);
        tree::finish_link(parent.as_fd(), last, owner, &times(attributes.modified))
            .map_err(write("setting the owner", raw))?;
        self.summary.entries += 1;
        Ok(())
    }

    fn hard_link(&mut self, entry: &mut Entry<'_, Inflate>, raw: &[u8], path: &[Vec<u8>]) -> Result<(), UnpackError> {
        let target = entry.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default();
        let refuse = |why| UnpackError::HardLink { entry: shown(raw), target: shown(&target), why };
        let source = components(&target, self.limits.depth).map_err(|_| refuse("leaves the layer"))?;
        let Some((source_last, source_parent)) = source.split_last() else { return Err(refuse("is the root")) };
        if source == path {
            return Ok(());
        }
        let missing = |_| refuse("is no file of the same layer");
        let from = self.tree.existing(source_parent).map_err(missing)?;
        if tree::look(from.as_fd(), source_last).map_err(missing)? != Found::Regular {
            return Err(refuse("is no file of the same layer"));
        }
        if source.starts_with(path) {
            return Err(refuse("would be replaced by the link"));
        }
        let (last, parent) = path.split_last().expect("the root is handled elsewhere");
        let to = self.parent(raw, parent)?;
        self.clear(raw, to.as_fd(), path)?;
        tree::make_hard_link(from.as_fd(), source_last, to.as_fd(), last).map_err(write("making a hard link", raw))?;
        self.summary.entries += 1;
        Ok(())
    }

    /// Hides a name of lower layers, or all of them in a directory. It says nothing about this layer's own entries,
    /// whether they come before or after it (OCI image specification, layer, Whiteouts).
    fn whiteout(&mut self, raw: &[u8], parent_path: &[Vec<u8>], hidden: &[u8]) -> Result<(), UnpackError> {
        if hidden == b".wh..opq" {
            if parent_path.is_empty() {
                // The kernel does not look for the mark on the root of a layer; whoever stacks the layers does.
                self.summary.opaque = true;
                return Ok(());
            }
            let parent = self.parent(raw, parent_path)?;
            return tree::set_opaque(parent.as_fd()).map_err(marking(raw));
        }
        if hidden.starts_with(b".wh.") {
            self.notes.add("marks of old builders left out", raw);
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(refuse(raw, "hides no name"));
        }
        let parent = self.parent(raw, parent_path)?;
        match tree::look(parent.as_fd(), hidden).map_err(write("looking at a name", raw))? {
            Found::Nothing => {
                tree::make_whiteout(parent.as_fd(), hidden).map_err(write("making a whiteout", raw))?;
                self.summary.entries += 1;
            }
            Found::Directory => {
                let directory = self.tree.existing(&joined(parent_path, hidden));
                let directory = directory.map_err(write("opening a directory", raw))?;
                tree::set_opaque(directory.as_fd()).map_err(marking(raw))?;
            }
            // Already hidden, by what is there.
            Found::Whiteout | Found::Regular | Found::Other => {}
        }
        Ok(())
    }

    /// Gives directories what they could not have while they were written to, the deepest first.
    fn finish(mut self) -> Result<Summary, UnpackError> {
        let directories = std::mem::take(&mut self.directories.held);
        if !directories.contains_key(&Components::new()) {
            self.finish_directory(&[], &Attributes::plain())?;
        }
        for (path, attributes) in directories.iter().rev() {
            self.finish_directory(path, attributes)?;
        }
        self.summary.notes = self.notes.into_lines();
        Ok(self.summary)
    }

    fn finish_directory(&mut self, path: &[Vec<u8>], attributes: &Attributes) -> Result<(), UnpackError> {
        let raw = path.join(&b'/');
        let directory = self.tree.existing(path).map_err(write("opening a directory", &raw))?;
        self.set_user_attributes(&raw, directory.as_fd(), attributes)?;
        let mut mode = attributes.mode;
        match self.ownership {
            Ownership::Kept => {
                let (user, group) = attributes.owner;
                rustix::fs::fchown(&directory, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))
                    .map_err(write("setting the owner", &raw))?;
            }
            Ownership::Flattened => mode |= 0o700,
        }
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode)).map_err(write("setting the mode", &raw))?;
        rustix::fs::futimens(&directory, &times(attributes.modified)).map_err(write("setting the time", &raw))
    }
}

fn joined(parent: &[Vec<u8>], last: &[u8]) -> Components {
    let mut path = parent.to_vec();
    path.push(last.to_vec());
    path
}

fn times(modified: i64) -> Timestamps {
    let time = Timespec { tv_sec: modified, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

fn refuse(raw: &[u8], why: &'static str) -> UnpackError {
    UnpackError::Path { entry: shown(raw), why }
}

/// The parts of an entry's path.
fn components(raw: &[u8], depth: usize) -> Result<Components, UnpackError> {
    if raw.starts_with(b"/") {
        return Err(refuse(raw, "is an absolute path"));
    }
    if raw.is_empty() || raw.contains(&0) {
        return Err(refuse(raw, "is no path"));
    }
    if raw.len() >= LONGEST_PATH {
        return Err(refuse(raw, "is too long"));
    }
    let mut parts = Components::new();
    for part in raw.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(refuse(raw, "leaves the layer")),
            part if part.len() > LONGEST_NAME => return Err(refuse(raw, "has a name that is too long")),
            part => parts.push(part.to_vec()),
        }
    }
    if parts.len() > depth {
        return Err(refuse(raw, "is too deep"));
    }
    Ok(parts)
}
