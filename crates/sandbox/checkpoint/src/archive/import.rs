//! Reading an archive as a checkpoint. The archive may come from anybody. It is never unpacked: its entries become a tree in
//! memory and chunks in the store, so that no path in it can name anything on this machine.

use std::io::{self, BufRead, BufReader, Read};
use std::time::SystemTime;

use flate2::bufread::MultiGzDecoder;
use tar::{EntryType, Header};

use super::header::{parse_time, records};
use super::{OPAQUE, WHITEOUT, key};
use crate::ingest::{Ingest, Scratch};
use crate::store::{Checkpoint, Store};
use crate::tree::{self, Content, Dir, Extent, File, INLINE, MAX_DEPTH, MAX_HELD, Meta, Node, Tree};
use crate::{Error, LayerPath, Result};

/// The longest extended header, and the longest map of a file with holes: 8 MiB.
const MAX_RECORDS: u64 = 8 << 20;
/// Compressed archives may be as small as they like up to this size of content: 64 MiB.
const FREE: u64 = 64 << 20;

/// The most that an archive may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportLimits {
    /// Entries.
    pub entries: u64,
    /// Bytes of the archive, unpacked.
    pub bytes: u64,
    /// How many times larger than the compressed archive its content may be, once it is over 64 MiB.
    pub ratio: u64,
}

impl Default for ImportLimits {
    /// A million entries, 64 GiB, 200 times.
    fn default() -> ImportLimits {
        ImportLimits { entries: 1_000_000, bytes: 64 << 30, ratio: 200 }
    }
}

/// How an archive is imported.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// The name of the base that the archive is a layer over. An archive of our own names it itself.
    pub base: Option<String>,
    /// When this is.
    pub created: SystemTime,
    /// What the checkpoint is called.
    pub label: Option<String>,
    /// The most that it may hold.
    pub limits: ImportLimits,
}

impl Store {
    /// Imports a tar archive, compressed with gzip or not: one that [`Store::export`] wrote, or a layer of an OCI image. The
    /// same content gives the same checkpoint. When anything is wrong nothing is stored.
    pub fn import(&self, archive: impl Read, options: &ImportOptions) -> Result<Checkpoint> {
        let _lock = self.shared()?;
        let ingest = Ingest::new(self, self.fresh_index()?)?;
        let mut archive = BufReader::new(archive);
        let packed = archive.fill_buf().map_err(unread)?.starts_with(&[0x1f, 0x8b]);
        let (base, mut tree) = if packed {
            let counted = Counted { inner: archive, count: 0 };
            let decoder = MultiGzDecoder::new(BufReader::new(counted));
            Import::new(decoder, options, &ingest, |decoder| Some(decoder.get_ref().get_ref().count)).everything()?
        } else {
            Import::new(archive, options, &ingest, |_| None).everything()?
        };
        tree.base = match (base, &options.base) {
            (Some(named), Some(wanted)) if named != *wanted => return Err(Error::Bases(named, wanted.clone())),
            (Some(base), _) => base,
            (None, Some(base)) => base.clone(),
            (None, None) => return Err(wrong("it does not say what base it is over; name one")),
        };
        tree.normalise();
        let (id, _) = ingest.finish(&tree, &mut Scratch::new())?;
        self.write_record(Checkpoint::of(id, &tree, None, options.created, options.label.clone()))
    }
}

fn wrong(what: impl Into<String>) -> Error {
    Error::Archive(what.into())
}

fn unread(why: io::Error) -> Error {
    if why.kind() == io::ErrorKind::UnexpectedEof { wrong("it ends too early") } else { wrong(why.to_string()) }
}

struct Counted<R> {
    inner: R,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        self.count += len as u64;
        Ok(len)
    }
}

/// What the headers say of an entry, the extended ones included.
#[derive(Default)]
struct Entry {
    path: Vec<u8>,
    link: Vec<u8>,
    meta: Meta,
    size: u64,
    literal: bool,
    /// It hides one name, whatever that looks like.
    hides_one: bool,
    /// The size with holes, of a file that has some.
    real_size: Option<u64>,
}

struct Import<'s, R, C> {
    reader: R,
    compressed: C,
    limits: ImportLimits,
    ingest: &'s Ingest<'s>,
    scratch: Option<Scratch>,
    read: u64,
    entries: u64,
    held: u64,
    links: u32,
    base: Option<String>,
    tree: Tree,
}

