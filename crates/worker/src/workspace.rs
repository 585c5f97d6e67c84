//! The directories of a session on this host. They are kept between work items: a session that comes back finds its files.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

/// A session's directories.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    pub(crate) root: PathBuf,
    pub(crate) workspace: PathBuf,
    pub(crate) outputs: PathBuf,
    pub(crate) journal: PathBuf,
    /// Names of the skills that are in the workspace, as JSON: what may be removed from it.
    skills: PathBuf,
}

/// Why a session's directories could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HomeError {
    #[error("cannot make the directory {path}: {source}")]
    Make { path: PathBuf, source: io::Error },
    #[error("cannot copy {path} into the fresh workspace: {source}")]
    Seed { path: PathBuf, source: io::Error },
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
            workspace: root.join("workspace"),
            outputs: root.join("outputs"),
            journal: root.join("journal.jsonl"),
            skills: root.join("skills.json"),
            root,
        }
    }

    /// The skills that an item put into the workspace and did not take out again.
    pub(crate) fn installed_skills(&self) -> Vec<String> {
        let text = fs::read(&self.skills).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Notes which skills are in the workspace.
    pub(crate) fn note_skills(&self, names: &[String]) -> io::Result<()> {
        fs::write(&self.skills, serde_json::to_vec(names)?)
    }

    /// Makes the session's own directory, so that its journal can be opened.
    pub(crate) fn make_root(&self) -> Result<(), HomeError> {
        make(&self.root)
    }

    /// Makes what is missing. A new workspace appears only when its seed is complete. The journal's lock must be held.
    pub(crate) fn make(&self, seed: Option<&Path>) -> Result<(), HomeError> {
        make(&self.outputs)?;
        if self.workspace.exists() {
            return Ok(());
        }
        let fail = |source| HomeError::Make { path: self.workspace.clone(), source };
        let partial = self.root.join("workspace.partial");
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(fail)?;
        }
        make(&partial)?;
        if let Some(seed) = seed {
            copy(seed, &partial).map_err(|source| HomeError::Seed { path: seed.to_owned(), source })?;
        }
        fs::rename(&partial, &self.workspace).map_err(fail)
    }
}

fn make(path: &Path) -> Result<(), HomeError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| HomeError::Make { path: path.to_owned(), source })
}

/// Copies a tree: files with their modes, symbolic links as links; sockets, pipes and devices are left out.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
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
        }
    }
    Ok(())
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
    fn a_seed_is_copied_once_and_links_stay_links() {
        let dir = tempfile::tempdir().unwrap();
        let seed = dir.path().join("seed");
        fs::create_dir_all(seed.join("deep")).unwrap();
        fs::write(seed.join("deep/file"), "x").unwrap();
        symlink("/etc/passwd", seed.join("link")).unwrap();
        let home = Home::of(dir.path(), "sesn_1");
        home.make(Some(&seed)).unwrap();
        assert_eq!(fs::read_to_string(home.workspace.join("deep/file")).unwrap(), "x");
        assert!(fs::symlink_metadata(home.workspace.join("link")).unwrap().is_symlink());
        fs::write(home.workspace.join("deep/file"), "changed").unwrap();
        home.make(Some(&seed)).unwrap();
        assert_eq!(fs::read_to_string(home.workspace.join("deep/file")).unwrap(), "changed");
    }
}
