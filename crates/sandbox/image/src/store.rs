//! The store: a directory that several processes share.
//!
//! ```text
//! lock                   taken while something becomes visible or is removed
//! layers/HEX/            a layer, by the digest of its archive: layer.json, and root/ for the overlay
//! images/HEX.json        an image, by the digest that names it
//! blobs/sha256/HEX       manifests and configurations of those images
//! pins/HEX.json          what a reference meant when it was pulled, by the digest of its text
//! locks/                 who works on a layer or uses an image
//! tmp/                   what is being made; swept when its maker is gone
//! ```
//!
//! Everything is made in `tmp/`, brought to the disk, and moved to its name: it is there whole or not at all. An image's
//! record is written after all of its layers and removed before any of them.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::digest::Digest;
use crate::error::Error;
use crate::image::{Image, LayerRecord};
use crate::policy::{Policy, PolicyError};
use crate::reference::Reference;
use crate::unpack::Ownership;

/// A record of the store, in bytes; what is longer is no record.
const LONGEST_RECORD: u64 = 16 * 1024 * 1024;

/// Images of one machine, unpacked.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
    ownership: Ownership,
}

/// A lock that ends when it is dropped, or with the process.
#[derive(Debug)]
pub(crate) struct Lock {
    file: OwnedFd,
}

/// A directory for something that is being made. Gone when dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    /// Says to those who sweep that the maker lives.
    _lock: Lock,
}

impl Scratch {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is swept when the store is opened next.
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Store {
    /// Opens the store in a directory, which is made when it is not there, and removes what processes that died left half
    /// made.
    ///
    /// # Errors
    /// When the directory cannot be used, or others could change it.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Store, Error> {
        let dir: PathBuf = dir.into();
        let store = Store { dir, ownership: Ownership::possible() };
        let private = |path: &Path| DirBuilder::new().recursive(true).mode(0o700).create(path);
        private(&store.dir).map_err(Error::store("making the directory", &store.dir))?;
        let found = fs::metadata(&store.dir).map_err(Error::store("looking at the directory", &store.dir))?;
        let shared = |why| Err(Error::Shared { path: store.dir.clone(), why });
        if found.uid() != rustix::process::geteuid().as_raw() {
            return shared("belongs to somebody else");
        }
        if found.mode() & 0o022 != 0 {
            return shared("can be written to by others");
        }
        for part in ["layers", "images", "blobs/sha256", "pins", "locks", "tmp"] {
            let path = store.dir.join(part);
            private(&path).map_err(Error::store("making the directory", &path))?;
        }
        store.sweep()?;
        Ok(store)
    }

    /// The same store, giving what it unpacks from now on to whoever unpacks it, even where owners could be kept.
    #[must_use]
    pub fn flattened(self) -> Store {
        Store { ownership: Ownership::Flattened, ..self }
    }

    pub(crate) fn ownership(&self) -> Ownership {
        self.ownership
    }

    pub(crate) fn path(&self, part: &str) -> PathBuf {
        self.dir.join(part)
    }

    pub(crate) fn layer_path(&self, diff_id: Digest) -> PathBuf {
        self.dir.join("layers").join(diff_id.hex())
    }

    pub(crate) fn image_path(&self, image: Digest) -> PathBuf {
        self.dir.join("images").join(format!("{}.json", image.hex()))
    }

