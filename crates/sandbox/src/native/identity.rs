//! Whom a sandbox is to the host.
//!
//! Inside, everybody is 1000:1000. Outside, with root, each sandbox has a host user of its own, so that two of them can
//! neither signal each other nor share limits; without root it is the caller, who has nothing else to give.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::{Error, Spec, Status};

/// The first host user for sandboxes; chosen outside of what distributions and subordinate ranges give out.
const FIRST: u32 = 1_879_048_192;
const COUNT: u32 = 1 << 20;
/// The user inside.
pub(super) const INSIDE: u32 = 1000;

static TAKEN: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// A host user, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) own: bool,
}

impl Drop for Identity {
    fn drop(&mut self) {
        if self.own {
            TAKEN.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.uid);
        }
    }
}

/// Whether this process may act for other users.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl Identity {
    /// Chooses a user, and makes the directories that the sandbox may write its own.
    pub(super) fn take(spec: &Spec) -> Result<Identity, Error> {
        if !is_root() {
            let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            return Ok(Identity { uid, gid, own: false });
        }
        let owner = fs::metadata(&spec.workspace).map(|meta| meta.uid()).unwrap_or(0);
        let uid = {
            let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
            // A workspace that was used before keeps its user, so that its files need not be given away again.
            let start = if (FIRST..FIRST + COUNT).contains(&owner) { owner } else { FIRST + std::process::id() % COUNT };
            let free = (0..COUNT).map(|n| FIRST + (start - FIRST + n) % COUNT).find(|uid| !taken.contains(uid));
            let uid = free.ok_or_else(|| Error::Spec("all host users for sandboxes are in use".to_owned()))?;
            taken.insert(uid);
            uid
        };
        let identity = Identity { uid, gid: uid, own: true };
        let memory = spec.memory.iter().map(|mount| mount.host.as_path());
        for path in [spec.workspace.as_path(), &spec.outputs].into_iter().chain(memory) {
            identity.give(path, 0).map_err(|cause| Error::Directory { path: path.to_owned(), cause })?;
        }
        Ok(identity)
    }

    /// Gives a tree to this user. Links are given, not followed. A tree whose top belongs to it already is left alone: it
    /// is given away top last, so that this means that all of it was.
    fn give(&self, path: &Path, depth: usize) -> io::Result<()> {
        let meta = fs::symlink_metadata(path)?;
        if meta.uid() == self.uid && meta.gid() == self.gid && depth == 0 {
            return Ok(());
        }
        if meta.is_dir() && depth < 256 {
            for entry in fs::read_dir(path)? {
                self.give(&entry?.path(), depth + 1)?;
            }
        }
        if meta.uid() != self.uid || meta.gid() != self.gid {
            lchown(path, Some(self.uid), Some(self.gid))?;
        }
        Ok(())
    }

    pub(crate) fn status(&self) -> Status {
        if self.own {
            Status::Enforced(format!("host uid {}", self.uid))
        } else {
            Status::Unavailable("without root every sandbox is the caller's own user on the host".to_owned())
        }
    }
}
