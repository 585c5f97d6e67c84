//! The store on disk.
//!
//! ```text
//! format              what wrote it
//! lock                shared by whoever reads or adds, exclusive for whoever removes
//! packs/<id>          chunks
//! checkpoints/<id>.json   records: a checkpoint exists when its record does
//! layers/<id>/        materialised layers: a cache
//! index               where chunks are: a cache
//! tmp/                what is being made; what is there when nobody holds the lock was left by a crash
//! ```

pub(crate) mod index;
pub(crate) mod pack;
mod prune;
mod record;
mod verify;

pub use prune::{Pruned, Retention};
pub use record::{Checkpoint, Counts};
pub use verify::{Fault, Verified};

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::At as _;
use crate::tree::{self, Tree};
use crate::{Error, Id, Result, descent};
use index::Index;
use pack::{Entry, Pack};

const FORMAT: &str = "palisade checkpoints 1\n";
/// How many packs are kept open, and how many manifests decoded.
const OPEN_PACKS: usize = 16;
const TREES: usize = 4;

/// A store of checkpoints in a directory that only its owner can enter.
///
/// Any number of threads and processes may use one store. Whoever adds, adds beside the others; [`Store::prune`] waits until
/// they are done.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    index: RwLock<Arc<Index>>,
    open: Mutex<VecDeque<(Id, Arc<Pack>)>>,
    trees: Mutex<VecDeque<(Id, Arc<Tree>)>>,
}

/// Held while the store is read or written. Dropping it lets go.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "closing it is what unlocks")] File);

impl Store {
    /// Opens the store in a directory, makes it when there is none, and removes what a crash left.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Store> {
        let dir = dir.into();
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).at("making", &dir)?;
        let format = dir.join("format");
        match std::fs::read_to_string(&format) {
            Ok(text) if text == FORMAT => {}
            Ok(_) => return Err(Error::NotAStore { path: dir, what: "its file `format` names another".to_owned() }),
            Err(why) if why.kind() == io::ErrorKind::NotFound => {
                for sub in ["packs", "checkpoints", "layers", "tmp"] {
                    let sub = dir.join(sub);
                    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&sub).at("making", &sub)?;
                }
                write_whole(&dir, "format", FORMAT.as_bytes(), Durable::Yes)?;
            }
            Err(why) => return Err(Error::io("reading", &format, why)),
        }
        let store = Store { dir, index: RwLock::default(), open: Mutex::default(), trees: Mutex::default() };
        store.sweep()?;
        let _lock = store.shared()?;
        *store.index.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Index::read(&store.dir, None)?);
        Ok(store)
    }

    /// The store's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Removes what was being made when a process ended, and layers that the machine's end may have torn.
    fn sweep(&self) -> Result<()> {
        // Layers are not written through to the disk, so they count only until the machine starts again.
        let boot = boot_id();
        let seen = self.dir.join("layers/.boot");
        let same_boot = std::fs::read_to_string(&seen).is_ok_and(|seen| !boot.is_empty() && seen == boot);
        let lock = if same_boot { self.try_exclusive()? } else { Some(self.exclusive()?) };
        let Some(_lock) = lock else { return Ok(()) };
        remove_contents(&self.dir.join("tmp"))?;
        for dir in [self.dir.clone(), self.dir.join("checkpoints")] {
            let opened = descent::open_dir(&dir).at("opening", &dir)?;
            for name in descent::names(&opened).at("reading", &dir)? {
                // Small files are written under such names first.
                if name.starts_with(b".") {
                    descent::remove_tree(&opened, &name).at("removing from", &dir)?;
                }
            }
        }
        if !same_boot {
            let layers = self.dir.join("layers");
            let opened = descent::open_dir(&layers).at("opening", &layers)?;
            for name in descent::names(&opened).at("reading", &layers)? {
                // Without a name for this start of the machine others may be at work with them.
                if name.starts_with(b".") || !crate::layer::is_held(&opened, &name).at("locking", &layers)? {
                    descent::remove_tree(&opened, &name).at("removing from", &layers)?;
                }
            }
            write_whole(&self.dir.join("layers"), ".boot", boot.as_bytes(), Durable::No)?;
        }
        Ok(())
    }

    fn lock(&self, operation: FlockOperation) -> Result<Option<Lock>> {
        let path = self.dir.join("lock");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.at("opening", &path)?;
        Ok(flock(&file, operation).at("locking", &path)?.then(|| Lock(file)))
    }

    /// Waits for the right to read and to add.
    pub(crate) fn shared(&self) -> Result<Lock> {
        Ok(self.lock(FlockOperation::LockShared)?.expect("this operation waits"))
    }

    /// Waits for the right to remove.
    pub(crate) fn exclusive(&self) -> Result<Lock> {
        Ok(self.lock(FlockOperation::LockExclusive)?.expect("this operation waits"))
    }

    fn try_exclusive(&self) -> Result<Option<Lock>> {
        self.lock(FlockOperation::NonBlockingLockExclusive)
    }

    pub(crate) fn path(&self, sub: &str) -> PathBuf {
        self.dir.join(sub)
    }

    /// A path for something that is being made; the caller holds the lock.
    pub(crate) fn temporary(&self) -> PathBuf {
        self.dir.join("tmp").join(unique())
    }

    /// The index, read again if other processes have added or removed packs. The caller holds the lock.
    pub(crate) fn fresh_index(&self) -> Result<Arc<Index>> {
        let index = self.index();
        if index.is_of(&self.dir)? {
            return Ok(index);
        }
        let index = Arc::new(Index::read(&self.dir, Some(&index))?);
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = index.clone();
        Ok(index)
    }

    pub(crate) fn index(&self) -> Arc<Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes a finished pack's name durable and enters it in the index.
    pub(crate) fn enter(&self, pack: Id, entries: Vec<Entry>) -> Result<()> {
        sync_dir(&self.path("packs"))?;
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut index).insert(pack, entries);
        Ok(())
    }

    /// A chunk, checked against its name. The caller holds the lock.
    pub(crate) fn read(&self, index: &Index, id: &Id) -> Result<Vec<u8>> {
        let (pack, entry) = self.find(index, id)?;
        pack.read(&entry)
    }

    /// Where a chunk is.
    pub(crate) fn find(&self, index: &Index, id: &Id) -> Result<(Arc<Pack>, Entry)> {
        let missing = || match index.broken.first() {
            Some((pack, what)) => {
                let path = self.path("packs").join(pack.to_string());
                Error::Corrupt { path, what: format!("{what}; chunk {id} is in no other pack") }
            }
            None => Error::MissingChunk { chunk: *id, store: self.dir.clone() },
        };
        let (place, entry) = index.chunks.get(id).ok_or_else(missing)?;
        let pack = index.packs[*place as usize];
        let mut open = lock(&self.open);
        if let Some(file) = recall(&mut open, &pack) {
            return Ok((file, *entry));
        }
        let file = Arc::new(Pack::open(&self.path("packs"), &pack)?);
        open.push_front((pack, file.clone()));
        open.truncate(OPEN_PACKS);
        Ok((file, *entry))
    }

    /// The layer of a checkpoint. The caller holds the lock.
    pub(crate) fn tree(&self, index: &Index, id: &Id) -> Result<Arc<Tree>> {
        if let Some(tree) = recall(&mut lock(&self.trees), id) {
            return Ok(tree);
        }
        let fetch = |node: &Id| self.read(index, node);
        let wrong = |node: &Id, what: &str| {
            let path =
                index.chunks.get(node).map(|(place, _)| index.packs[*place as usize].to_string()).unwrap_or_default();
            Error::corrupt(&self.path("packs").join(path), format!("chunk {node} is no node of a layer: {what}"))
        };
        let tree = Arc::new(tree::decode(id, tree::Limits::default(), fetch, wrong)?);
        self.remember(*id, tree.clone());
        Ok(tree)
    }

    pub(crate) fn remember(&self, id: Id, tree: Arc<Tree>) {
        let mut trees = lock(&self.trees);
        // Large ones are read again rather than held.
        if tree.dirs.len() < 20_000 {
            trees.retain(|(it, _)| *it != id);
            trees.push_front((id, tree));
            trees.truncate(TREES);
        }
    }

    pub(crate) fn forget(&self) {
        lock(&self.trees).clear();
        lock(&self.open).clear();
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a cache has; that is then the last to go.
fn recall<T>(cache: &mut VecDeque<(Id, Arc<T>)>, id: &Id) -> Option<Arc<T>> {
    let place = cache.iter().position(|(it, _)| it == id)?;
    let found = cache.remove(place)?;
    let value = found.1.clone();
    cache.push_front(found);
    Some(value)
}

/// Locks an open file or directory. False when somebody else holds it and it must not be waited for.
pub(crate) fn flock(file: impl AsFd, operation: FlockOperation) -> Result<bool, Errno> {
    loop {
        match rustix::fs::flock(&file, operation) {
            Ok(()) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(why) => return Err(why),
        }
    }
}

/// A name that nobody uses, not even a process that crashed.
fn unique() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut random = [0; 8];
    // Without entropy the rest is still unique among those who are alive.
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::NONBLOCK);
    let random = u64::from_le_bytes(random);
    format!("{}-{}-{random:016x}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A name of this start of the machine; empty when there is none to be had.
pub(crate) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

pub(crate) fn create_new(path: &Path) -> Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path).at("making", path)
}

