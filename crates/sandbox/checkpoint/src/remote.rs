//! A store on another machine: `packs/<id>` and `checkpoints/<id>.json` in anything that `object_store` can speak to. It is trusted
//! with nothing but keeping: what comes back is checked like any other read.

use std::collections::{HashMap, HashSet};
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;

use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload};

use crate::error::At as _;
use crate::store::pack::{self, Entry, PackWriter};
use crate::store::{Checkpoint, Store, create_new};
use crate::tree;
use crate::{Error, Id, Result};

/// Packs that are sent are at most about this long: 32 MiB.
const SENT: u64 = 32 << 20;
/// Packs above this length are not fetched: 2 GiB.
const FETCHED: u64 = 2 << 30;

/// Where the checkpoints are in an object store.
#[derive(Debug, Clone, Copy)]
pub struct Remote<'a> {
    objects: &'a dyn ObjectStore,
    prefix: &'a str,
}

/// What [`Store::push`] or [`Store::pull`] moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moved {
    /// Chunks.
    pub chunks: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Opens the object store of an address, and gives what goes before the names in it: a directory of this machine, or
/// `s3://BUCKET/PREFIX` where that is built in. S3's endpoint, region and credentials come from the usual `AWS_` variables.
pub fn open_objects(address: &str) -> Result<(Box<dyn ObjectStore>, String)> {
    if let Some((scheme, rest)) = address.split_once("://") {
        #[cfg(feature = "s3")]
        if scheme == "s3" {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let builder = object_store::aws::AmazonS3Builder::from_env().with_bucket_name(bucket);
            return Ok((Box::new(builder.build().map_err(failed)?), prefix.to_owned()));
        }
        return Err(failed(format!(
            "{scheme}://{rest}: not supported: {scheme}; name a directory or s3://BUCKET/PREFIX"
        )));
    }
    let path = std::path::Path::new(address);
    // What is in workspaces is nobody else's; a directory that is there is as its owner wants it.
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).at("making", path)?;
    Ok((Box::new(object_store::local::LocalFileSystem::new_with_prefix(path).map_err(failed)?), String::new()))
}

fn failed(why: impl std::fmt::Display) -> Error {
    Error::Remote(why.to_string())
}

impl<'a> Remote<'a> {
    /// The checkpoints below `prefix`, which may be empty.
    pub fn new(objects: &'a dyn ObjectStore, prefix: &'a str) -> Remote<'a> {
        Remote { objects, prefix: prefix.trim_matches('/') }
    }

    fn path(&self, name: &str) -> Path {
        Path::from(format!("{}/{name}", self.prefix))
    }

    fn record(&self, id: &Id) -> Path {
        self.path(&format!("checkpoints/{id}.json"))
    }

    /// The names and lengths of its packs.
    async fn packs(&self) -> Result<Vec<(Id, u64)>> {
        let prefix = self.path("packs");
        let found: Vec<_> = self.objects.list(Some(&prefix)).try_collect().await.map_err(failed)?;
        let name = |meta: object_store::ObjectMeta| Some((meta.location.filename()?.parse().ok()?, meta.size));
        // Something else in there is none of ours.
        Ok(found.into_iter().filter_map(name).collect())
    }

    /// What is in one of its packs.
    async fn entries(&self, id: &Id, len: u64) -> Result<Vec<Entry>> {
        let path = self.path(&format!("packs/{id}"));
        let wrong = |what: &str| failed(format!("{path} is corrupt: {what}"));
        let range = |range| async { self.objects.get_range(&path, range).await.map_err(failed) };
        let start = len.checked_sub(pack::TRAILER as u64).ok_or_else(|| wrong("it is too short"))?;
        let trailer = range(start..len).await?;
        let trailer = trailer[..].try_into().map_err(|_| wrong("it is too short"))?;
        let place = pack::footer_range(trailer, len).map_err(wrong)?;
        let footer = range(place.clone()).await?;
        pack::entries(id, &footer, place.start).map_err(wrong)
    }

    /// Where every chunk is that it has. Packs that this machine has as well are not asked for.
    async fn chunks(&self, store: &Store) -> Result<HashMap<Id, (Id, u64)>> {
        let index = store.index();
        let mut local: HashMap<Id, Vec<Entry>> = HashMap::new();
        for (place, entry) in index.chunks.values() {
            local.entry(index.packs[*place as usize]).or_default().push(*entry);
        }
        let mut chunks = HashMap::new();
        for (pack, len) in self.packs().await? {
            let entries = match local.remove(&pack) {
                Some(entries) => entries,
                None => self.entries(&pack, len).await?,
            };
            chunks.extend(entries.into_iter().map(|entry| (entry.id, (pack, len))));
        }
        Ok(chunks)
    }

    /// The checkpoints that it has, in no order.
    pub async fn list(&self) -> Result<Vec<Checkpoint>> {
        let prefix = self.path("checkpoints");
        let found: Vec<_> = self.objects.list(Some(&prefix)).try_collect().await.map_err(failed)?;
        let mut records = Vec::new();
        for meta in found {
            let id = meta.location.filename().and_then(|name| name.strip_suffix(".json")?.parse::<Id>().ok());
            if let Some(id) = id {
                records.extend(self.fetch_record(&id).await?);
            }
        }
        Ok(records)
    }

    async fn fetch_record(&self, id: &Id) -> Result<Option<Checkpoint>> {
        let path = self.record(id);
        match self.objects.get(&path).await {
            Ok(found) if found.meta.size > 1 << 20 => Err(failed(format!("{path} is too large for a record"))),
            Ok(found) => {
                let bytes = found.bytes().await.map_err(failed)?;
                Checkpoint::from_bytes(id, &bytes)
                    .map(Some)
                    .map_err(|what| failed(format!("{path} is corrupt: {what}")))
            }
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(why) => Err(failed(why)),
        }
    }
}

