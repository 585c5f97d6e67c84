//! What every fresh workspace starts with: one directory for all sessions, which nobody writes to again.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};

use super::HomeError;

/// Whose the files in a workspace are inside a sandbox.
const AGENT: u32 = 1000;

/// An immutable directory below `<state>/bases`, named by what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

impl Base {
    /// The base with the content of `seed`, copied if there is none like it yet.
    pub(crate) fn make(state_dir: &Path, seed: Option<&Path>) -> Result<Base, HomeError> {
        let bases = state_dir.join("bases");
        super::make(&bases)?;
        let name = match seed {
            None => "empty".to_owned(),
            Some(seed) => name_of(seed).map_err(|source| HomeError::Seed { path: seed.to_owned(), source })?,
        };
        let base = Base { path: bases.join(&name), name };
        if base.path.exists() {
            return Ok(base);
        }
        let partial = bases.join(format!("{}.{}.partial", base.name, std::process::id()));
        let fail = |source| HomeError::Make { path: partial.clone(), source };
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(fail)?;
        }
        DirBuilder::new().mode(0o755).create(&partial).map_err(fail)?;
        give(&partial).map_err(fail)?;
        if let Some(seed) = seed {
            copy(seed, &partial).map_err(|source| HomeError::Seed { path: seed.to_owned(), source })?;
        }
        match fs::rename(&partial, &base.path) {
            Ok(()) => Ok(base),
            // Another worker made the same one meanwhile.
            Err(_) if base.path.exists() => fs::remove_dir_all(&partial).map_err(fail).map(|()| base),
            Err(source) => Err(HomeError::Make { path: base.path, source }),
        }
    }

    /// A base that an earlier life of the worker made, by its name.
    pub(crate) fn named(state_dir: &Path, name: &str) -> Option<Base> {
        let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric());
        let path = state_dir.join("bases").join(name);
        (plain && path.is_dir()).then(|| Base { name: name.to_owned(), path })
    }
}

/// With root, what is in a workspace belongs to the agent; else everything is the worker's own.
pub(super) fn give(path: &Path) -> io::Result<()> {
    if rustix::process::geteuid().is_root() { lchown(path, Some(AGENT), Some(AGENT)) } else { Ok(()) }
}

/// A digest of names, kinds, modes, sizes and times: a seed in which something was changed has another one.
fn name_of(seed: &Path) -> io::Result<String> {
    let mut found = BTreeMap::new();
    look(seed, Path::new(""), &mut found)?;
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for (path, what) in found {
        context.update(path.as_os_str().as_encoded_bytes());
        context.update(what.as_bytes());
    }
    Ok(context.finish().as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}

fn look(seed: &Path, below: &Path, found: &mut BTreeMap<PathBuf, String>) -> io::Result<()> {
    for entry in fs::read_dir(seed.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        let meta = fs::symlink_metadata(seed.join(&path))?;
        if meta.is_dir() {
            look(seed, &path, found)?;
        }
        let target = if meta.is_symlink() { fs::read_link(seed.join(&path))? } else { PathBuf::new() };
        let size = if meta.is_file() { meta.size() } else { 0 };
        let what = format!("\0{:o} {size} {}.{} {}\0", meta.mode(), meta.mtime(), meta.mtime_nsec(), target.display());
        found.insert(path, what);
    }
    Ok(())
}

/// Copies a tree: files with their modes, symbolic links as links; sockets, pipes and devices are left out.
pub(super) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            fs::create_dir(&target)?;
            copy(&entry.path(), &target)?;
            let mode = entry.metadata()?.permissions().mode() & 0o777;
            fs::set_permissions(&target, fs::Permissions::from_mode(mode | 0o700))?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(entry.path())?, &target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &target)?;
        } else {
            continue;
        }
        give(&target)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_copied_once_for_all_and_again_when_it_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let seed = dir.path().join("seed");
        fs::create_dir_all(seed.join("deep")).unwrap();
        fs::write(seed.join("deep/file"), "x").unwrap();
        symlink("/etc/passwd", seed.join("link")).unwrap();
        let base = Base::make(dir.path(), Some(&seed)).unwrap();
        assert_eq!(fs::read_to_string(base.path.join("deep/file")).unwrap(), "x");
        assert!(fs::symlink_metadata(base.path.join("link")).unwrap().is_symlink());
        assert_eq!(Base::make(dir.path(), Some(&seed)).unwrap(), base);
        assert_eq!(Base::named(dir.path(), &base.name).as_ref(), Some(&base));
        fs::write(seed.join("deep/file"), "longer").unwrap();
        let other = Base::make(dir.path(), Some(&seed)).unwrap();
        assert_ne!(other.path, base.path);
        assert_eq!(fs::read_to_string(other.path.join("deep/file")).unwrap(), "longer");
        for hostile in ["", ".", "..", "../x", "a/b"] {
            assert_eq!(Base::named(dir.path(), hostile), None, "{hostile:?}");
        }
    }
}
