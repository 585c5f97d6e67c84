//! Limits of what a directory of a session may hold.
//!
//! Two mechanisms, each with root: a project quota, where the file system of the directory has them in force; else a file
//! system of its own, in a sparse file beside the directory and mounted on it. Whoever prepares the directory before there
//! is a sandbox opens its disk first and keeps it: a driver that is given the directory then finds it open.
//!
//! Architecture invariant: a disk that lies in a file is mounted at most once, and its file is locked for as long as it is:
//! the lock goes with its process however that ends, and a mount without it is a leftover.

mod project;
mod sized;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use async_trait::async_trait;

use crate::sandbox::{Body, Told};
use crate::{Spec, Status, Usage, Workspace};

pub(crate) use project::enforced as project_quota;
pub(crate) use sized::mounted as sized_places;
pub(crate) use sized::possible as sized_disks;
pub use sized::{LEAST, clear, image_of, sweep};

/// What one directory may hold. None means no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limit {
    /// Bytes on the disk.
    pub bytes: Option<u64>,
    /// Files, directories and links.
    pub inodes: Option<u64>,
}

impl Limit {
    fn is_some(self) -> bool {
        self.bytes.is_some() || self.inodes.is_some()
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.bytes, self.inodes) {
            (Some(bytes), Some(inodes)) => write!(f, "{} MiB and {inodes} files", bytes >> 20),
            (Some(bytes), None) => write!(f, "{} MiB", bytes >> 20),
            (None, Some(inodes)) => write!(f, "{inodes} files"),
            (None, None) => f.write_str("no limit"),
        }
    }
}

/// Why a directory has no limit.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No mechanism works for it.
    #[error("{0}")]
    Unavailable(String),
    /// Another process has it.
    #[error("{path} is in use by another worker", path = .0.display())]
    Busy(PathBuf),
    /// A step failed.
    #[error("limiting the disk: {step} ({path}): {cause}", path = path.display())]
    Step {
        /// The step.
        step: &'static str,
        /// What it was about.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

impl Error {
    fn step(step: &'static str, path: &Path, cause: impl Into<io::Error>) -> Error {
        Error::Step { step, path: path.to_owned(), cause: cause.into() }
    }
}

/// A directory whose disk is open. Clones share it; with the last of them it is closed.
#[derive(Debug, Clone)]
pub struct Disk(Arc<Kind>);

#[derive(Debug)]
enum Kind {
    Project(project::Project),
    Sized(sized::Sized),
}

impl Disk {
    /// What it takes up now, in bytes; none when the system does not say.
    pub fn used(&self) -> Option<u64> {
        match &*self.0 {
            Kind::Project(project) => project.used(),
            Kind::Sized(sized) => sized.used(),
        }
    }

    /// Whether it keeps to this limit, and how.
    fn status(&self, limit: Limit) -> Status {
        match &*self.0 {
            Kind::Project(project) => Status::Enforced(format!("{limit} each, by {project}")),
            Kind::Sized(sized) => match sized.exceeds(limit) {
                None => Status::Enforced(format!("{limit} each, as file systems of their own")),
                Some(has) => Status::Unavailable(format!("the disk was made for {has}, when the limit was another")),
            },
        }
    }
}

/// Directories that are open, each with a lock that is held while it is being opened.
type Slots = Mutex<HashMap<PathBuf, Arc<Mutex<Weak<Kind>>>>>;

/// Opens a directory's disk, made if it was never there, and keeps it to the limit. None without a limit, if it never had
/// one. A directory that holds something already is limited only where there are project quotas. Blocks.
///
/// # Errors
/// When there is no mechanism for it, or a step of it fails; then nothing is left behind.
pub fn open(directory: &Path, limit: Limit) -> Result<Option<Disk>, Error> {
    open_by(directory, limit, true)
}

/// The same; `own` says whether it may become a file system of its own.
fn open_by(directory: &Path, limit: Limit, own: bool) -> Result<Option<Disk>, Error> {
    static SLOTS: OnceLock<Slots> = OnceLock::new();
    let directory = directory.canonicalize().map_err(|cause| Error::step("directory", directory, cause))?;
    let has_image = image_of(&directory).exists();
    if !limit.is_some() && !has_image {
        return Ok(None);
    }
    if !crate::native::is_root() {
        return Err(Error::Unavailable("neither project quotas nor mounts can be set up without root".to_owned()));
    }
    let slot = {
        let mut slots = SLOTS.get_or_init(Slots::default).lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|_, slot| Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|it| it.strong_count() > 0));
        slots.entry(directory.clone()).or_default().clone()
    };
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(open) = slot.upgrade() {
        return Ok(Some(Disk(open)));
    }
    let kind = if has_image {
        Kind::Sized(sized::Sized::open(&directory, limit)?)
    } else {
        match project::Project::open(&directory, limit) {
            Ok(project) => Kind::Project(project),
            Err(Error::Unavailable(no_quota)) if !own => {
                let why = format!("{no_quota}; only a workspace of layers can be given a file system of its own");
                return Err(Error::Unavailable(why));
            }
            Err(Error::Unavailable(no_quota)) => match sized::Sized::open(&directory, limit) {
                Ok(sized) => Kind::Sized(sized),
                Err(Error::Unavailable(no_disk)) => return Err(Error::Unavailable(format!("{no_quota}; {no_disk}"))),
                Err(why) => return Err(why),
            },
            Err(why) => return Err(why),
        }
    };
    let open = Arc::new(kind);
    *slot = Arc::downgrade(&open);
    Ok(Some(Disk(open)))
}

