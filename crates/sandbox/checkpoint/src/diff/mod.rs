//! What differs between two checkpoints, or between a checkpoint and its base.

mod patch;
mod view;

use std::path::Path;

use serde::Serialize;

use crate::store::Store;
use crate::{Error, Id, LayerPath, Result};
use view::{Found, Side};

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// It was not there.
    Added,
    /// It is no longer there.
    Removed,
    /// Its content is another.
    Modified,
    /// Only its permissions or owner are others.
    Mode,
    /// It was of another kind: a file became a directory, or the like.
    Type,
}

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, socket or pipe of the base.
    Other,
}

/// One side of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Version {
    /// What it is.
    pub kind: EntryKind,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// A file's size, or the length of a link's target; 0 for anything else. In bytes.
    pub size: u64,
}

/// A path that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Where.
    pub path: LayerPath,
    /// What became of it.
    pub kind: ChangeKind,
    /// What it was; `None` when it was not there, or hid in a base that was not given.
    pub before: Option<Version>,
    /// What it is; `None` when it is not there.
    pub after: Option<Version>,
}

impl Store {
    /// What changed from `before` to `after`, sorted by path; `None` is the base. The base's directory is needed to tell what it
    /// held: without it everything in a layer counts as added, and what is hidden as removed.
    pub fn diff(&self, before: Option<&Id>, after: &Id, base: Option<&Path>) -> Result<Vec<Change>> {
        let _lock = self.shared()?;
        let compared = self.compare(before, after, base)?;
        Ok(compared.into_iter().map(|(change, _)| change).collect())
    }

    /// The same as a patch: a unified diff for text, a line that says so for anything else. Paths are as `git apply` takes them.
    pub fn patch(&self, before: Option<&Id>, after: &Id, base: Option<&Path>) -> Result<Vec<u8>> {
        let _lock = self.shared()?;
        let index = self.fresh_index()?;
        let base = base.map(view::Base::open).transpose()?;
        let mut patch = Vec::new();
        for (change, found) in self.compared(before, after, base.as_ref())? {
            patch::write(self, &index, base.as_ref(), &change, &found, &mut patch)?;
        }
        Ok(patch)
    }

    fn compare(
        &self,
        before: Option<&Id>,
        after: &Id,
        base: Option<&Path>,
    ) -> Result<Vec<(Change, [Option<Found>; 2])>> {
        let base = base.map(view::Base::open).transpose()?;
        self.compared(before, after, base.as_ref())
    }

    fn compared(
        &self,
        before: Option<&Id>,
        after: &Id,
        base: Option<&view::Base>,
    ) -> Result<Vec<(Change, [Option<Found>; 2])>> {
        let index = self.fresh_index()?;
        let new = self.show(after)?;
        let before = match before {
            None => None,
            Some(id) => {
                let old = self.show(id)?;
                if old.base != new.base {
                    return Err(Error::Bases(old.base, new.base));
                }
                Some(self.tree(&index, id)?)
            }
        };
        let after = self.tree(&index, after)?;
        let sides = [Side::new(before.as_deref()), Side::new(Some(&after))];
        let mut changes = view::compare(self, &index, sides, base)?;
        changes.sort_by(|a, b| a.0.path.cmp(&b.0.path));
        Ok(changes)
    }
}