    pub(crate) fn blob_path(&self, digest: Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    /// Waits until nobody else makes anything visible or removes it. Held for moments only.
    pub(crate) fn lock(&self) -> Result<Lock, Error> {
        lock_file(&self.path("lock"), FlockOperation::LockExclusive).map(|lock| lock.expect("it waits"))
    }

    /// Waits until nobody else makes this layer.
    pub(crate) fn lock_layer(&self, diff_id: Digest) -> Result<Lock, Error> {
        let path = self.path("locks").join(format!("layer-{}", diff_id.hex()));
        lock_file(&path, FlockOperation::LockExclusive).map(|lock| lock.expect("it waits"))
    }

    pub(crate) fn image_lock_path(&self, image: Digest) -> PathBuf {
        self.path("locks").join(format!("image-{}", image.hex()))
    }

    /// Makes a place for something new.
    pub(crate) fn scratch(&self) -> Result<Scratch, Error> {
        // A sweep may not come between the directory and its lock.
        let _lock = self.lock()?;
        let path = self.path("tmp").join(format!("{}-{}", std::process::id(), random()));
        DirBuilder::new().mode(0o700).create(&path).map_err(Error::store("making a directory", &path))?;
        let lock = lock_directory(&path, FlockOperation::NonBlockingLockExclusive)?;
        let lock =
            lock.ok_or_else(|| Error::store("locking a directory", &path)(io::ErrorKind::ResourceBusy.into()))?;
        Ok(Scratch { path, _lock: lock })
    }

    /// Removes what was being made by processes that are gone. Those that live remove what is theirs meanwhile.
    fn sweep(&self) -> Result<(), Error> {
        let tmp = self.path("tmp");
        if fs::read_dir(&tmp).map_err(Error::store("reading", &tmp))?.next().is_none() {
            return Ok(());
        }
        let _lock = self.lock()?;
        for entry in fs::read_dir(&tmp).map_err(Error::store("reading", &tmp))? {
            let path = entry.map_err(Error::store("reading", &tmp))?.path();
            let removed = if path.is_dir() {
                match lock_directory(&path, FlockOperation::NonBlockingLockExclusive) {
                    Ok(Some(_lock)) => fs::remove_dir_all(&path),
                    Ok(None) => continue,
                    Err(Error::Store { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                }
            } else {
                fs::remove_file(&path)
            };
            match removed {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::store("removing a leftover", &path)(cause));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes a file so that it is there whole or not at all, also after the machine lost its power.
    pub(crate) fn write(&self, scratch: &Scratch, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        let new = scratch.path().join(random());
        let written = File::options().write(true).create_new(true).mode(0o600).open(&new).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&new, path)?;
            sync_parent(path)
        });
        written.map_err(Error::store("writing", path))
    }

    pub(crate) fn write_json(&self, scratch: &Scratch, path: &Path, value: &impl Serialize) -> Result<(), Error> {
        let bytes = serde_json::to_vec_pretty(value).expect("records are plain data");
        self.write(scratch, path, &bytes)
    }

    /// What is known of a layer; None when it is not there.
    pub(crate) fn layer(&self, diff_id: Digest) -> Result<Option<LayerRecord>, Error> {
        read_json(&self.layer_path(diff_id).join("layer.json"))
    }

    /// An image of the store by the digest that names it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn image(&self, digest: Digest) -> Result<Option<Image>, Error> {
        let record = read_json(&self.image_path(digest))?;
        Ok(record.map(|record| Image::new(record, self.path("layers"))))
    }

    /// All images, those pulled last first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn images(&self) -> Result<Vec<Image>, Error> {
        let mut images = Vec::new();
        for digest in names(&self.path("images"))? {
            // Another process may remove one meanwhile.
            images.extend(self.image(digest)?);
        }
        images.sort_by(|a, b| b.pulled_at().cmp(&a.pulled_at()).then(a.digest().cmp(&b.digest())));
        Ok(images)
    }

    /// The image that a run may use: named by digest, or by a tag where the policy allows that, and then as the tag was
    /// pulled. No registry is asked.
    ///
    /// # Errors
    /// When the policy refuses it, or the store does not have it.
    pub fn resolve(&self, reference: &Reference, policy: &Policy) -> Result<Image, Error> {
        policy.check_origin(reference)?;
        let pin = if reference.is_mutable() { self.pin(reference)? } else { None };
        if reference.is_mutable() && !policy.allow_mutable {
            let fix = match &pin {
                Some(pin) => format!("name it as {}", reference.with_digest(pin.digest)),
                None => format!("`palisade image pull {reference}` gets it and prints the digest to name instead"),
            };
            return Err(PolicyError::Mutable { reference: reference.to_string(), fix }.into());
        }
        let absent = || Error::Absent { reference: reference.to_string() };
        let digest = reference.digest().or(pin.map(|pin| pin.digest)).ok_or_else(absent)?;
        let image = self.image(digest)?.ok_or_else(absent)?;
        if !image.is_signed_as(policy) {
            return Err(PolicyError::Unsigned { reference: reference.to_string() }.into());
        }
        Ok(image)
    }
}

