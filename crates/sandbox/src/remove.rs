//! Removing trees that a sandbox has left: without root, directories may be closed to their own owner.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// A directory for what sandboxes leave, which goes when this is dropped.
#[derive(Debug)]
pub struct Temporary(PathBuf);

impl Temporary {
    /// Makes one with a name that begins with `prefix`, in a directory or where temporary files are kept.
    ///
    /// # Errors
    /// It cannot be made there.
    pub fn new(prefix: &str, within: Option<&Path>) -> io::Result<Temporary> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(prefix);
        let made = match within {
            Some(place) => builder.tempdir_in(place),
            None => builder.tempdir(),
        };
        Ok(Temporary(made?.keep()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Lets it stay.
    pub fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.0)
    }

    /// Removes it. Nothing may run in it any more.
    ///
    /// # Errors
    /// Something in it cannot be removed.
    pub fn close(self) -> io::Result<()> {
        remove_tree(&self.keep())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            // It cannot be told to anybody.
            let _ = remove_tree(&self.0);
        }
    }
}

/// Removes a tree in which nothing runs any more. Links are removed, never followed.
///
/// # Errors
/// Something in it cannot be removed.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(why) if why.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path)?;
            fs::remove_dir_all(path)
        }
        done => done,
    }
}

fn open_up(directory: &Path) -> io::Result<()> {
    fs::set_permissions(directory, Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_directories_are_removed_and_links_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (kept, tree) = (dir.path().join("kept"), dir.path().join("tree"));
        fs::create_dir(&kept).unwrap();
        fs::create_dir_all(tree.join("a/b")).unwrap();
        std::os::unix::fs::symlink(&kept, tree.join("a/b/link")).unwrap();
        fs::set_permissions(tree.join("a/b"), Permissions::from_mode(0o000)).unwrap();
        fs::set_permissions(tree.join("a"), Permissions::from_mode(0o000)).unwrap();
        open_up(&tree).unwrap();
        assert!(tree.join("a/b/link").is_symlink());
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && kept.is_dir());
    }

    #[test]
    fn a_temporary_directory_goes_unless_it_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let made = || {
            let temporary = Temporary::new("test-", Some(dir.path())).unwrap();
            fs::create_dir(temporary.path().join("closed")).unwrap();
            fs::set_permissions(temporary.path().join("closed"), Permissions::from_mode(0o000)).unwrap();
            temporary
        };
        drop(made());
        made().close().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(made().keep().is_dir());
    }
}