/// The disks of one sandbox.
#[derive(Debug)]
pub(crate) struct Disks {
    held: Vec<Disk>,
    /// The directory of the layer that is written, where there is one with a disk.
    layer: Option<PathBuf>,
    pub(crate) status: Status,
}

impl Disks {
    /// Opens those of a spec.
    pub(crate) async fn of(spec: &Spec) -> Result<Disks, crate::Error> {
        let limit = Limit { bytes: spec.limits.disk_bytes, inodes: spec.limits.disk_inodes };
        // A directory of somebody's own must not be covered.
        let layered = matches!(spec.workspace, Workspace::Layered { .. });
        let places = [(spec.workspace.written().to_owned(), layered), (spec.outputs.clone(), true)];
        if !limit.is_some() && !places.iter().any(|(place, _)| image_of(place).exists()) {
            return Ok(Disks { held: Vec::new(), layer: None, status: Status::Unused });
        }
        let layer = layered.then(|| spec.workspace.written().to_owned());
        let opened = tokio::task::spawn_blocking(move || {
            let mut disks = Disks { held: Vec::new(), layer: None, status: Status::Unused };
            for (place, own) in places {
                match open_by(&place, limit, own) {
                    Ok(None) => {}
                    Ok(Some(disk)) => {
                        if limit.is_some() && !matches!(disks.status, Status::Unavailable(_)) {
                            disks.status = disk.status(limit);
                        }
                        disks.held.push(disk);
                        if layer.as_ref() == Some(&place) {
                            disks.layer.clone_from(&layer);
                            give_room(&place)?;
                        }
                    }
                    Err(Error::Unavailable(why)) => disks.status = Status::Unavailable(why),
                    Err(why) => return Err(why),
                }
            }
            Ok(disks)
        });
        Ok(opened.await.map_err(|_| crate::Error::Ended)??)
    }

    fn used(&self) -> Option<u64> {
        let used: Vec<u64> = self.held.iter().filter_map(Disk::used).collect();
        (!used.is_empty()).then(|| used.iter().sum())
    }

    /// A sandbox whose disks these are: they are closed after it has ended.
    pub(crate) fn around(self, body: Box<dyn Body>) -> Box<dyn Body> {
        if let Some(layer) = &self.layer {
            take_room(layer);
        }
        if self.held.is_empty() { body } else { Box::new(Limited { body, disks: self }) }
    }
}

/// Room that is kept from a session, so that its layer can be mounted again when it has filled all else: overlayfs makes
/// some files in its own directory for that.
const ROOM: &str = "room";
/// Files in it, each of one block.
const SPARE: usize = 16;

/// Before the layer is mounted.
fn give_room(layer: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(layer.join(ROOM)) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => Err(Error::step("making room", layer, why)),
        _ => Ok(()),
    }
}

/// When it is, and nothing of the session runs yet. What a smaller limit leaves no room for is not kept.
fn take_room(layer: &Path) {
    let room = layer.join(ROOM);
    let _ = std::fs::create_dir(&room);
    let _ = (0..SPARE).try_for_each(|n| std::fs::write(room.join(n.to_string()), [0; 4096]));
}

/// A sandbox with its disks. The order of the fields is that of their end.
#[derive(Debug)]
struct Limited {
    body: Box<dyn Body>,
    disks: Disks,
}

#[async_trait]
impl Body for Limited {
    fn pid(&self) -> Option<i32> {
        self.body.pid()
    }

    async fn freeze(&self) -> Result<(), crate::Error> {
        self.body.freeze().await
    }

    async fn thaw(&self) -> Result<(), crate::Error> {
        self.body.thaw().await
    }

    async fn usage(&self) -> Result<Usage, crate::Error> {
        Ok(Usage { disk_bytes: self.disks.used(), ..self.body.usage().await? })
    }

    async fn hibernate(&self, to: &Path, told: Told) -> Result<(), crate::Error> {
        self.body.hibernate(to, told).await
    }

    async fn end(self: Box<Self>) -> Result<(), crate::Error> {
        let Limited { body, disks } = *self;
        let ended = body.end().await;
        let closed = tokio::task::spawn_blocking(move || drop(disks)).await;
        ended.and(closed.map_err(|_| crate::Error::Ended))
    }
}

#[cfg(test)]
mod tests;
