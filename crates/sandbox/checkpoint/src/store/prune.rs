//! Removing checkpoints by policy, and what then nobody needs.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, SystemTime};

use super::index::Index;
use super::pack::{ENTRY, Entry, Pack, PackWriter};
use super::{Checkpoint, Store, sync_dir};
use crate::error::At as _;
use crate::tree;
use crate::{Error, Id, Result, descent, layer};

/// Packs below this size are put together when there are many of them.
const SMALL: u64 = 1 << 20;
const MANY: usize = 32;
/// A pack that is made from others is at most about this long.
const LARGE: u64 = 256 << 20;

/// What [`Store::prune`] keeps: everything that at least one of these says. Checkpoints whose layer somebody holds are kept
/// whatever it says.
#[derive(Debug, Clone, Default)]
pub struct Retention {
    /// The newest ones, so many.
    pub last: usize,
    /// Those with a label.
    pub labelled: bool,
    /// Those that are younger than this at `now`.
    pub younger: Option<Duration>,
    /// The present time.
    pub now: Option<SystemTime>,
    /// Those that the caller needs.
    pub live: BTreeSet<Id>,
}

/// What [`Store::prune`] removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Checkpoints.
    pub checkpoints: Vec<Id>,
    /// Materialised layers.
    pub layers: u64,
    /// Bytes of packs.
    pub bytes: u64,
}

impl Retention {
    fn keeps(&self, place: usize, record: &Checkpoint) -> bool {
        let young = || {
            let age = self.now?.duration_since(record.created()).unwrap_or_default();
            Some(age < self.younger?)
        };
        place < self.last
            || (self.labelled && record.label.is_some())
            || self.live.contains(&record.id)
            || young().unwrap_or(false)
    }
}

impl Store {
    /// Removes the checkpoints that the policy does not keep, the layers and chunks that then nobody needs, and rewrites packs
    /// of which less than a half is needed. It waits for whoever uses the store, and they for it. When the content of
    /// a checkpoint that stays cannot be read, nothing is removed.
    pub fn prune(&self, keep: &Retention) -> Result<Pruned> {
        let _lock = self.exclusive()?;
        let index = self.fresh_index()?;
        let layers = self.path("layers");
        let dir = descent::open_dir(&layers).at("opening", &layers)?;
        let mut unused = Vec::new();
        let mut held = HashSet::new();
        for name in descent::names(&dir).at("reading", &layers)? {
            let Some(id) = std::str::from_utf8(&name).ok().and_then(|name| name.parse::<Id>().ok()) else { continue };
            if layer::is_held(&dir, &name).at("locking", &layers)? {
                held.insert(id);
            } else {
                unused.push((id, name));
            }
        }
        let (kept, removed): (Vec<_>, Vec<_>) = self
            .list()?
            .into_iter()
            .enumerate()
            .partition(|(place, record)| keep.keeps(*place, record) || held.contains(&record.id));
        let mut live = HashSet::new();
        for (_, record) in &kept {
            self.reach(&index, &record.id, &mut live)?;
        }

        let mut pruned = Pruned::default();
        for (_, record) in removed {
            self.remove_record(&record.id)?;
            pruned.checkpoints.push(record.id);
        }
        // Their chunks go only when they are gone for good.
        sync_dir(&self.path("checkpoints"))?;
        let kept: HashSet<Id> = kept.into_iter().map(|(_, record)| record.id).collect();
        for (id, name) in unused {
            if !kept.contains(&id) {
                // Renamed first, so that no half of it is ever taken for a layer.
                let gone = self.temporary();
                let path = layers.join(id.to_string());
                std::fs::rename(&path, &gone).at("removing", &path)?;
                let tmp = self.path("tmp");
                let gone = gone.file_name().map(std::ffi::OsStr::as_encoded_bytes).unwrap_or(&name);
                descent::remove_tree(descent::open_dir(&tmp).at("opening", &tmp)?, gone).at("removing", &path)?;
                pruned.layers += 1;
            }
        }
        self.forget();
        pruned.bytes = self.repack(&index, &live)?;
        Ok(pruned)
    }

    /// Adds every chunk that a checkpoint needs, nodes included.
    pub(crate) fn reach(&self, index: &Index, id: &Id, live: &mut HashSet<Id>) -> Result<()> {
        let fetch = |node: &Id| {
            live.insert(*node);
            self.read(index, node)
        };
        let wrong =
            |node: &Id, what: &str| Error::corrupt(&self.path("packs"), format!("chunk {node} is no node: {what}"));
        let tree = tree::decode(id, tree::Limits::default(), fetch, wrong)?;
        live.extend(tree.chunks());
        Ok(())
    }

    /// Removes packs without a live chunk and rewrites those with few. Gives by how many bytes the packs shrank.
    fn repack(&self, index: &Index, live: &HashSet<Id>) -> Result<u64> {
        let mut needed: HashMap<u32, Vec<Entry>> = HashMap::new();
        for (id, (place, entry)) in &index.chunks {
            if live.contains(id) {
                needed.entry(*place).or_default().push(*entry);
            }
        }
        let packs = self.path("packs");
        let mut rewrite: Vec<(Id, Vec<Entry>)> = Vec::new();
        let mut small = Vec::new();
        let mut before = 0;
        for (place, id) in (0u32..).zip(&index.packs) {
            let size = Pack::open(&packs, id)?.len();
            let entries = needed.remove(&place).unwrap_or_default();
            let used: u64 = entries.iter().map(|entry| u64::from(entry.stored)).sum();
            if used < size.saturating_sub((ENTRY * entries.len()) as u64) / 2 {
                before += size;
                rewrite.push((*id, entries));
            } else if size < SMALL {
                small.push((*id, entries, size));
            }
        }
        if small.len() >= MANY {
            for (id, entries, size) in small {
                before += size;
                rewrite.push((id, entries));
            }
        }
        if rewrite.is_empty() {
            return Ok(0);
        }
        let mut after = 0;
        let mut made: HashSet<Id> = HashSet::new();
        let mut writer: Option<PackWriter> = None;
        let mut finish = |writer: PackWriter| -> Result<()> {
            let length = writer.len();
            made.insert(writer.finish(&packs)?.0);
            after += length;
            Ok(())
        };
        for (id, entries) in &mut rewrite {
            entries.sort_by_key(|entry| entry.offset);
            if entries.is_empty() {
                continue;
            }
            let pack = Pack::open(&packs, id)?;
            for entry in entries {
                // What is broken must not be carried on as if it were whole.
                let stored = pack.checked(entry)?;
                if writer.as_ref().is_some_and(|it| it.len() > LARGE) {
                    writer.take().map_or(Ok(()), &mut finish)?;
                }
                let into = match &mut writer {
                    Some(writer) => writer,
                    none => none.insert(PackWriter::create(self.temporary())?),
                };
                into.add(entry.id, entry.len, &stored)?;
            }
        }
        writer.map_or(Ok(()), &mut finish)?;
        sync_dir(&packs)?;
        for (id, _) in &rewrite {
            // The same chunks in the same order make the same pack.
            if !made.contains(id) {
                let path = packs.join(id.to_string());
                std::fs::remove_file(&path).at("removing", &path)?;
            }
        }
        sync_dir(&packs)?;
        let index = self.fresh_index()?;
        index.save(&self.dir)?;
        Ok(before.saturating_sub(after))
    }
}
