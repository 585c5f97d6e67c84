//! The directories of a session on this host. They are kept between work items: a session that comes back finds its files.
//!
//! A workspace is made of layers: a base that sessions share, the layer of the checkpoint that it was last brought back to,
//! and a layer of its own, the only one that is written. Which they are is in one small file that is replaced whole:
//! bringing a workspace back is one rename.

mod base;

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use palisade_checkpoint::{Durable, Id, Transaction, write_whole};
use palisade_sandbox::disk::{self, Disk, Limit};
use serde::{Deserialize, Serialize};

pub(crate) use base::Base;

/// A session's directories.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    state_dir: PathBuf,
    pub(crate) root: PathBuf,
    pub(crate) outputs: PathBuf,
    pub(crate) journal: PathBuf,
    /// The transactional call that is under way.
    pub(crate) transaction: PathBuf,
    /// What the workspace is made of.
    layers: PathBuf,
    /// Names of the skills that are in the workspace, as JSON: what may be removed from it.
    skills: PathBuf,
    /// What programs of the sandbox trust, as the sandbox is shown it.
    pub(crate) trust: PathBuf,
    /// What the layer and the outputs may hold, each.
    limit: Limit,
    disks: Arc<Mutex<Disks>>,
}

/// The disks that are open: without them there may be nothing where the layer and the outputs are.
#[derive(Debug, Default)]
struct Disks {
    layer: Option<(u64, Option<Disk>)>,
    outputs: Option<Disk>,
}

/// What a workspace is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Layers {
    /// The base's name.
    pub(crate) base: String,
    /// The checkpoint whose layer lies on the base.
    pub(crate) checkpoint: Option<Id>,
    /// The number of the layer that is written.
    pub(crate) layer: u64,
    /// The checkpoints that were taken of this session, oldest first.
    #[serde(default)]
    pub(crate) taken: Vec<Taken>,
    /// Whether the base was copied, so that the written layer is all there is: for drivers that mount no layers.
    #[serde(default)]
    pub(crate) flat: bool,
}

/// A checkpoint of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Taken {
    pub(crate) id: Id,
    /// When, in milliseconds since 1970, UTC.
    pub(crate) at_ms: u64,
    /// On what occasion.
    pub(crate) why: String,
}

const LAYERS: &str = "workspace.json";
const TRANSACTION: &str = "transaction.json";
const SKILLS: &str = "skills.json";
/// The processes of a sandbox that sleeps.
const IMAGE: &str = "asleep";
/// Is there while the session is paused.
const PAUSED: &str = "paused";

/// Checkpoints of one session that are kept, at least.
pub(crate) const KEPT: usize = 20;

/// Why a session's directories could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HomeError {
    #[error("cannot make the directory {path}: {source}")]
    Make { path: PathBuf, source: io::Error },
    #[error("cannot copy {path} for fresh workspaces: {source}")]
    Seed { path: PathBuf, source: io::Error },
    #[error("cannot read {path}, which says what the workspace is made of: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Disk(#[from] disk::Error),
    #[error("the checkpoint that the session is to start from: {0}")]
    Origin(#[from] palisade_checkpoint::Error),
    #[error(
        "the workspace was made for a driver that {} layers, and this one {}: serve the session with a worker of the first kind",
        if *flat { "mounts no" } else { "mounts" },
        if *flat { "does" } else { "does not" }
    )]
    Flat { flat: bool },
    #[error("the base {name} of the workspace is gone from {path}: restore it from a backup, or delete the session")]
    Base { name: String, path: PathBuf },
}

/// A directory name for a session id of any control plane: the id where it is harmless, else a digest of it.
fn directory_name(session: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if (1..=128).contains(&session.len()) && session.chars().all(plain) {
        return session.to_owned();
    }
    let digest = ring::digest::digest(&ring::digest::SHA256, session.as_bytes());
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("id.{hex}")
}