impl<'s, R: Read, C: Fn(&R) -> Option<u64>> Import<'s, R, C> {
    fn new(reader: R, options: &ImportOptions, ingest: &'s Ingest<'s>, compressed: C) -> Self {
        let mut tree = Tree::new("");
        tree.dirs[0].meta.mode = 0o755;
        let limits = options.limits;
        Import {
            reader,
            compressed,
            limits,
            ingest,
            scratch: None,
            read: 0,
            entries: 0,
            held: 0,
            links: 0,
            base: None,
            tree,
        }
    }

    fn everything(mut self) -> Result<(Option<String>, Tree)> {
        let mut pending: Vec<u8> = Vec::new();
        let (mut long_path, mut long_link) = (None, None);
        loop {
            let mut block = [0; 512];
            self.fill(&mut block)?;
            if block == [0; 512] {
                break;
            }
            let header = Header::from_byte_slice(&block);
            if !checks(&block, header) {
                return Err(wrong("a header's checksum does not fit"));
            }
            let kind = header.entry_type();
            let size = header.entry_size().map_err(|_| wrong("a header has no size"))?;
            match kind {
                EntryType::XGlobalHeader => {
                    let bytes = self.bytes(size)?;
                    let records = records(&bytes).ok_or_else(|| wrong("an extended header is malformed"))?;
                    if let Some((_, base)) = records.iter().find(|(name, _)| *name == key::BASE) {
                        let base = std::str::from_utf8(base).map_err(|_| wrong("its base's name is not UTF-8"))?;
                        self.base = Some(base.to_owned());
                    }
                }
                EntryType::XHeader => pending = self.bytes(size)?,
                EntryType::GNULongName => long_path = Some(without_end(self.bytes(size)?)),
                EntryType::GNULongLink => long_link = Some(without_end(self.bytes(size)?)),
                _ => {
                    self.entries += 1;
                    if self.entries > self.limits.entries {
                        return Err(Error::Limit { what: "the number of entries", limit: self.limits.entries });
                    }
                    let mut entry = read_header(header, size)?;
                    entry.path = long_path.take().unwrap_or(entry.path);
                    entry.link = long_link.take().unwrap_or(entry.link);
                    extend(&mut entry, &std::mem::take(&mut pending))?;
                    self.entry(kind, entry)?;
                }
            }
        }
        Ok((self.base, self.tree))
    }

    /// Counts what has been read.
    fn counted(&mut self, len: u64) -> Result<()> {
        self.read = self.read.saturating_add(len);
        if self.read > self.limits.bytes {
            return Err(Error::Limit { what: "the size of the archive", limit: self.limits.bytes });
        }
        if let Some(compressed) = (self.compressed)(&self.reader) {
            let most = compressed.saturating_mul(self.limits.ratio).max(FREE);
            if self.read > most {
                return Err(Error::Limit { what: "the compression of the archive", limit: self.limits.ratio });
            }
        }
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.counted(buffer.len() as u64)?;
        self.reader.read_exact(buffer).map_err(unread)
    }

    fn pad(&mut self, len: u64) -> Result<()> {
        let rest = (len % 512) as usize;
        if rest == 0 { Ok(()) } else { self.fill(&mut [0; 512][rest..]) }
    }

    /// The data of a small entry.
    fn bytes(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_RECORDS {
            return Err(Error::Limit { what: "an extended header", limit: MAX_RECORDS });
        }
        let mut bytes = vec![0; size as usize];
        self.fill(&mut bytes)?;
        self.pad(size)?;
        Ok(bytes)
    }

    /// Data that is a stretch of a file.
    fn stretch(&mut self, mut len: u64, extents: &mut Vec<Extent>) -> Result<()> {
        // In one go, since chunks must be cut as if the file were on disk; the limits are looked at on the way.
        let mut guard = Guarded { import: self, left: &mut len, failed: None };
        let whole = *guard.left;
        let ingest = guard.import.ingest;
        let mut scratch = guard.import.scratch.take().unwrap_or_else(Scratch::new);
        let read = ingest.extents(&mut guard, whole, &mut scratch, extents);
        let failed = guard.failed.take();
        self.scratch = Some(scratch);
        match (failed, read?) {
            (Some(error), _) => Err(error),
            (None, read) => read.map_err(unread),
        }
    }

