//! Layers on disk: a checkpoint as the directory that overlayfs takes as a lower one. A layer is made once and never written
//! again, so that any number of sandboxes share it; each holds a [`Layer`] while it does.

mod build;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, RenameFlags};
use rustix::io::Errno;

use crate::error::At as _;
use crate::store::{Store, flock};
use crate::{Id, Ownership, Result, descent};

/// A materialised layer, which stays as long as this is held. Keep it for as long as the layer is mounted.
#[derive(Debug, Clone)]
pub struct Layer {
    path: PathBuf,
    id: Id,
    // A shared lock on the directory: other processes see it, and it goes with this process whatever happens to it.
    _held: Arc<OwnedFd>,
}

impl Layer {
    /// The directory, to be a `lowerdir` of an overlay that is mounted with `userxattr`. Nothing may be written there.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The checkpoint.
    pub fn id(&self) -> &Id {
        &self.id
    }
}

/// Whether a layer is held by anybody.
pub(crate) fn is_held(layers: impl AsFd, name: &[u8]) -> io::Result<bool> {
    let dir = descent::open_dir_at(layers, name)?;
    Ok(!flock(&dir, FlockOperation::NonBlockingLockExclusive)?)
}

impl Store {
    /// The layer of a checkpoint as a directory in overlayfs's format; made when it is not there yet. To restore a checkpoint,
    /// or to fork it any number of times, mount each sandbox's own empty upper directory over this one: nothing is copied.
    ///
    /// Every chunk is checked while it is written. A layer that is there already has the owners that its maker asked for. With [`Ownership::Flat`] all files belong to the caller.
    pub fn materialise(&self, id: &Id, ownership: Ownership) -> Result<Layer> {
        let _lock = self.shared()?;
        self.show(id)?;
        let path = self.path("layers").join(id.to_string());
        if let Some(layer) = hold(id, &path)? {
            return Ok(layer);
        }
        let index = self.fresh_index()?;
        let tree = self.tree(&index, id)?;
        let made = self.temporary();
        let staging = self.temporary();
        let written = build::build(self, &index, &tree, ownership, &made, &staging);
        self.discard(&staging)?;
        if let Err(why) = written {
            // The first error says more than one about what it left.
            let _ = self.discard(&made);
            return Err(why);
        }
        // An empty layer that somebody holds would be replaced by a plain rename.
        let flags = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(rustix::fs::CWD, &made, rustix::fs::CWD, &path, flags) {
            Ok(()) => {}
            // Another thread or process was faster.
            Err(Errno::EXIST | Errno::NOTEMPTY) => self.discard(&made)?,
            Err(why) => return Err(why).at("naming", &made),
        }
        let layer = hold(id, &path)?;
        layer.ok_or(Errno::NOENT).at("opening", &path)
    }

    fn discard(&self, temporary: &Path) -> Result<()> {
        let tmp = self.path("tmp");
        let dir = descent::open_dir(&tmp).at("opening", &tmp)?;
        let name = temporary.file_name().expect("it has a name of its own in that directory");
        descent::remove_tree(dir, name.as_encoded_bytes()).at("removing", temporary)
    }
}

/// Holds a layer if it is there. The caller holds the store's lock, so that nobody removes it meanwhile.
fn hold(id: &Id, path: &Path) -> Result<Option<Layer>> {
    let dir = match descent::open_dir(path) {
        Ok(dir) => dir,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(why) => return Err(why).at("opening", path),
    };
    flock(&dir, FlockOperation::LockShared).at("locking", path)?;
    Ok(Some(Layer { path: path.to_owned(), id: *id, _held: Arc::new(dir) }))
}

/// Makes a file with no name that stays, for [`build`].
pub(super) fn create_in(dir: impl AsFd, name: &[u8]) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?.into())
}