impl Home {
    pub(crate) fn of(state_dir: &Path, session: &str) -> Self {
        let root = state_dir.join("sessions").join(directory_name(session));
        Self {
            state_dir: state_dir.to_owned(),
            outputs: root.join("outputs"),
            journal: root.join("journal.jsonl"),
            transaction: root.join(TRANSACTION),
            layers: root.join(LAYERS),
            skills: root.join(SKILLS),
            trust: root.join("trust"),
            limit: Limit::default(),
            disks: Arc::default(),
            root,
        }
    }

    /// The same with a limit of what its directories may hold.
    pub(crate) fn within(self, limit: Limit) -> Self {
        Self { limit, ..self }
    }

    /// Has the disks of this layer and of the outputs open until [`Home::release`], where there are or can be any; that a
    /// limit cannot be had is what the sandbox's report says.
    pub(crate) fn hold(&self, number: u64) -> Result<(), HomeError> {
        let mut disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        let open = |directory: &Path| match disk::open(directory, self.limit) {
            Err(disk::Error::Unavailable(_)) => Ok(None),
            opened => opened,
        };
        if disks.outputs.is_none() {
            disks.outputs = open(&self.outputs)?;
        }
        if disks.layer.as_ref().is_none_or(|(held, _)| *held != number) {
            disks.layer = None;
            make(&self.layer(number))?;
            disks.layer = Some((number, open(&self.layer(number))?));
        }
        Ok(())
    }

    /// Closes the disks. Nothing may be looked for in the layer or the outputs any more.
    pub(crate) fn release(&self) {
        *self.disks.lock().unwrap_or_else(PoisonError::into_inner) = Disks::default();
    }

    /// The directory of a layer: `upper` in it is what the session changed.
    pub(crate) fn layer(&self, number: u64) -> PathBuf {
        self.root.join("layers").join(number.to_string())
    }

    /// What is noted there of files that need not be read again at the next checkpoint.
    pub(crate) fn cache(&self, number: u64) -> PathBuf {
        self.root.join("layers").join(format!("{number}.cache"))
    }

    /// The skills that an item put into the workspace and did not take out again.
    pub(crate) fn installed_skills(&self) -> Vec<String> {
        let text = fs::read(&self.skills).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Notes which skills are in the workspace. A crash leaves the old note or the new one: what is not in it is the session's
    /// own, and never taken out.
    pub(crate) fn note_skills(&self, names: &[String]) -> io::Result<()> {
        let text = serde_json::to_vec(names)?;
        write_whole(&self.root, SKILLS, &text, Durable::No).map_err(io::Error::other)
    }

    /// An empty directory for the processes of a sandbox that is put to sleep; they count once [`Home::keep_image`] was called.
    pub(crate) fn new_image(&self) -> Result<PathBuf, HomeError> {
        self.drop_images();
        let path = self.root.join(IMAGE).with_extension("new");
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map(|()| path.clone()).map_err(|source| HomeError::Make { path, source })
    }

    /// From here on there is a sandbox that sleeps, on the layers that the workspace now has.
    pub(crate) fn keep_image(&self) -> Result<(), HomeError> {
        let path = self.root.join(IMAGE);
        let new = path.with_extension("new");
        let wrong = |source| HomeError::Make { path: path.clone(), source };
        let layers = self.layers()?.map(|layers| (layers.base, layers.checkpoint, layers.layer));
        fs::write(new.join(LAYERS), serde_json::to_vec(&layers).map_err(|why| wrong(why.into()))?).map_err(wrong)?;
        fs::rename(&new, &path).map_err(wrong)
    }

    /// The sandbox that sleeps, if it does so on the layers that the workspace has now. It is there once: what it has done since
    /// it woke up, it would do again.
    pub(crate) fn take_image(&self) -> Result<Option<PathBuf>, HomeError> {
        let (path, taken) = (self.root.join(IMAGE), self.root.join(IMAGE).with_extension("woken"));
        let wrong = |source| HomeError::Make { path: path.clone(), source };
        let noted = match fs::read(path.join(LAYERS)) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => {
                // What an earlier worker was about to write, or had woken.
                self.drop_images();
                return Ok(None);
            }
            read => read.map_err(wrong)?,
        };
        let noted: Option<(String, Option<Id>, u64)> = serde_json::from_slice(&noted).unwrap_or_default();
        let now = self.layers()?.map(|layers| (layers.base, layers.checkpoint, layers.layer));
        if noted.is_none() || noted != now {
            tracing::warn!(path = %path.display(), "the workspace is no longer what the processes on disk know; they are given up");
            self.drop_images();
            return Ok(None);
        }
        if taken.exists() {
            fs::remove_dir_all(&taken).map_err(wrong)?;
        }
        fs::rename(&path, &taken).map_err(wrong)?;
        Ok(Some(taken))
    }