    fn content(&mut self, entry: &Entry) -> Result<Content> {
        let size = entry.size;
        if let Some(real) = entry.real_size {
            return self.sparse(size, real);
        }
        let content = if size <= INLINE {
            let mut bytes = vec![0; size as usize];
            self.fill(&mut bytes)?;
            Content::Inline(bytes.into())
        } else {
            let mut extents = Vec::new();
            self.stretch(size, &mut extents)?;
            Content::Extents(extents)
        };
        self.pad(size)?;
        Ok(content)
    }

    /// A file with holes: a map of where its data is, and the data.
    fn sparse(&mut self, size: u64, real: u64) -> Result<Content> {
        let malformed = || wrong("a file's map of holes is malformed");
        let mut map = Vec::new();
        let mut ends = 0;
        let mut wanted = None;
        while wanted.is_none_or(|wanted| ends < wanted) {
            if map.len() as u64 >= size.min(MAX_RECORDS) {
                return Err(malformed());
            }
            let mut block = [0; 512];
            self.fill(&mut block)?;
            map.extend_from_slice(&block);
            ends += block.iter().filter(|byte| **byte == b'\n').count();
            if wanted.is_none() && ends > 0 {
                let count = number(map.split(|byte| *byte == b'\n').next()).ok_or_else(malformed)?;
                wanted = Some(
                    usize::try_from(count)
                        .ok()
                        .and_then(|it| it.checked_mul(2)?.checked_add(1))
                        .ok_or_else(malformed)?,
                );
            }
        }
        let mut lines = map.split(|byte| *byte == b'\n').skip(1);
        let mut stretches: Vec<(u64, u64)> = Vec::new();
        let (mut end, mut data) = (0u64, 0u64);
        for _ in 0..wanted.unwrap_or(1) / 2 {
            let (start, len) =
                (number(lines.next()).ok_or_else(malformed)?, number(lines.next()).ok_or_else(malformed)?);
            let next = start.checked_add(len).filter(|next| start >= end && *next <= real).ok_or_else(malformed)?;
            match stretches.last_mut() {
                _ if len == 0 => {}
                Some(last) if last.0 + last.1 == start => last.1 += len,
                _ => stretches.push((start, len)),
            }
            (end, data) = (next, data + len);
        }
        if map.len() as u64 + data != size || real > i64::MAX as u64 {
            return Err(malformed());
        }
        let content = if real <= INLINE {
            let mut bytes = vec![0; real as usize];
            for (start, len) in stretches {
                self.fill(&mut bytes[start as usize..(start + len) as usize])?;
            }
            Content::Inline(bytes.into())
        } else {
            let mut extents = Vec::new();
            let mut at = 0;
            for (start, len) in stretches {
                if start > at {
                    extents.push(Extent::Hole { len: start - at });
                }
                self.stretch(len, &mut extents)?;
                at = start + len;
            }
            if at < real {
                extents.push(Extent::Hole { len: real - at });
            }
            Content::Extents(extents)
        };
        self.pad(size)?;
        Ok(content)
    }

    fn entry(&mut self, kind: EntryType, entry: Entry) -> Result<()> {
        let names = names(&entry.path)?;
        let shown = LayerPath(names.join(&b'/'));
        let Some((name, parents)) = names.split_last() else {
            if kind != EntryType::Directory {
                return Err(wrong("its root is no directory"));
            }
            self.hold(entry.meta.held())?;
            self.tree.dirs[0].meta = entry.meta;
            return self.skip(entry.size);
        };
        let dir = self.directory(parents)?;
        if name.starts_with(WHITEOUT) && !entry.literal {
            self.skip(entry.size)?;
            return self.whiteout(dir, name, entry.hides_one, &shown);
        }
        if !tree::is_name(name) {
            return Err(wrong(format!("{shown} has a name that is too long")));
        }
        let taken = self.tree.dirs[dir].entries.get(*name);
        if kind == EntryType::Directory {
            let place = match taken {
                Some(Node::Directory(place)) => *place,
                Some(_) => return Err(wrong(format!("{shown} is in it twice"))),
                None => self.new_directory(dir, name),
            };
            self.hold(entry.meta.held())?;
            self.tree.dirs[place].meta = entry.meta;
            return self.skip(entry.size);
        }
        if taken.is_some() {
            return Err(wrong(format!("{shown} is in it twice")));
        }
        let node = match kind {
            EntryType::Regular | EntryType::Continuous => {
                let content = self.content(&entry)?;
                Node::File(File { meta: entry.meta, content, link: None })
            }
            EntryType::Symlink => {
                let target = entry.link;
                if target.is_empty() || target.len() > 4095 || target.contains(&0) {
                    return Err(wrong(format!("{shown} is a link to nothing")));
                }
                self.skip(entry.size)?;
                Node::Symlink {
                    meta: Meta { mode: 0o777, xattrs: tree::Xattrs::new(), ..entry.meta },
                    target: target.into(),
                }
            }
            EntryType::Link => {
                self.skip(entry.size)?;
                Node::File(self.linked(&entry.link, &shown)?)
            }
            // They have no content, and no checkpoint has any.
            EntryType::Fifo => return self.skip(entry.size),
            _ => return Err(wrong(format!("{shown} is a device or of an unknown kind"))),
        };
        self.hold(node.held())?;
        self.tree.dirs[dir].entries.insert((*name).into(), node);
        Ok(())
    }

