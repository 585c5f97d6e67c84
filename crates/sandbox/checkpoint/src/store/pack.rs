//! A pack: chunks one after another, then a footer that says where each is. The pack's name is the footer's hash, and each chunk's
//! name is its content's, so that no byte of it can change unseen.
//!
//! ```text
//! magic, 8 bytes
//! chunks as they are stored: zstd, or as they are where that is no larger
//! footer: for each chunk its id (32), offset (8), stored length (4), length (4); stored = length means not compressed
//! trailer: offset of the footer (8), number of chunks (8), magic, 8 bytes
//! ```
//! Numbers are little-endian.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashSet;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::error::At as _;
use crate::tree::Reader;
use crate::{Error, Id, Result};

const MAGIC: &[u8; 8] = b"plsdpak1";
/// What a chunk takes in a footer, in bytes.
pub(crate) const ENTRY: usize = 48;
pub(crate) const TRAILER: usize = 24;
/// What is gathered in memory before it is written.
const BUFFER: usize = 1 << 20;
/// The longest chunk: directories' nodes are chunks too, and a directory may have many entries.
pub(crate) const MAX_CHUNK: u32 = 1 << 30;

/// Where a chunk is in its pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: Id,
    pub(crate) offset: u64,
    pub(crate) stored: u32,
    pub(crate) len: u32,
}

impl Entry {
    fn is_raw(&self) -> bool {
        self.stored == self.len
    }

    /// Writes it as it is in a footer.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.0);
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.stored.to_le_bytes());
        out.extend_from_slice(&self.len.to_le_bytes());
    }

    /// Reads what [`Entry::encode`] wrote: nothing that could not be.
    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Entry, &'static str> {
        let entry = Entry {
            id: reader.id()?,
            offset: u64::from_le_bytes(reader.array()?),
            stored: u32::from_le_bytes(reader.array()?),
            len: u32::from_le_bytes(reader.array()?),
        };
        if entry.stored > entry.len || entry.len > MAX_CHUNK {
            return Err("no chunk is as long as it says");
        }
        Ok(entry)
    }
}

/// A compressor that is used again and again.
pub(crate) struct Packer(zstd::bulk::Compressor<'static>);

impl Packer {
    pub(crate) fn new() -> Packer {
        Packer(zstd::bulk::Compressor::new(1).expect("level 1 is one of zstd's levels"))
    }

    /// The form in which a chunk is stored, in `out`.
    pub(crate) fn pack<'a>(&mut self, raw: &'a [u8], out: &'a mut Vec<u8>) -> &'a [u8] {
        out.clear();
        out.reserve(zstd::zstd_safe::compress_bound(raw.len()));
        match self.0.compress_to_buffer(raw, out) {
            Ok(len) if len < raw.len() => &out[..len],
            _ => raw,
        }
    }
}

/// Gives the chunk that these stored bytes stand for, or says what is wrong with them.
pub(crate) fn unpack<'a>(entry: &Entry, stored: &'a [u8]) -> Result<Cow<'a, [u8]>, String> {
    thread_local! {
        // Making one costs as much as unpacking a small chunk.
        static UNPACKER: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    }
    let unpacked = || {
        UNPACKER.with_borrow_mut(|unpacker| {
            let unpacker = match unpacker {
                Some(unpacker) => unpacker,
                none => none.insert(zstd::bulk::Decompressor::new()?),
            };
            unpacker.decompress(stored, entry.len as usize)
        })
    };
    let raw = if entry.is_raw() {
        Cow::Borrowed(stored)
    } else {
        Cow::Owned(unpacked().map_err(|why: std::io::Error| format!("chunk {}: {why}", entry.id))?)
    };
    if raw.len() != entry.len as usize || Id::of(&raw) != entry.id {
        return Err(format!("chunk {} has other content than its name says", entry.id));
    }
    Ok(raw)
}

/// A pack that is being written, under another name than it will have.
pub(crate) struct PackWriter {
    file: File,
    path: PathBuf,
    buffer: Vec<u8>,
    offset: u64,
    entries: Vec<Entry>,
    claimed: HashSet<Id>,
    finished: bool,
}