    /// Whether there is a sandbox that sleeps.
    pub(crate) fn has_image(&self) -> bool {
        self.root.join(IMAGE).is_dir()
    }

    /// Notes whether the session is paused, for workers to come.
    pub(crate) fn note_paused(&self, paused: bool) -> Result<(), HomeError> {
        let path = self.root.join(PAUSED);
        let done = match paused {
            true => write_whole(&self.root, PAUSED, b"", Durable::Yes).map_err(io::Error::other),
            false => match fs::remove_file(&path) {
                Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed,
            },
        };
        done.map_err(|source| HomeError::Make { path, source })
    }

    /// Whether the session is paused.
    pub(crate) fn is_paused(&self) -> bool {
        self.root.join(PAUSED).exists()
    }

    /// Removes what there is of sandboxes that sleep.
    pub(crate) fn drop_images(&self) {
        let path = self.root.join(IMAGE);
        for path in [path.with_extension("new"), path.with_extension("woken"), path] {
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "processes on disk that are of no use any more could not be removed");
                }
                _ => {}
            }
        }
    }

    /// Makes the session's own directory, so that its journal can be opened.
    pub(crate) fn make_root(&self) -> Result<(), HomeError> {
        make(&self.root)
    }

    /// What the workspace is made of; `None` before it was first made.
    pub(crate) fn layers(&self) -> Result<Option<Layers>, HomeError> {
        let wrong = |source| HomeError::Read { path: self.layers.clone(), source };
        match fs::read(&self.layers) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|why| wrong(why.into())),
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(why) => Err(wrong(why)),
        }
    }

    /// Says from now on what the workspace is made of. A crash leaves the old word or the new one.
    pub(crate) fn note_layers(&self, layers: &Layers) -> Result<(), HomeError> {
        let wrong = |source| HomeError::Make { path: self.layers.clone(), source };
        let text = serde_json::to_vec(layers).map_err(|why| wrong(why.into()))?;
        write_whole(&self.root, LAYERS, &text, Durable::Yes).map_err(|why| wrong(io::Error::other(why)))
    }

    /// Makes what is missing, with `fresh` for a workspace that was never there, and removes layers that were left behind. The
    /// journal's lock must be held.
    pub(crate) fn make(
        &self,
        flat: bool,
        fresh: impl FnOnce() -> Result<Layers, HomeError>,
    ) -> Result<(Layers, Base), HomeError> {
        make(&self.outputs)?;
        let layers = match self.layers()? {
            Some(layers) => layers,
            None => {
                let layers = fresh()?;
                self.note_layers(&layers)?;
                layers
            }
        };
        if layers.flat != flat {
            return Err(HomeError::Flat { flat: layers.flat });
        }
        let gone = || HomeError::Base { name: layers.base.clone(), path: self.state_dir.join("bases") };
        let base = Base::named(&self.state_dir, &layers.base).ok_or_else(gone)?;
        self.hold(layers.layer)?;
        let upper = self.layer(layers.layer).join("upper");
        if !upper.exists() {
            // It appears only when it is complete.
            let partial = upper.with_extension("partial");
            let wrong = |source| HomeError::Make { path: partial.clone(), source };
            if partial.exists() {
                palisade_sandbox::remove_tree(&partial).map_err(wrong)?;
            }
            DirBuilder::new().mode(0o755).create(&partial).and_then(|()| base::give(&partial)).map_err(wrong)?;
            if flat {
                base::copy(&base.path, &partial).map_err(wrong)?;
            }
            fs::rename(&partial, &upper).map_err(wrong)?;
        }
        self.sweep(layers.layer);
        Ok((layers, base))
    }

    /// Removes layers that are no longer part of the workspace.
    fn sweep(&self, kept: u64) {
        let kept = [kept.to_string(), format!("{kept}.cache"), format!("{kept}.img")];
        for entry in fs::read_dir(self.root.join("layers")).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if kept.iter().any(|kept| name == **kept) {
                continue;
            }
            let path = entry.path();
            let directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let removed = match directory {
                true => {
                    disk::clear(&path).map_err(io::Error::other).and_then(|()| palisade_sandbox::remove_tree(&path))
                }
                // A layer's disk goes with its layer.
                false if path.extension().is_some_and(|kind| kind == "img") && path.with_extension("").is_dir() => {
                    Ok(())
                }
                false => fs::remove_file(&path),
            };
            if let Err(error) = removed {
                tracing::warn!(path = %path.display(), %error, "a layer that is not needed any more could not be removed");
            }
        }
    }
}

