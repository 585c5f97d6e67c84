//! Turning content into chunks of one new pack. Several threads may do so at once.

use std::io::{self, Read};
use std::sync::{Arc, Mutex};

use fastcdc::v2020::FastCDC;

use crate::store::index::Index;
use crate::store::pack::{MAX_CHUNK, PackWriter, Packer};
use crate::store::{Store, lock};
use crate::tree::{self, Content, Extent, INLINE, Tree};
use crate::{Error, Id, Result};

/// Chunks are cut where their content says so, between these lengths.
const MIN: usize = 16 * 1024;
const AVERAGE: usize = 64 * 1024;
const MAX: usize = 256 * 1024;
/// What is read at once; at least twice the longest chunk.
const WINDOW: usize = 1 << 20;

/// A pack that is being filled.
pub(crate) struct Ingest<'s> {
    store: &'s Store,
    index: Arc<Index>,
    pack: Mutex<PackWriter>,
}

/// What each thread that fills a pack works with.
pub(crate) struct Scratch {
    packer: Packer,
    packed: Vec<u8>,
    window: Vec<u8>,
}

impl Scratch {
    pub(crate) fn new() -> Scratch {
        Scratch { packer: Packer::new(), packed: Vec::new(), window: Vec::new() }
    }
}

impl<'s> Ingest<'s> {
    /// The caller holds the store's lock.
    pub(crate) fn new(store: &'s Store, index: Arc<Index>) -> Result<Ingest<'s>> {
        let pack = Mutex::new(PackWriter::create(store.temporary())?);
        Ok(Ingest { store, index, pack })
    }

    /// When this began, on the clock that stamps files.
    pub(crate) fn began(&self) -> Result<(i64, u32)> {
        lock(&self.pack).made()
    }

    /// Whether the store has all chunks of this content.
    pub(crate) fn has(&self, content: &Content) -> bool {
        content.chunks().all(|id| self.index.chunks.contains_key(&id))
    }

    /// Keeps a chunk, unless the store has it.
    pub(crate) fn add(&self, raw: &[u8], packer: &mut Packer, packed: &mut Vec<u8>) -> Result<Id> {
        let id = Id::of(raw);
        if self.index.chunks.contains_key(&id) || !lock(&self.pack).claim(id) {
            return Ok(id);
        }
        let len = u32::try_from(raw.len()).ok().filter(|len| *len <= MAX_CHUNK);
        let len = len.ok_or(Error::Limit { what: "a directory", limit: u64::from(MAX_CHUNK) })?;
        let stored = packer.pack(raw, packed);
        lock(&self.pack).add(id, len, stored)?;
        Ok(id)
    }

    /// Reads `len` bytes and gives them as chunks. The error of the reader is the inner one.
    pub(crate) fn extents(
        &self,
        reader: &mut impl Read,
        len: u64,
        scratch: &mut Scratch,
        extents: &mut Vec<Extent>,
    ) -> Result<io::Result<()>> {
        let Scratch { packer, packed, window } = scratch;
        let mut unread = len;
        let mut filled = 0;
        while unread > 0 || filled > 0 {
            let wanted = usize::try_from(unread).unwrap_or(WINDOW).min(WINDOW - filled);
            if window.len() < filled + wanted {
                window.resize(filled + wanted, 0);
            }
            if let Err(why) = reader.read_exact(&mut window[filled..filled + wanted]) {
                return Ok(Err(why));
            }
            filled += wanted;
            unread -= wanted as u64;
            let cutter = FastCDC::new(&window[..filled], MIN, AVERAGE, MAX);
            let mut start = 0;
            // A cut depends on at most MAX bytes: with fewer at hand it is only right at the very end.
            while start < filled && (unread == 0 || filled - start >= MAX) {
                let (_, end) = cutter.cut(start, filled - start);
                let raw = &window[start..end];
                let id = self.add(raw, packer, packed)?;
                let len = u32::try_from(raw.len()).expect("a chunk of a file is at most MAX long");
                extents.push(Extent::Chunk { id, len });
                start = end;
            }
            window.copy_within(start..filled, 0);
            filled -= start;
        }
        Ok(Ok(()))
    }

    /// Content without holes, of this length.
    pub(crate) fn content(
        &self,
        reader: &mut impl Read,
        len: u64,
        scratch: &mut Scratch,
    ) -> Result<io::Result<Content>> {
        if len <= INLINE {
            let mut bytes = vec![0; usize::try_from(len).expect("it is at most INLINE")];
            return Ok(reader.read_exact(&mut bytes).map(|()| Content::Inline(bytes.into())));
        }
        let mut extents = Vec::new();
        let read = self.extents(reader, len, scratch, &mut extents)?;
        Ok(read.map(|()| Content::Extents(extents)))
    }

    /// Keeps the nodes of a normalised tree, makes everything durable, and gives the tree's name and by how many bytes the
    /// store grew.
    pub(crate) fn finish(self, tree: &Tree, scratch: &mut Scratch) -> Result<(Id, u64)> {
        tree.check()?;
        let id = tree::encode(tree, |bytes| self.add(bytes, &mut scratch.packer, &mut scratch.packed))?;
        let Ingest { store, index, pack } = self;
        drop(index);
        let pack = pack.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        if pack.is_empty() {
            return Ok((id, 0));
        }
        let grown = pack.len();
        let (pack, entries) = pack.finish(&store.path("packs"))?;
        store.enter(pack, entries)?;
        Ok((id, grown))
    }
}
