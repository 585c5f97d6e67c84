//! Directories of a driver on the host: one for each process that uses it, with what its sandboxes are made of.
//!
//! Each is locked by its process for as long as that lives. What is found unlocked belonged to one that is gone.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};

use crate::{Error, native};

/// A driver's directory, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    _lock: File,
}

fn wrong(path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
    move |cause| Error::Scratch { path: path.to_owned(), cause }
}

impl Scratch {
    /// Makes this process's directory below `base`, after `sweep` was called with each one whose process is gone, which is
    /// removed unless that says no.
    ///
    /// Others may walk through it, since a runtime does so as the sandbox's user, but not look around.
    pub(crate) fn open(base: &Path, driver: &str, mut sweep: impl FnMut(&Path) -> bool) -> Result<Scratch, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        DirBuilder::new().recursive(true).mode(0o711).create(base).map_err(wrong(base))?;
        let meta = fs::symlink_metadata(base).map_err(wrong(base))?;
        // Whoever could rename what is in it could choose what sandboxes are made of.
        let others = meta.mode() & 0o022 != 0 && meta.mode() & 0o1000 == 0;
        if !meta.is_dir() || others {
            return Err(wrong(base)(io::Error::other("others may write to it; use a directory of the worker's own")));
        }
        let prefix = format!("{driver}-");
        for entry in fs::read_dir(base).map_err(wrong(base))?.flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)) {
                let path = entry.path();
                let abandoned = mine(&path).then(|| lock(&path)).and_then(Result::ok);
                if let Some(_lock) = abandoned
                    && sweep(&path)
                {
                    let _ = fs::remove_dir_all(&path);
                }
            }
        }
        // The number alone may be another's: in containers, most workers are process 1. What is there is somebody's who lives,
        // or could not be swept.
        let (path, lock) = loop {
            let path = base.join(format!("{prefix}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
            match DirBuilder::new().mode(0o711).create(&path) {
                Ok(()) => {}
                Err(why) if why.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(cause) => return Err(wrong(&path)(cause)),
            }
            match lock(&path) {
                Ok(lock) => {
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o711)).map_err(wrong(&path))?;
                    break (path, lock);
                }
                // Another process that starts now took it for an abandoned one.
                Err(why) if matches!(why.kind(), io::ErrorKind::NotFound | io::ErrorKind::WouldBlock) => {}
                Err(cause) => return Err(wrong(&path)(cause)),
            }
        };
        let scratch = Scratch { path, _lock: lock };
        scratch.program()?;
        Ok(scratch)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The cell's program, to be mounted read-only.
    pub(crate) fn cell(&self) -> PathBuf {
        self.path.join("cell")
    }

    fn program(&self) -> Result<(), Error> {
        let path = self.cell();
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o500).open(&path)?;
            file.write_all(native::CELL)?;
            file.sync_data()?;
            // The same for every worker: processes that are woken must find the program that they were.
            file.set_modified(SystemTime::UNIX_EPOCH)?;
            file.set_permissions(fs::Permissions::from_mode(0o555))
        };
        write().map_err(wrong(&path))?;
        let read = fs::read(&path).map_err(wrong(&path))?;
        if read == native::CELL { Ok(()) } else { Err(wrong(&path)(io::ErrorKind::InvalidData.into())) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Every sandbox holds on to this, so nothing in it is used any more.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn mine(path: &Path) -> bool {
    let uid = rustix::process::geteuid().as_raw();
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir() && meta.uid() == uid)
}

fn lock(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path.join("lock"))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

/// Where drivers keep their directories unless told.
pub(crate) fn base() -> PathBuf {
    if native::is_root() {
        return PathBuf::from("/var/lib/palisade/drivers");
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let other = || std::env::temp_dir().join(format!("palisade-{}", rustix::process::geteuid().as_raw()));
    state.or_else(home).map_or_else(other, |state| state.join("palisade/drivers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In containers, several workers are process 1.
    #[test]
    fn a_live_worker_of_the_same_number_keeps_its_directory() {
        let base = tempfile::tempdir().unwrap();
        let others: Vec<(PathBuf, File)> = (0..50)
            .map(|number| {
                let path = base.path().join(format!("oci-{}-{number}", std::process::id()));
                fs::create_dir(&path).unwrap();
                fs::write(path.join("cell"), "theirs").unwrap();
                let lock = lock(&path).unwrap();
                (path, lock)
            })
            .collect();
        let scratch = Scratch::open(base.path(), "oci", |path| panic!("{} is in use", path.display())).unwrap();
        for (path, _) in &others {
            assert_ne!(scratch.path(), path);
            assert_eq!(fs::read_to_string(path.join("cell")).unwrap(), "theirs");
        }
        // What could not be swept stays too, for the next start to try again.
        drop(others);
        let kept = Scratch::open(base.path(), "oci", |_| false).unwrap();
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 52);
        drop((scratch, kept));
        let last = Scratch::open(base.path(), "oci", |_| true).unwrap();
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1);
        drop(last);
    }
}
