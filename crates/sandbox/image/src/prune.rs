//! Removes what nobody needs: images, then layers and documents that no image names. What is leased stays, whoever leased
//! it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use palisade_api::Timestamp;
use rustix::fs::FlockOperation;
use serde::Serialize;

use crate::digest::Digest;
use crate::error::Error;
use crate::store::{self, Scratch, Store};

/// Which images stay although nobody uses them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keep {
    /// Those that a reference names: what was pulled by tag and not replaced since.
    pub named: bool,
    /// Those that were pulled or used at this time or later.
    pub used_since: Option<Timestamp>,
}

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Images.
    pub images: Vec<Digest>,
    /// Layers.
    pub layers: Vec<Digest>,
    /// Bytes of the removed layers' files.
    pub bytes: u64,
    /// Images that were to go and stay because they are in use.
    pub in_use: Vec<Digest>,
}

impl Store {
    /// Removes images that neither `keep` nor `live` names, and everything that belonged to them alone.
    ///
    /// # Errors
    /// When something cannot be read or removed. What was removed until then was not needed; another prune goes on.
    pub fn prune(&self, keep: &Keep, live: &[Digest]) -> Result<Pruned, Error> {
        let scratch = self.scratch()?;
        let mut pruned = Pruned::default();
        {
            let _lock = self.lock()?;
            self.prune_locked(keep, live, &scratch, &mut pruned)?;
        }
        // Layers were only moved away; their files are removed while others go on.
        let path = scratch.path().to_owned();
        drop(scratch);
        if path.exists() {
            return Err(Error::store("removing layers", &path)(std::io::ErrorKind::DirectoryNotEmpty.into()));
        }
        Ok(pruned)
    }

    fn prune_locked(&self, keep: &Keep, live: &[Digest], scratch: &Scratch, pruned: &mut Pruned) -> Result<(), Error> {
        let pins = self.pins()?;
        let mut kept_images = BTreeSet::new();
        let (mut layers, mut blobs) = (BTreeSet::new(), BTreeSet::new());
        let mut unused = Vec::new();
        for image in self.images()? {
            let digest = image.digest();
            let wanted = live.contains(&digest)
                || live.contains(&image.manifest())
                || (keep.named && pins.iter().any(|pin| pin.digest == digest))
                || self.is_used_since(digest, keep.used_since)?;
            let free = || {
                let lock = self.image_lock_path(digest);
                store::lock_file(&lock, FlockOperation::NonBlockingLockExclusive).map(|lock| lock.is_some())
            };
            if wanted || !free()? {
                if !wanted {
                    pruned.in_use.push(digest);
                }
                kept_images.insert(digest);
                layers.extend(image.record().layers.iter().copied());
                blobs.extend([digest, image.manifest(), image.record().config_digest]);
                continue;
            }
            unused.push(digest);
        }
        // First the names, then the records, then what they name: a crash leaves nothing that points nowhere. Each is brought
        // to the disk also when nothing went: an earlier prune may have ended before that.
        for pin in pins.iter().filter(|pin| !kept_images.contains(&pin.digest)) {
            self.remove_pin(pin)?;
        }
        store::sync_directory(&self.path("pins"))?;
        for digest in unused {
            remove(&self.image_path(digest))?;
            pruned.images.push(digest);
        }
        store::sync_directory(&self.path("images"))?;
        for layer in store::names(&self.path("layers"))? {
            let path = self.layer_path(layer);
            if layers.contains(&layer) {
                continue;
            }
            // Also a pull that is under way holds its layers.
            let Some(_lock) = store::lock_directory(&path, FlockOperation::NonBlockingLockExclusive)? else { continue };
            pruned.bytes += self.layer(layer)?.map_or(0, |record| record.summary.bytes);
            let away = scratch.path().join(layer.hex());
            fs::rename(&path, &away).map_err(Error::store("removing a layer", &path))?;
            pruned.layers.push(layer);
        }
        for blob in store::names(&self.path("blobs/sha256"))? {
            if !blobs.contains(&blob) {
                remove(&self.blob_path(blob))?;
            }
        }
        self.prune_locks()
    }

    /// Removes the locks of layers and images that are not there, unless somebody is making them.
    fn prune_locks(&self) -> Result<(), Error> {
        let directory = self.path("locks");
        for entry in fs::read_dir(&directory).map_err(Error::store("reading", &directory))? {
            let path = entry.map_err(Error::store("reading", &directory))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let there = match name.split_once('-').map(|(kind, hex)| (kind, Digest::from_hex(hex))) {
                Some(("layer", Some(layer))) => self.layer_path(layer).is_dir(),
                Some(("image", Some(image))) => self.image_path(image).is_file(),
                _ => true,
            };
            if there {
                continue;
            }
            // Held until the file is gone, so that nobody else holds a file that has no name.
            if let Some(_lock) = store::lock_file(&path, FlockOperation::NonBlockingLockExclusive)? {
                remove(&path)?;
            }
        }
        Ok(())
    }

    fn is_used_since(&self, image: Digest, since: Option<Timestamp>) -> Result<bool, Error> {
        use std::os::unix::fs::MetadataExt as _;
        let Some(since) = since else { return Ok(false) };
        let path = self.image_path(image);
        let found = fs::metadata(&path).map_err(Error::store("looking at", &path))?;
        Ok(found.mtime() >= since.as_micros().div_euclid(1_000_000))
    }
}

/// Removes a file that may be gone.
fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::store("removing", path)(error)),
        _ => Ok(()),
    }
}