/// Makes what was renamed or removed in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    let dir = descent::open_dir(path).at("opening", path)?;
    rustix::fs::fsync(dir).at("writing", path)
}

/// Whether a file has to survive the machine's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durable {
    /// It and its name are on the disk when the call returns.
    Yes,
    /// After the machine's end it may be the old one, or torn.
    No,
}

/// Writes the small file `name` in `dir` so that a reader, also after the process's end, sees all of the old one or all of
/// the new one. Only its owner can read and write it: its mode is 0600, whatever the old one's was.
///
/// It is written as `.name.` with more behind it first; a process that ends meanwhile leaves that for the caller to remove.
///
/// # Errors
/// When it cannot be written, or not be made durable; then either file may be there.
pub fn write_whole(dir: &Path, name: &str, bytes: &[u8], durable: Durable) -> Result<()> {
    let new = dir.join(format!(".{name}.{}", unique()));
    let path = dir.join(name);
    let written = (|| {
        let mut file = create_new(&new)?;
        file.write_all(bytes).at("writing", &path)?;
        if durable == Durable::Yes {
            rustix::fs::fdatasync(&file).at("writing", &path)?;
        }
        std::fs::rename(&new, &path).at("naming", &path)?;
        if durable == Durable::Yes { sync_dir(dir) } else { Ok(()) }
    })();
    if written.is_err() {
        // Either it was renamed or it is of no use.
        let _ = std::fs::remove_file(&new);
    }
    written
}

/// Removes everything in a directory.
pub(crate) fn remove_contents(path: &Path) -> Result<()> {
    let dir = descent::open_dir(path).at("opening", path)?;
    for name in descent::names(&dir).at("reading", path)? {
        descent::remove_tree(&dir, &name).at("removing from", path)?;
    }
    Ok(())
}
