//! A directory with something beside it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A directory that a target may fill, and one outside it that it may not touch.
pub struct Scene {
    dir: tempfile::TempDir,
    before: BTreeMap<PathBuf, String>,
}

impl Scene {
    /// Makes them anew.
    #[expect(clippy::new_without_default, reason = "it makes directories")]
    pub fn new() -> Scene {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        for name in ["inside", "scratch", "outside", "outside/directory"] {
            fs::create_dir(dir.path().join(name)).expect("a directory can be made");
        }
        fs::write(dir.path().join("outside/canary"), "alive").expect("a file can be written");
        let mut scene = Scene { dir, before: BTreeMap::new() };
        scene.before = scene.around();
        scene
    }

    /// The directory that may be filled.
    pub fn inside(&self) -> PathBuf {
        self.dir.path().join("inside")
    }

    /// A directory for what is only needed meanwhile.
    pub fn scratch(&self) -> PathBuf {
        self.dir.path().join("scratch")
    }

    fn around(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(self.dir.path()).expect("it is there").flatten() {
            let name = entry.file_name();
            found.insert(name.clone().into(), String::new());
            if name == "outside" {
                found.extend(contents(&entry.path()));
            }
        }
        found
    }

    /// Ends the process when anything outside has changed.
    pub fn check(&self) {
        assert_eq!(self.before, self.around(), "something outside was touched");
    }
}

/// What is in a directory, by path: kind, mode, owner, links and content of each entry. Nothing is followed.
pub fn contents(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let content = if meta.is_dir() {
            waiting.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
            String::new()
        } else if meta.is_file() {
            fs::read(&path).unwrap_or_default().escape_ascii().to_string()
        } else {
            fs::read_link(&path).unwrap_or_default().as_os_str().as_bytes().escape_ascii().to_string()
        };
        let links = if meta.is_dir() { 0 } else { meta.nlink() };
        let said = format!("{:o} {}:{} {links} {content}", meta.mode(), meta.uid(), meta.gid());
        found.insert(path.strip_prefix(root).unwrap_or(&path).to_owned(), said);
    }
    found
}
