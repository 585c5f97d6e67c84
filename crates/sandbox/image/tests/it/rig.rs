//! A place for one test: a store, a layout beside it, and a look at everything around them.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use palisade_api::Timestamp;
use palisade_image::{CredentialSources, Error, Limits, Policy, Pulled, Reference, Registries, Store};

use crate::make::{Image, Layer, image};

pub(crate) struct Rig {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) policy: Policy,
}

/// The time of the tests: whole seconds from the epoch.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

impl Rig {
    pub(crate) fn new() -> Rig {
        let limits = Limits { pause: Duration::from_millis(1), attempts: 3, ..Limits::default() };
        let policy = Policy { registries: Registries::Any, limits, ..Policy::default() };
        Rig { dir: tempfile::tempdir().unwrap(), policy }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn store(&self) -> Store {
        Store::open(self.path("store")).unwrap()
    }

    pub(crate) async fn pull(&self, reference: &str) -> Result<Pulled, Error> {
        let reference: Reference = reference.parse().unwrap();
        self.store().pull(&reference, &self.policy, &CredentialSources::none(), at(1)).await
    }

    pub(crate) async fn import(&self, image: &Image) -> Result<Pulled, Error> {
        let layout = self.path("layout");
        let _ = std::fs::remove_dir_all(&layout);
        image.layout(&layout, "latest");
        self.store().import(layout, &self.policy, at(1)).await
    }

    /// Imports an image of one layer and gives its root.
    pub(crate) async fn unpack(&self, layer: Layer) -> Result<PathBuf, Error> {
        self.import(&image(vec![layer])).await.map(|pulled| pulled.image.layers().remove(0))
    }

    /// What the store holds, below some of its parts.
    pub(crate) fn held(&self, parts: &[&str]) -> Vec<String> {
        let mut found = Vec::new();
        for part in parts {
            for entry in std::fs::read_dir(self.path("store").join(part)).unwrap() {
                found.push(format!("{part}/{}", entry.unwrap().file_name().display()));
            }
        }
        found.sort();
        found
    }

    /// Asserts that nothing of an image came into the store.
    pub(crate) fn assert_nothing_made(&self) {
        assert_eq!(self.held(&["layers", "images", "pins", "blobs/sha256", "tmp"]), Vec::<String>::new());
    }
}

/// Everything below a directory, except one part of it: kinds, modes, links and contents.
pub(crate) fn snapshot(dir: &Path, except: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path == except {
                continue;
            }
            let meta = std::fs::symlink_metadata(&path).unwrap();
            let content = match &meta {
                meta if meta.is_dir() => String::new(),
                meta if meta.is_symlink() => std::fs::read_link(&path).unwrap().display().to_string(),
                meta if meta.is_file() => String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned(),
                _ => "special".to_owned(),
            };
            if meta.is_dir() {
                left.push(path.clone());
            }
            found.insert(path, format!("{:o} {} {}: {content}", meta.mode(), meta.nlink(), meta.uid()));
        }
    }
    found
}