    /// Counts what an entry holds in memory; the tree is held to the same limit at the end.
    fn hold(&mut self, bytes: u64) -> Result<()> {
        self.held += bytes;
        if self.held > MAX_HELD {
            return Err(Error::Limit { what: "what entries hold besides their names", limit: MAX_HELD });
        }
        Ok(())
    }

    fn skip(&mut self, size: u64) -> Result<()> {
        if size == 0 {
            return Ok(());
        }
        Err(wrong("an entry that has no content has a size"))
    }

    fn whiteout(&mut self, dir: usize, name: &[u8], hides_one: bool, shown: &LayerPath) -> Result<()> {
        if name == OPAQUE && !hides_one {
            // The root of a layer is always merged.
            self.tree.dirs[dir].opaque = dir != 0;
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if !tree::is_name(hidden) {
            return Err(wrong(format!("{shown} is no whiteout")));
        }
        if self.tree.dirs[dir].entries.contains_key(hidden) {
            return Err(wrong(format!("{shown} hides what the archive itself has")));
        }
        self.tree.dirs[dir].entries.insert(hidden.into(), Node::Whiteout);
        Ok(())
    }

    fn new_directory(&mut self, parent: usize, name: &[u8]) -> usize {
        let place = self.tree.dirs.len();
        self.tree.dirs.push(Dir { meta: Meta { mode: 0o755, ..Meta::default() }, ..Dir::default() });
        self.tree.dirs[parent].entries.insert(name.into(), Node::Directory(place));
        place
    }

    /// The directory of this path, made where the archive has not named it. What is no directory is not gone through.
    fn directory(&mut self, names: &[&[u8]]) -> Result<usize> {
        let mut place = 0;
        for name in names {
            if !tree::is_name(name) {
                return Err(wrong("a directory in it has a name that is too long"));
            }
            place = match self.tree.dirs[place].entries.get(*name) {
                Some(Node::Directory(next)) => *next,
                Some(_) => {
                    return Err(wrong(format!("{} is below what is no directory", LayerPath(names.join(&b'/')))));
                }
                None => {
                    self.entries += 1;
                    if self.entries > self.limits.entries {
                        return Err(Error::Limit { what: "the number of entries", limit: self.limits.entries });
                    }
                    self.new_directory(place, name)
                }
            };
        }
        Ok(place)
    }

    /// Another name of a file that the archive already has.
    fn linked(&mut self, target: &[u8], shown: &LayerPath) -> Result<File> {
        let missing = || wrong(format!("{shown} is a link to a file that is not before it"));
        let names = names(target)?;
        let (name, parents) = names.split_last().ok_or_else(missing)?;
        let mut place = 0;
        for name in parents {
            match self.tree.dirs[place].entries.get(*name) {
                Some(Node::Directory(next)) => place = *next,
                _ => return Err(missing()),
            }
        }
        let Some(Node::File(file)) = self.tree.dirs[place].entries.get_mut(*name) else { return Err(missing()) };
        if file.link.is_none() {
            file.link = Some(self.links);
            self.links += 1;
        }
        Ok(file.clone())
    }
}

/// Reads for the chunker, within the limits.
struct Guarded<'a, 's, R, C> {
    import: &'a mut Import<'s, R, C>,
    left: &'a mut u64,
    failed: Option<Error>,
}

impl<R: Read, C: Fn(&R) -> Option<u64>> Read for Guarded<'_, '_, R, C> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(*self.left).unwrap_or(usize::MAX).min(buffer.len());
        let len = self.import.reader.read(&mut buffer[..most])?;
        *self.left -= len as u64;
        if let Err(error) = self.import.counted(len as u64) {
            self.failed = Some(error);
            return Err(io::Error::other("a limit was reached"));
        }
        Ok(len)
    }
}

