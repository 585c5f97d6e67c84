//! Reading everything again: every record, every node, every chunk.

use std::collections::HashSet;

use super::Store;
use super::index::Index;
use crate::tree::{Content, Extent};
use crate::{Error, Id, Result};

/// What [`Store::verify`] read.
#[derive(Debug, Default)]
pub struct Verified {
    /// Checkpoints that are whole.
    pub checkpoints: u64,
    /// Chunks whose content is what their name says.
    pub chunks: u64,
    /// Their size, in bytes.
    pub bytes: u64,
    /// What is wrong; empty when the store is whole.
    pub faults: Vec<Fault>,
}

/// Something that is wrong with a store.
#[derive(Debug)]
pub struct Fault {
    /// The checkpoint that is affected; `None` for what no whole record needs.
    pub checkpoint: Option<Id>,
    /// What is wrong: the file and the chunk are named.
    pub error: Error,
}

impl Store {
    /// Reads and checks every pack from its footer on, and whether each checkpoint's chunks are all there. The error is for a
    /// store that cannot be read at all; what is wrong with its content is in the result.
    pub fn verify(&self) -> Result<Verified> {
        let _lock = self.shared()?;
        let mut verified = Verified::default();
        let mut index = Index::default();
        let mut bad = HashSet::new();
        let cached = self.index();
        let (known, mut agrees) = (cached.by_pack(), true);
        let packs = self.path("packs");
        // Not from the cached index: the footers themselves are to be checked.
        for id in super::index::names(&packs)? {
            let opened = super::Pack::open(&packs, &id).and_then(|pack| Ok((pack.entries(&id)?, pack)));
            match opened {
                Ok((entries, pack)) => {
                    let known = known.get(&id).map_or(&[][..], Vec::as_slice);
                    agrees &= cached.agrees(&id, known, &entries);
                    for entry in &entries {
                        match pack.read(entry) {
                            Ok(raw) => {
                                verified.chunks += 1;
                                verified.bytes += raw.len() as u64;
                            }
                            Err(error) => {
                                bad.insert(entry.id);
                                verified.faults.push(Fault { checkpoint: None, error });
                            }
                        }
                    }
                    index.insert(id, entries);
                }
                Err(error) => verified.faults.push(Fault { checkpoint: None, error }),
            }
        }
        if !agrees {
            let error = Error::corrupt(
                &self.path("index"),
                "it says otherwise than the packs; remove it, and it is made again",
            );
            verified.faults.push(Fault { checkpoint: None, error });
        }
        self.forget();
        for id in self.ids()? {
            match self.verify_one(&index, &bad, &id) {
                Ok(()) => verified.checkpoints += 1,
                Err(error) => verified.faults.push(Fault { checkpoint: Some(id), error }),
            }
        }
        Ok(verified)
    }

    fn verify_one(&self, index: &Index, bad: &HashSet<Id>, id: &Id) -> Result<()> {
        self.show(id)?;
        let tree = self.tree(index, id)?;
        for extent in tree.contents().flat_map(Content::extents) {
            let Extent::Chunk { id: chunk, len } = extent else { continue };
            if bad.contains(chunk) {
                // Reading it says what is wrong.
                self.read(index, chunk)?;
            }
            let (pack, entry) = self.find(index, chunk)?;
            if entry.len != *len {
                return Err(pack.wrong(format!("chunk {chunk} is not as long as its file says")));
            }
        }
        Ok(())
    }
}
