//! What is known of a checkpoint besides its content, in a file of its own: a checkpoint exists when its record does.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{Durable, Store};
use crate::error::At as _;
use crate::tree::{Node, Tree};
use crate::{Error, Id, Result, seal};

/// A checkpoint: the state of a workspace, as the layer that its changes are over a base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Its name: the hash of its content, of the base's name, and of nothing else.
    pub id: Id,
    /// The name that the caller gave the directory below the layer.
    pub base: String,
    /// The checkpoint that the session was started from, if it was from one.
    pub parent: Option<Id>,
    /// When it was taken, in milliseconds since 1970, UTC.
    pub created_ms: u64,
    /// What somebody called it; a labelled one is kept by default.
    pub label: Option<String>,
    /// How many entries the layer has.
    pub counts: Counts,
    /// The sizes of the layer's files, together, in bytes. Holes count.
    pub bytes: u64,
}

/// How many entries of each kind a layer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Regular files; each name of one with several counts.
    pub files: u64,
    /// Directories, without the root.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Names of the base that are hidden.
    pub whiteouts: u64,
}

impl Checkpoint {
    pub(crate) fn of(
        id: Id,
        tree: &Tree,
        parent: Option<Id>,
        created: SystemTime,
        label: Option<String>,
    ) -> Checkpoint {
        let mut counts = Counts::default();
        let mut bytes = 0u64;
        for node in tree.dirs.iter().flat_map(|dir| dir.entries.values()) {
            match node {
                Node::Directory(_) => counts.directories += 1,
                Node::File(file) => {
                    counts.files += 1;
                    bytes = bytes.saturating_add(file.content.size());
                }
                Node::Symlink { .. } => counts.symlinks += 1,
                Node::Whiteout => counts.whiteouts += 1,
            }
        }
        let since = created.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let created_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        Checkpoint { id, base: tree.base.clone(), parent, created_ms, label, counts, bytes }
    }

    /// When it was taken.
    pub fn created(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(self.created_ms)).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        seal::text(self)
    }

    pub(crate) fn from_bytes(id: &Id, bytes: &[u8]) -> Result<Checkpoint, String> {
        let record: Checkpoint = seal::record(bytes)?;
        if record.id == *id { Ok(record) } else { Err("it is of another checkpoint".to_owned()) }
    }
}

fn file_name(id: &Id) -> String {
    format!("{id}.json")
}

impl Store {
    pub(crate) fn record_path(&self, id: &Id) -> PathBuf {
        self.path("checkpoints").join(file_name(id))
    }

    pub(crate) fn read_record(&self, id: &Id) -> Result<Option<Checkpoint>> {
        let path = self.record_path(id);
        match std::fs::read(&path) {
            Ok(bytes) => Checkpoint::from_bytes(id, &bytes).map(Some).map_err(|what| Error::corrupt(&path, what)),
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(why) => Err(Error::io("reading", &path, why)),
        }
    }

    /// Makes a record durable. One with the same content keeps its parent and its label, and is as new as this one.
    pub(crate) fn write_record(&self, mut record: Checkpoint) -> Result<Checkpoint> {
        if let Some(old) = self.read_record(&record.id)? {
            record.parent = old.parent;
            record.label = record.label.or(old.label);
            record.created_ms = record.created_ms.max(old.created_ms);
        }
        self.put_record(&record)?;
        Ok(record)
    }

    fn put_record(&self, record: &Checkpoint) -> Result<()> {
        super::write_whole(&self.path("checkpoints"), &file_name(&record.id), &record.to_bytes(), Durable::Yes)
    }

    /// The names of all checkpoints, in no order.
    pub(crate) fn ids(&self) -> Result<Vec<Id>> {
        let dir = self.path("checkpoints");
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(&dir).at("reading", &dir)? {
            let name = entry.at("reading", &dir)?.file_name();
            // What is being written begins with a dot.
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let id = name.to_str().and_then(|name| name.strip_suffix(".json")?.parse().ok());
            ids.push(id.ok_or_else(|| Error::corrupt(&dir.join(&name), "it is no record"))?);
        }
        Ok(ids)
    }

    /// All checkpoints, the newest first.
    pub fn list(&self) -> Result<Vec<Checkpoint>> {
        let mut records = Vec::new();
        for id in self.ids()? {
            records.extend(self.read_record(&id)?);
        }
        records.sort_by_key(|record| (std::cmp::Reverse(record.created_ms), record.id));
        Ok(records)
    }

    /// One checkpoint.
    pub fn show(&self, id: &Id) -> Result<Checkpoint> {
        self.read_record(id)?.ok_or_else(|| Error::Unknown(id.to_string()))
    }

    /// The checkpoint whose name begins so, or whose label this is.
    pub fn find_named(&self, text: &str) -> Result<Checkpoint> {
        let mut found = self.list()?;
        let labelled = |it: &Checkpoint| it.label.as_deref() == Some(text);
        if found.iter().any(labelled) {
            found.retain(labelled);
        } else {
            found.retain(|it| text.len() >= 4 && it.id.to_string().starts_with(text));
        }
        match found.len() {
            0 => Err(Error::Unknown(text.to_owned())),
            1 => Ok(found.remove(0)),
            _ => Err(Error::Ambiguous(text.to_owned())),
        }
    }

    /// Gives a checkpoint a label, or takes it away.
    pub fn label(&self, id: &Id, label: Option<&str>) -> Result<Checkpoint> {
        let _lock = self.exclusive()?;
        let mut record = self.show(id)?;
        record.label = label.map(str::to_owned);
        self.put_record(&record)?;
        Ok(record)
    }

    pub(crate) fn remove_record(&self, id: &Id) -> Result<()> {
        let path: &Path = &self.record_path(id);
        std::fs::remove_file(path).at("removing", path)
    }
}