/// The parts of a path. One that leads out of the archive is an error.
fn names(path: &[u8]) -> Result<Vec<&[u8]>> {
    if path.starts_with(b"/") || path.contains(&0) {
        return Err(wrong(format!("the path {} is not relative", LayerPath(path.to_vec()))));
    }
    let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").collect();
    if names.contains(&&b".."[..]) {
        return Err(wrong(format!("the path {} leads out of it", LayerPath(path.to_vec()))));
    }
    if names.len() > MAX_DEPTH {
        return Err(Error::Limit { what: "the depth of the layer", limit: MAX_DEPTH as u64 });
    }
    Ok(names)
}

fn number(line: Option<&[u8]>) -> Option<u64> {
    let line = line.filter(|line| !line.is_empty() && line.iter().all(u8::is_ascii_digit))?;
    std::str::from_utf8(line).ok()?.parse().ok()
}

fn without_end(mut bytes: Vec<u8>) -> Vec<u8> {
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}

/// Whether a header's checksum is that of its bytes, with the checksum itself as spaces.
fn checks(block: &[u8; 512], header: &Header) -> bool {
    let sum: u32 =
        block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
    header.cksum().is_ok_and(|expected| expected == sum)
}

fn read_header(header: &Header, size: u64) -> Result<Entry> {
    let malformed = |_| wrong("a header is malformed");
    let small =
        |value: u64| u32::try_from(value).ok().filter(|it| *it != u32::MAX).ok_or_else(|| wrong("an owner is none"));
    let meta = Meta {
        mode: header.mode().map_err(malformed)? & 0o7777,
        uid: small(header.uid().map_err(malformed)?)?,
        gid: small(header.gid().map_err(malformed)?)?,
        mtime: (i64::try_from(header.mtime().map_err(malformed)?).map_err(|_| wrong("a time is too large"))?, 0),
        xattrs: tree::Xattrs::new(),
    };
    let link = header.link_name_bytes().map(|it| it.into_owned()).unwrap_or_default();
    Ok(Entry { path: header.path_bytes().into_owned(), link, meta, size, ..Entry::default() })
}

/// Puts what an extended header says in the place of what did not fit into the header.
fn extend(entry: &mut Entry, bytes: &[u8]) -> Result<()> {
    let malformed = || wrong("an extended header is malformed");
    let (mut major, mut minor, mut sparse_name, mut real_size) = (None, None, None, None);
    for (name, value) in records(bytes).ok_or_else(malformed)? {
        let integer = || number(Some(value)).ok_or_else(malformed);
        let owner =
            || integer().and_then(|it| u32::try_from(it).ok().filter(|it| *it != u32::MAX).ok_or_else(malformed));
        match name {
            "path" => entry.path = value.to_vec(),
            "linkpath" => entry.link = value.to_vec(),
            "size" => entry.size = integer()?,
            "uid" => entry.meta.uid = owner()?,
            "gid" => entry.meta.gid = owner()?,
            "mtime" => entry.meta.mtime = parse_time(value).ok_or_else(malformed)?,
            key::LITERAL => {
                entry.literal = value == b"1";
                entry.hides_one = value == b"whiteout";
            }
            key::SPARSE_MAJOR => major = Some(integer()?),
            key::SPARSE_MINOR => minor = Some(integer()?),
            key::SPARSE_NAME => sparse_name = Some(value.to_vec()),
            key::SPARSE_SIZE => real_size = Some(integer()?),
            name if name.starts_with("GNU.sparse.") => return Err(wrong("it has a file with holes in an old format")),
            name => {
                let xattr = name.strip_prefix(key::XATTR).map(str::as_bytes).filter(|it| tree::is_xattr(it));
                if let Some(xattr) = xattr {
                    if value.len() > 65536 {
                        return Err(malformed());
                    }
                    entry.meta.xattrs.insert(xattr.into(), value.into());
                }
            }
        }
    }
    match (major, minor) {
        (None, None) => {}
        (Some(1), Some(0)) => {
            entry.real_size = Some(real_size.ok_or_else(malformed)?);
            entry.path = sparse_name.unwrap_or_else(|| std::mem::take(&mut entry.path));
        }
        _ => return Err(wrong("it has a file with holes in an old format")),
    }
    Ok(())
}