/// Locks a file, which is made when it is not there. None when it is locked and must not be waited for.
pub(crate) fn lock_file(path: &Path, operation: FlockOperation) -> Result<Option<Lock>, Error> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    loop {
        let file = rustix::fs::openat(CWD, path, flags, Mode::RUSR | Mode::WUSR);
        let file = file.map_err(|cause| Error::store("opening a lock", path)(cause.into()))?;
        let Some(lock) = flock(file, path, operation)? else { return Ok(None) };
        // A prune may have removed the file meanwhile; whoever comes next locks the one that is there then.
        if is_at(&lock, path).map_err(|cause| Error::store("looking at a lock", path)(cause.into()))? {
            return Ok(Some(lock));
        }
    }
}

/// Whether what is locked is what is at the path.
fn is_at(lock: &Lock, path: &Path) -> Result<bool, Errno> {
    let held = rustix::fs::fstat(&lock.file)?;
    match rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(there) => Ok((held.st_dev, held.st_ino) == (there.st_dev, there.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(cause) => Err(cause),
    }
}

/// Locks a directory.
pub(crate) fn lock_directory(path: &Path, operation: FlockOperation) -> Result<Option<Lock>, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(CWD, path, flags, Mode::empty());
    flock(file.map_err(|cause| Error::store("opening a directory", path)(cause.into()))?, path, operation)
}

fn flock(file: OwnedFd, path: &Path, operation: FlockOperation) -> Result<Option<Lock>, Error> {
    loop {
        return match rustix::fs::flock(&file, operation) {
            Ok(()) => Ok(Some(Lock { file })),
            Err(Errno::INTR) => continue,
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(cause) => Err(Error::store("locking", path)(cause.into())),
        };
    }
}

/// A name that nobody else has.
fn random() -> String {
    let mut bytes = [0; 12];
    // Names in `tmp/` are made with "must not exist", so that chance alone is no danger.
    getrandom::fill(&mut bytes).expect("the system gives random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Has a directory's names on the disk.
pub(crate) fn sync_directory(path: &Path) -> Result<(), Error> {
    let synced = File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(Error::store("writing to the disk", path))
}

/// Has the name of a path on the disk.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Reads a record; None when it is not there.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    use std::io::Read as _;
    let failed = |cause| Error::store("reading", path)(cause);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(LONGEST_RECORD).read_to_end(&mut bytes).map_err(failed)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|cause| failed(cause.into()))
}

/// The digests in the names of a directory's files; other names are none of ours.
pub(crate) fn names(directory: &Path) -> Result<Vec<Digest>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(Error::store("reading", directory))? {
        let name = entry.map_err(Error::store("reading", directory))?.file_name();
        let name = name.to_string_lossy();
        found.extend(Digest::from_hex(name.strip_suffix(".json").unwrap_or(&name)));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_waiter_whose_lock_file_is_pruned_holds_the_one_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = AtomicBool::new(false);
        let round = || {
            let lock = lock_file(&path, FlockOperation::LockExclusive).unwrap().unwrap();
            assert!(!held.swap(true, Ordering::SeqCst), "two hold it");
            assert!(is_at(&lock, &path).unwrap(), "what is held is not what is there");
            // From here on others hold another file.
            held.store(false, Ordering::SeqCst);
            fs::remove_file(&path).unwrap();
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..500).for_each(|_| round()));
            }
        });
        // A lock that is not waited for is never on a file that is gone.
        let first = lock_file(&path, FlockOperation::NonBlockingLockExclusive).unwrap().unwrap();
        assert!(lock_file(&path, FlockOperation::NonBlockingLockExclusive).unwrap().is_none());
        fs::remove_file(&path).unwrap();
        assert!(lock_file(&path, FlockOperation::NonBlockingLockExclusive).unwrap().is_some());
        drop(first);
    }
}