/// Gives the top of a fresh layer the mode and the time of what lies below it: overlayfs shows the uppermost one's.
pub(crate) fn take_after(upper: &Path, below: &Path) -> io::Result<()> {
    if fs::read_dir(upper)?.next().is_some() {
        return Ok(());
    }
    let found = fs::metadata(below)?;
    fs::set_permissions(upper, found.permissions())?;
    File::open(upper)?.set_times(fs::FileTimes::new().set_modified(found.modified()?))
}

/// The checkpoints that sessions of a worker still need: those that their workspaces lie on, those that were taken of them
/// last, and those that a call under way would be undone to.
///
/// # Errors
/// When what a session needs cannot be told: then nothing may be removed.
pub fn checkpoints_in_use(state_dir: &Path) -> Result<BTreeSet<Id>, String> {
    let sessions = state_dir.join("sessions");
    let mut used = BTreeSet::new();
    let entries = match fs::read_dir(&sessions) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(used),
        entries => entries.map_err(|why| format!("{}: {why}", sessions.display()))?,
    };
    for entry in entries {
        let root = entry.map_err(|why| format!("{}: {why}", sessions.display()))?.path();
        let home = Home { root: root.clone(), ..Home::of(state_dir, "") };
        let home = Home { layers: root.join(LAYERS), transaction: root.join(TRANSACTION), ..home };
        if let Some(layers) = home.layers().map_err(|why| why.to_string())? {
            used.extend(layers.checkpoint);
            used.extend(layers.taken.iter().map(|taken| taken.id));
        }
        let open = Transaction::read(&home.transaction).map_err(|why| why.to_string())?;
        used.extend(open.map(|open| open.before));
    }
    Ok(used)
}