impl PackWriter {
    pub(crate) fn create(path: PathBuf) -> Result<PackWriter> {
        let file = super::create_new(&path)?;
        let (buffer, offset) = (MAGIC.to_vec(), MAGIC.len() as u64);
        Ok(PackWriter { file, path, buffer, offset, entries: Vec::new(), claimed: HashSet::new(), finished: false })
    }

    /// When the file was made, on the clock that stamps files.
    pub(crate) fn made(&self) -> Result<(i64, u32)> {
        let stat = rustix::fs::fstat(&self.file).at("reading", &self.path)?;
        Ok((stat.st_ctime, stat.st_ctime_nsec as u32))
    }

    /// Whether a chunk is still to be added; whoever is told so must add it.
    pub(crate) fn claim(&mut self, id: Id) -> bool {
        self.claimed.insert(id)
    }

    /// Adds a chunk in the form in which it is stored.
    pub(crate) fn add(&mut self, id: Id, len: u32, stored: &[u8]) -> Result<()> {
        let stored_len =
            u32::try_from(stored.len()).map_err(|_| Error::Limit { what: "a chunk", limit: u64::from(MAX_CHUNK) })?;
        self.entries.push(Entry { id, offset: self.offset, stored: stored_len, len });
        self.offset += u64::from(stored_len);
        self.buffer.extend_from_slice(stored);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        self.file.write_all(&self.buffer).at("writing", &self.path)?;
        self.buffer.clear();
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What has been added so far, in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.offset
    }

    /// Makes what was added durable and gives it its name in `packs`. The caller makes the name durable.
    pub(crate) fn finish(mut self, packs: &Path) -> Result<(Id, Vec<Entry>)> {
        let footer = footer(&self.entries);
        let id = Id::of(&footer);
        self.buffer.extend_from_slice(&footer);
        self.buffer.extend_from_slice(&self.offset.to_le_bytes());
        self.buffer.extend_from_slice(&(self.entries.len() as u64).to_le_bytes());
        self.buffer.extend_from_slice(MAGIC);
        self.flush()?;
        rustix::fs::fdatasync(&self.file).at("writing", &self.path)?;
        std::fs::rename(&self.path, packs.join(id.to_string())).at("naming", &self.path)?;
        self.finished = true;
        Ok((id, std::mem::take(&mut self.entries)))
    }
}

impl Drop for PackWriter {
    fn drop(&mut self) {
        if !self.finished {
            // What could not be finished is of no use, and may be what fills the disk.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn footer(entries: &[Entry]) -> Vec<u8> {
    let mut footer = Vec::with_capacity(entries.len() * ENTRY);
    entries.iter().for_each(|entry| entry.encode(&mut footer));
    footer
}

/// Where a pack of this length has its footer, from its last bytes.
pub(crate) fn footer_range(trailer: &[u8; TRAILER], len: u64) -> Result<std::ops::Range<u64>, &'static str> {
    let number = |at: usize| u64::from_le_bytes(trailer[at..at + 8].try_into().expect("eight bytes"));
    let (offset, count) = (number(0), number(8));
    let end = len - TRAILER as u64;
    let fits = offset >= MAGIC.len() as u64
        && count.checked_mul(ENTRY as u64).and_then(|it| it.checked_add(offset)) == Some(end);
    if &trailer[16..] != MAGIC || !fits {
        return Err("its end is not that of a pack");
    }
    Ok(offset..end)
}

/// The entries of a footer that is the pack's with this name, and starts at `offset`.
pub(crate) fn entries(id: &Id, footer: &[u8], offset: u64) -> Result<Vec<Entry>, &'static str> {
    if Id::of(footer) != *id {
        return Err("its footer is not the one that its name says");
    }
    let mut next = MAGIC.len() as u64;
    let mut entries = Vec::with_capacity(footer.len() / ENTRY);
    let mut reader = Reader::new(footer);
    while reader.end().is_err() {
        let entry = Entry::decode(&mut reader)?;
        if entry.offset != next {
            return Err("its footer contradicts itself");
        }
        next += u64::from(entry.stored);
        entries.push(entry);
    }
    if next != offset {
        return Err("its footer contradicts its length");
    }
    Ok(entries)
}

