//! What the checks look at: the crates as cargo sees them and the files that git tracks or is about to.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// The repository, read once.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// The repository's folder.
    pub(crate) root: PathBuf,
    /// Members of the workspace, in order of name.
    pub(crate) crates: Vec<Crate>,
    /// Text files, with paths from the root, in order of path.
    pub(crate) files: Vec<TextFile>,
}

/// One member of the workspace.
#[derive(Debug, Clone, Default)]
pub(crate) struct Crate {
    pub(crate) name: String,
    pub(crate) description: String,
    /// The manifest's path from the root, with `/`.
    pub(crate) manifest: String,
    pub(crate) dependencies: Vec<Dependency>,
}

/// One line of a dependencies table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    pub(crate) kind: Kind,
}

/// Which table a dependency stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Normal,
    Dev,
    Build,
}

/// A file with its text.
#[derive(Debug, Clone)]
pub(crate) struct TextFile {
    pub(crate) path: String,
    pub(crate) text: String,
}

impl TextFile {
    /// The part of the path after the last dot, or nothing.
    pub(crate) fn extension(&self) -> &str {
        Path::new(&self.path).extension().and_then(|it| it.to_str()).unwrap_or_default()
    }
}

impl Workspace {
    /// Reads the repository that this command was started in.
    pub(crate) fn load() -> Result<Self, String> {
        let root = root()?;
        let mut metadata = cargo(&root);
        metadata.args(["metadata", "--no-deps", "--format-version", "1"]);
        let metadata = captured(&mut metadata, "cargo metadata")?;
        let crates = crates(&metadata, &root)?;
        let files = files(&root)?;
        Ok(Self { root, crates, files })
    }

    /// The text of a file, when there is such a file.
    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        self.files.iter().find(|file| file.path == path).map(|file| file.text.as_str())
    }
}

/// The repository's folder: the parent of this package's.
pub(crate) fn root() -> Result<PathBuf, String> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").ok_or("start this as `cargo xtask`, not by its path")?;
    let package = PathBuf::from(package);
    package.parent().map(Path::to_owned).ok_or_else(|| format!("{} has no parent folder", package.display()))
}

/// The cargo that runs this command, in the repository, without input.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root).stdin(Stdio::null());
    command
}

fn captured(command: &mut Command, what: &str) -> Result<Vec<u8>, String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("{what} did not start: {error}"))?;
    if !output.status.success() {
        return Err(format!("{what} failed: {}", output.status));
    }
    Ok(output.stdout)
}

fn crates(metadata: &[u8], root: &Path) -> Result<Vec<Crate>, String> {
    let metadata: Value =
        serde_json::from_slice(metadata).map_err(|error| format!("cargo metadata is not JSON: {error}"))?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata names no packages")?;
    let mut crates = Vec::with_capacity(packages.len());
    for package in packages {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        let manifest = manifest.strip_prefix(root).unwrap_or(manifest);
        let dependencies = package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default();
        crates.push(Crate {
            name: package["name"].as_str().unwrap_or_default().to_owned(),
            description: package["description"].as_str().unwrap_or_default().to_owned(),
            manifest: manifest.to_string_lossy().into_owned(),
            dependencies: dependencies.iter().map(dependency).collect(),
        });
    }
    crates.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(crates)
}

fn dependency(value: &Value) -> Dependency {
    let kind = match value["kind"].as_str() {
        Some("dev") => Kind::Dev,
        Some("build") => Kind::Build,
        _ => Kind::Normal,
    };
    Dependency { name: value["name"].as_str().unwrap_or_default().to_owned(), kind }
}

/// Tracked files and those that the next `git add` would track, so that a slip shows before it is committed.
fn files(root: &Path) -> Result<Vec<TextFile>, String> {
    let mut command = Command::new("git");
    command.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let list = captured(&mut command, "git ls-files")?;
    let mut paths: Vec<&str> =
        list.split(|byte| *byte == 0).filter_map(|path| std::str::from_utf8(path).ok()).collect();
    paths.sort_unstable();
    paths.dedup();
    let mut files = Vec::with_capacity(paths.len());
    for path in paths.into_iter().filter(|path| !path.is_empty()) {
        let full = root.join(path);
        // Deleted but not yet committed, a link, or a submodule: nothing of ours to read.
        if !full.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
            continue;
        }
        let bytes = std::fs::read(&full).map_err(|error| format!("{path} cannot be read: {error}"))?;
        if let Ok(text) = String::from_utf8(bytes)
            && !text.contains('\0')
        {
            files.push(TextFile { path: path.to_owned(), text });
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_are_read_from_metadata() {
        let metadata = br#"{"packages":[{"name":"b","description":"B.","manifest_path":"/r/crates/b/Cargo.toml",
            "dependencies":[{"name":"a","kind":null},{"name":"t","kind":"dev"},{"name":"c","kind":"build"}]},
            {"name":"a","description":null,"manifest_path":"/r/a/Cargo.toml","dependencies":[]}]}"#;
        let crates = crates(metadata, Path::new("/r")).unwrap();
        assert_eq!(crates.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(crates[1].manifest, "crates/b/Cargo.toml");
        let kinds: Vec<Kind> = crates[1].dependencies.iter().map(|it| it.kind).collect();
        assert_eq!(kinds, [Kind::Normal, Kind::Dev, Kind::Build]);
    }
}