fn make(path: &Path) -> Result<(), HomeError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| HomeError::Make { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_id_is_never_a_path() {
        assert_eq!(directory_name("sesn_01Ab-c"), "sesn_01Ab-c");
        for hostile in ["", ".", "..", "../../etc", "a/b", "a\0b", "é"] {
            let name = directory_name(hostile);
            assert!(name.starts_with("id.") && name.len() == 67, "{hostile:?} became {name}");
        }
    }

    #[test]
    fn what_a_workspace_is_made_of_is_kept_and_what_it_is_not_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::of(dir.path(), "sesn_1");
        home.make_root().unwrap();
        let base = Base::make(dir.path(), None).unwrap();
        let fresh =
            || Ok(Layers { base: base.name.clone(), checkpoint: None, layer: 1, taken: Vec::new(), flat: false });
        let (layers, found) = home.make(false, fresh).unwrap();
        assert_eq!((&found, layers.layer), (&base, 1));
        fs::write(home.layer(1).join("file"), "x").unwrap();
        let next = Layers { layer: 2, ..layers };
        home.note_layers(&next).unwrap();
        // A crash before the old layer was removed.
        let (again, _) = home.make(false, || unreachable!("it is there")).unwrap();
        assert_eq!(again, next);
        assert!(matches!(home.make(true, fresh), Err(HomeError::Flat { flat: false })));
        assert!(home.layer(2).is_dir() && !home.layer(1).exists());
        fs::write(&home.layers, "{").unwrap();
        assert!(matches!(home.make(false, fresh), Err(HomeError::Read { .. })));
        fs::write(&home.layers, r#"{"base":"gone","checkpoint":null,"layer":1}"#).unwrap();
        assert!(matches!(home.make(false, fresh), Err(HomeError::Base { .. })));
    }

    #[test]
    fn a_limited_layer_is_kept_in_its_disk_and_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let limit = Limit { bytes: Some(16 << 20), inodes: None };
        let home = Home::of(dir.path(), "sesn_1").within(limit);
        home.make_root().unwrap();
        let base = Base::make(dir.path(), None).unwrap();
        let fresh =
            || Ok(Layers { base: base.name.clone(), checkpoint: None, layer: 1, taken: Vec::new(), flat: false });
        let (layers, _) = home.make(false, fresh).unwrap();
        let image = disk::image_of(&home.layer(1));
        if !image.exists() {
            return eprintln!("not run here: no file system can be made in a file, or there are project quotas");
        }
        fs::write(home.layer(1).join("upper/file"), "content").unwrap();
        home.release();
        assert!(!home.layer(1).join("upper").exists());
        // Another item, which may have no limit any more.
        let home = Home::of(dir.path(), "sesn_1");
        home.make(false, || unreachable!("it is there")).unwrap();
        assert_eq!(fs::read_to_string(home.layer(1).join("upper/file")).unwrap(), "content");
        let home = home.within(limit);
        home.note_layers(&Layers { layer: 2, ..layers }).unwrap();
        home.make(false, || unreachable!("it is there")).unwrap();
        assert!(!image.exists() && !home.layer(1).exists() && disk::image_of(&home.layer(2)).exists());
        assert_eq!(fs::read_dir(home.layer(2).join("upper")).unwrap().count(), 0);
    }

    #[test]
    fn a_workspace_without_layers_has_all_of_its_base() {
        let dir = tempfile::tempdir().unwrap();
        let seed = dir.path().join("seed");
        fs::create_dir(&seed).unwrap();
        fs::write(seed.join("file"), "x").unwrap();
        let base = Base::make(dir.path(), Some(&seed)).unwrap();
        let home = Home::of(dir.path(), "sesn_1");
        home.make_root().unwrap();
        let fresh =
            || Ok(Layers { base: base.name.clone(), checkpoint: None, layer: 1, taken: Vec::new(), flat: true });
        home.make(true, fresh).unwrap();
        let file = home.layer(1).join("upper/file");
        assert_eq!(fs::read_to_string(&file).unwrap(), "x");
        fs::write(&file, "changed").unwrap();
        home.make(true, fresh).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "changed");
        assert_eq!(fs::read_to_string(base.path.join("file")).unwrap(), "x");
    }

    #[test]
    fn what_a_session_needs_is_known_or_nothing_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(checkpoints_in_use(dir.path()).unwrap(), BTreeSet::new());
        let ids: Vec<Id> = (1..4u8).map(|n| format!("{n:02x}").repeat(32).parse().unwrap()).collect();
        let home = Home::of(dir.path(), "sesn_1");
        home.make_root().unwrap();
        let taken = vec![Taken { id: ids[1], at_ms: 0, why: String::new() }];
        home.note_layers(&Layers { base: "empty".to_owned(), checkpoint: Some(ids[0]), layer: 1, taken, flat: false })
            .unwrap();
        Transaction::prepared("sesn_1", "call", ids[2], std::time::SystemTime::UNIX_EPOCH)
            .write(&home.transaction)
            .unwrap();
        assert_eq!(checkpoints_in_use(dir.path()).unwrap(), ids.into_iter().collect());
        fs::write(&home.layers, "{").unwrap();
        checkpoints_in_use(dir.path()).unwrap_err();
    }
}
