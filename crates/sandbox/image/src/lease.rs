//! Leases: what is in use is not pruned, whoever uses it.

use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, FlockOperation, Timespec, Timestamps, UTIME_NOW};
use rustix::io::Errno;

use crate::digest::Digest;
use crate::error::Error;
use crate::image::Image;
use crate::store::{self, Lock, Store};

/// Keeps an image and its layers in the store until it is dropped or its process ends.
#[derive(Debug)]
pub struct Lease {
    image: Digest,
    layers: Vec<PathBuf>,
    _locks: Vec<Lock>,
}

impl Lease {
    /// The digest of the image.
    pub fn image(&self) -> Digest {
        self.image
    }

    /// The directories for an overlay mount with `userxattr`, top first. They must not be written to.
    pub fn layers(&self) -> &[PathBuf] {
        &self.layers
    }
}

impl Store {
    /// Keeps an image in the store for as long as the lease lives, and notes that it was used.
    ///
    /// # Errors
    /// When the image, or a part of it, is no longer there.
    pub fn lease(&self, image: &Image) -> Result<Lease, Error> {
        let digest = image.digest();
        // A prune may not come between the look and the lock.
        let _lock = self.lock()?;
        let damaged = |what: String| Error::Damaged { image: digest, what };
        let record = self.image_path(digest);
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let used = Timestamps { last_access: now, last_modification: now };
        match rustix::fs::utimensat(CWD, &record, &used, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Err(damaged("its record".to_owned())),
            Err(cause) => return Err(Error::store("noting the use of an image", &record)(cause.into())),
        }
        let lock = store::lock_file(&self.image_lock_path(digest), FlockOperation::LockShared)?;
        let mut locks = Vec::from_iter(lock);
        for layer in &image.record().layers {
            locks.push(self.keep_layer(*layer)?.ok_or_else(|| damaged(format!("layer {layer}")))?);
        }
        Ok(Lease { image: digest, layers: image.layers(), _locks: locks })
    }

    /// Keeps one layer in the store; None when it is not there. The caller holds the store's lock.
    pub(crate) fn keep_layer(&self, diff_id: Digest) -> Result<Option<Lock>, Error> {
        let path = self.layer_path(diff_id);
        if !path.is_dir() {
            return Ok(None);
        }
        // Nobody locks a layer for itself alone but who holds the store's lock, so this does not wait.
        store::lock_directory(&path, FlockOperation::LockShared)
    }
}
