//! Which pack a chunk is in. The index is read from the packs' footers; the file `index` only saves reading them all, and is
//! made again when it is missing or wrong.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::pack::{Entry, Pack};
use crate::error::At as _;
use crate::tree::Reader;
use crate::{Error, Id, Result, seal};

const MAGIC: &[u8] = b"palisade index 1\n";
/// How many packs the file may lack before it is written again.
const BEHIND: usize = 16;

/// Where every chunk is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Index {
    pub(crate) packs: Vec<Id>,
    names: HashSet<Id>,
    /// Packs whose footer cannot be read: what is in them is not known.
    pub(crate) broken: Vec<(Id, String)>,
    pub(crate) chunks: HashMap<Id, (u32, Entry)>,
}

impl Index {
    /// Reads which packs there are and what is in them, with as much as possible taken from `old`.
    pub(crate) fn read(store: &Path, old: Option<&Index>) -> Result<Index> {
        let packs = store.join("packs");
        let mut ids = names(&packs)?;
        ids.sort_unstable();
        let mut known = match old {
            Some(old) => old.by_pack(),
            None => load(&store.join("index")).unwrap_or_default(),
        };
        let mut index = Index::default();
        let mut missing = 0;
        for id in ids {
            let entries = match known.remove(&id) {
                Some(entries) => entries,
                None => {
                    missing += 1;
                    match Pack::open(&packs, &id).and_then(|pack| pack.entries(&id)) {
                        Ok(entries) => entries,
                        // Checkpoints that need nothing of it can still be used.
                        Err(Error::Corrupt { what, .. }) => {
                            index.names.insert(id);
                            index.broken.push((id, what));
                            continue;
                        }
                        Err(why) => return Err(why),
                    }
                }
            };
            index.insert(id, entries);
        }
        if missing > BEHIND && old.is_none() {
            // Only speed is lost when it cannot be written.
            let _ = index.save(store);
        }
        Ok(index)
    }

    /// Whether the packs are still the ones that this index was read from.
    pub(crate) fn is_of(&self, store: &Path) -> Result<bool> {
        let names = names(&store.join("packs"))?;
        Ok(names.len() == self.names.len() && names.iter().all(|name| self.names.contains(name)))
    }

    pub(crate) fn insert(&mut self, pack: Id, entries: Vec<Entry>) {
        let was_broken =
            self.broken.iter().position(|(id, _)| *id == pack).map(|place| self.broken.remove(place)).is_some();
        if !self.names.insert(pack) && !was_broken {
            return;
        }
        let place = u32::try_from(self.packs.len()).expect("there are fewer packs than 2^32");
        self.packs.push(pack);
        for entry in entries {
            self.chunks.entry(entry.id).or_insert((place, entry));
        }
    }

    /// The chunks that are taken from each pack; one that none is taken from is not in it.
    pub(crate) fn by_pack(&self) -> HashMap<Id, Vec<Entry>> {
        let mut known: HashMap<Id, Vec<Entry>> = HashMap::new();
        for (pack, entry) in self.chunks.values() {
            known.entry(self.packs[*pack as usize]).or_default().push(*entry);
        }
        known
    }

    /// Whether what is known of a pack is what its footer says; nothing is as good. A chunk of several packs is taken from one of
    /// them. `known` are the chunks that are taken from this one.
    pub(crate) fn agrees(&self, pack: &Id, known: &[Entry], footer: &[Entry]) -> bool {
        if !self.names.contains(pack) || self.broken.iter().any(|(id, _)| id == pack) {
            return true;
        }
        let own: HashMap<&Id, &Entry> = footer.iter().map(|entry| (&entry.id, entry)).collect();
        known.iter().all(|entry| own.get(&entry.id) == Some(&entry))
            && footer.iter().all(|entry| self.chunks.contains_key(&entry.id))
    }

    /// Writes the file that saves reading the footers.
    pub(crate) fn save(&self, store: &Path) -> Result<()> {
        let mut bytes = MAGIC.to_vec();
        let mut packs: Vec<(&Id, Vec<&Entry>)> = self.packs.iter().map(|pack| (pack, Vec::new())).collect();
        for (place, entry) in self.chunks.values() {
            packs[*place as usize].1.push(entry);
        }
        for (pack, entries) in packs {
            bytes.extend_from_slice(&pack.0);
            bytes.extend_from_slice(&(entries.len() as u64).to_le_bytes());
            entries.into_iter().for_each(|entry| entry.encode(&mut bytes));
        }
        super::write_whole(store, "index", &seal::close(bytes), super::Durable::No)
    }
}

/// The names of the packs in a directory, which holds nothing else.
pub(super) fn names(packs: &Path) -> Result<Vec<Id>> {
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(packs).at("reading", packs)? {
        let name = entry.at("reading", packs)?.file_name();
        let id = name.to_str().and_then(|name| name.parse().ok());
        ids.push(id.ok_or_else(|| Error::corrupt(&packs.join(&name), "it is no pack"))?);
    }
    Ok(ids)
}

fn load(path: &Path) -> Option<HashMap<Id, Vec<Entry>>> {
    let bytes = std::fs::read(path).ok()?;
    let mut reader = Reader::new(seal::open(&bytes)?.strip_prefix(MAGIC)?);
    let mut packs = HashMap::new();
    while reader.end().is_err() {
        let pack = reader.id().ok()?;
        let count = u64::from_le_bytes(reader.array().ok()?);
        let mut entries = Vec::new();
        for _ in 0..count {
            entries.push(Entry::decode(&mut reader).ok()?);
        }
        packs.insert(pack, entries);
    }
    Some(packs)
}