/// The entries of a whole pack in memory.
#[cfg(feature = "remote")]
pub(crate) fn entries_of(id: &Id, pack: &[u8]) -> Result<Vec<Entry>, &'static str> {
    let trailer =
        pack.last_chunk::<TRAILER>().filter(|_| pack.len() >= TRAILER + MAGIC.len()).ok_or("it is too short")?;
    if !pack.starts_with(MAGIC) {
        return Err("its beginning is not that of a pack");
    }
    let range = footer_range(trailer, pack.len() as u64)?;
    entries(id, &pack[range.start as usize..range.end as usize], range.start)
}

/// A pack that is read.
#[derive(Debug)]
pub(crate) struct Pack {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Pack {
    pub(crate) fn open(packs: &Path, id: &Id) -> Result<Pack> {
        let path = packs.join(id.to_string());
        let file = File::open(&path).at("opening", &path)?;
        let length = file.metadata().at("reading", &path)?.len();
        Ok(Pack { path, file, length })
    }

    /// The error for a pack that does not hold what it must.
    pub(crate) fn wrong(&self, what: String) -> Error {
        Error::corrupt(&self.path, what)
    }

    /// How long the file is.
    pub(crate) fn len(&self) -> u64 {
        self.length
    }

    /// Reads and checks the footer of the pack with this name.
    pub(crate) fn entries(&self, id: &Id) -> Result<Vec<Entry>> {
        let wrong = |what: &str| Error::corrupt(&self.path, what);
        let len = self.length;
        let mut trailer = [0; TRAILER];
        let end = len.checked_sub(TRAILER as u64).filter(|end| *end >= MAGIC.len() as u64);
        let end = end.ok_or_else(|| wrong("it is too short"))?;
        self.file.read_exact_at(&mut trailer, end).at("reading", &self.path)?;
        let mut magic = [0; 8];
        self.file.read_exact_at(&mut magic, 0).at("reading", &self.path)?;
        if &magic != MAGIC {
            return Err(wrong("its beginning is not that of a pack"));
        }
        let range = footer_range(&trailer, len).map_err(wrong)?;
        let mut footer = vec![0; (range.end - range.start) as usize];
        self.file.read_exact_at(&mut footer, range.start).at("reading", &self.path)?;
        entries(id, &footer, range.start).map_err(wrong)
    }

    /// The bytes of a chunk as they are stored.
    fn stored(&self, entry: &Entry) -> Result<Vec<u8>> {
        // Before there is room made for it: an index may say what it likes.
        if entry.offset.checked_add(entry.stored.into()).is_none_or(|end| end > self.length) {
            return Err(self.wrong(format!("it ends inside chunk {}", entry.id)));
        }
        let mut stored = vec![0; entry.stored as usize];
        self.file.read_exact_at(&mut stored, entry.offset).map_err(|why| match why.kind() {
            // Shorter than when it was opened.
            std::io::ErrorKind::UnexpectedEof => self.wrong(format!("it ends inside chunk {}", entry.id)),
            _ => Error::io("reading", &self.path, why),
        })?;
        Ok(stored)
    }

    /// The bytes of a chunk as they are stored, after a check that they stand for it.
    pub(crate) fn checked(&self, entry: &Entry) -> Result<Vec<u8>> {
        let stored = self.stored(entry)?;
        unpack(entry, &stored).map_err(|what| self.wrong(what))?;
        Ok(stored)
    }

    /// A chunk, checked against its name.
    pub(crate) fn read(&self, entry: &Entry) -> Result<Vec<u8>> {
        let stored = self.stored(entry)?;
        match unpack(entry, &stored).map_err(|what| self.wrong(what))? {
            Cow::Owned(raw) => Ok(raw),
            Cow::Borrowed(_) => Ok(stored),
        }
    }
}