impl Store {
    /// Sends a checkpoint: the chunks that the other store does not have, and its record last. Files are read on the calling
    /// thread between the requests.
    pub async fn push(&self, id: &Id, remote: Remote<'_>) -> Result<Moved> {
        let _lock = self.shared()?;
        let record = self.show(id)?;
        let index = self.fresh_index()?;
        let mut needed = HashSet::new();
        self.reach(&index, id, &mut needed)?;
        let there = remote.chunks(self).await?;
        needed.retain(|chunk| !there.contains_key(chunk));
        // In the order in which they are stored, so that equal pushes send equal packs.
        let mut places: Vec<(u32, Entry)> = Vec::new();
        for chunk in &needed {
            let missing = || Error::MissingChunk { chunk: *chunk, store: self.dir().to_owned() };
            places.push(*index.chunks.get(chunk).ok_or_else(missing)?);
        }
        places.sort_by_key(|(place, entry)| (index.packs[*place as usize], entry.offset));
        let mut moved = Moved::default();
        let mut waiting = places.into_iter().peekable();
        while waiting.peek().is_some() {
            let path = self.temporary();
            let mut writer = PackWriter::create(path)?;
            while let Some((_, entry)) = waiting.next_if(|_| writer.len() < SENT) {
                let (pack, entry) = self.find(&index, &entry.id)?;
                // What is broken here must not be kept elsewhere as if it were whole.
                writer.add(entry.id, entry.len, &pack.checked(&entry)?)?;
                moved.chunks += 1;
            }
            let tmp = self.path("tmp");
            let (pack, _) = writer.finish(&tmp)?;
            let made = tmp.join(pack.to_string());
            let bytes = std::fs::read(&made).at("reading", &made)?;
            std::fs::remove_file(&made).at("removing", &made)?;
            moved.bytes += bytes.len() as u64;
            let path = remote.path(&format!("packs/{pack}"));
            remote.objects.put(&path, PutPayload::from(bytes)).await.map_err(failed)?;
        }
        let record = Bytes::from(record.to_bytes());
        remote.objects.put(&remote.record(id), PutPayload::from(record)).await.map_err(failed)?;
        Ok(moved)
    }

    /// Fetches a checkpoint: the packs with chunks that this store does not have, each checked whole, and the record last.
    pub async fn pull(&self, id: &Id, remote: Remote<'_>) -> Result<(Checkpoint, Moved)> {
        let record = remote.fetch_record(id).await?.ok_or_else(|| Error::Unknown(id.to_string()))?;
        let _lock = self.shared()?;
        self.fresh_index()?;
        let there = remote.chunks(self).await?;
        let mut moved = Moved::default();
        loop {
            let index = self.index();
            let mut wanted = HashSet::new();
            // Nodes name the next ones, so that each round can see further.
            let fetch = |node: &Id| {
                if !index.chunks.contains_key(node) {
                    wanted.insert(*node);
                }
                self.read(&index, node)
            };
            let wrong = |node: &Id, what: &str| failed(format!("chunk {node} of checkpoint {id} is no node: {what}"));
            let decoded = tree::decode(id, tree::Limits::default(), fetch, wrong);
            let tree = match decoded {
                Ok(tree) => Some(tree),
                // A node that is not here yet, or in a pack that is broken here.
                Err(_) if !wanted.is_empty() => None,
                Err(why) => return Err(why),
            };
            if let Some(tree) = &tree {
                wanted.extend(tree.chunks().filter(|chunk| !index.chunks.contains_key(chunk)));
                if wanted.is_empty() {
                    let mut checked = Checkpoint::of(*id, tree, record.parent, record.created(), record.label);
                    checked.parent = checked.parent.filter(|parent| parent != id);
                    return Ok((self.write_record(checked)?, moved));
                }
            }
            drop(index);
            let mut packs = HashSet::new();
            for chunk in wanted {
                let place =
                    there.get(&chunk).ok_or_else(|| failed(format!("it does not have chunk {chunk} of {id}")))?;
                packs.insert(*place);
            }
            for (pack, len) in packs {
                let chunks = self.fetch_pack(remote, &pack, len).await?;
                moved.chunks += chunks;
                moved.bytes += len;
            }
        }
    }

    async fn fetch_pack(&self, remote: Remote<'_>, id: &Id, len: u64) -> Result<u64> {
        if len > FETCHED {
            return Err(Error::Limit { what: "the size of a pack", limit: FETCHED });
        }
        let path = remote.path(&format!("packs/{id}"));
        let bytes = remote.objects.get(&path).await.map_err(failed)?.bytes().await.map_err(failed)?;
        let wrong = |what: String| failed(format!("{path} is corrupt: {what}"));
        let entries = pack::entries_of(id, &bytes).map_err(|what| wrong(what.to_owned()))?;
        for entry in &entries {
            let start = usize::try_from(entry.offset).map_err(failed)?;
            pack::unpack(entry, &bytes[start..start + entry.stored as usize]).map_err(wrong)?;
        }
        let made = self.temporary();
        let packs = self.path("packs");
        let written = (|| {
            let mut file = create_new(&made)?;
            file.write_all(&bytes).at("writing", &made)?;
            rustix::fs::fdatasync(&file).at("writing", &made)?;
            std::fs::rename(&made, packs.join(id.to_string())).at("naming", &made)
        })();
        if written.is_err() {
            // What could not be written whole is of no use.
            let _ = std::fs::remove_file(&made);
        }
        written?;
        let count = entries.len() as u64;
        self.enter(*id, entries)?;
        Ok(count)
    }
}
