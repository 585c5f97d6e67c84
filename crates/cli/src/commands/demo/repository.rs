//! The repository that is surveyed: a copy of what git knows of it, or a small one that is made up.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::output::{Context as _, Failure, Outcome};

/// Files beyond this are left out, in bytes.
const LARGEST: u64 = 2 << 20;
/// No more than this is copied, in bytes and in files: the survey is a demonstration.
const MOST_BYTES: u64 = 64 << 20;
const MOST_FILES: usize = 20_000;

/// What was copied.
pub(super) struct Copied {
    /// Where from; none when it was made up.
    pub(super) from: Option<PathBuf>,
    pub(super) files: usize,
    pub(super) left_out: usize,
}

/// The top of the git repository around `path`, if there is one and git is installed.
fn top(path: &Path) -> Option<PathBuf> {
    let output = git(path).args(["rev-parse", "--show-toplevel"]).stderr(Stdio::null()).output().ok()?;
    let line = output.stdout.strip_suffix(b"\n").unwrap_or(&output.stdout);
    output.status.success().then(|| PathBuf::from(std::ffi::OsStr::from_bytes(line)))
}

fn git(path: &Path) -> Command {
    let mut git = Command::new("git");
    // A repository of somebody else must not make git run anything.
    git.arg("-C").arg(path).args([
        "-c",
        "core.fsmonitor=false",
        "-c",
        "core.hooksPath=/dev/null",
        "-c",
        "safe.directory=*",
    ]);
    git.stdin(Stdio::null());
    git
}

/// Puts the repository into `seed`: the one at `wanted`, else the one around the working directory, else a made-up one.
pub(super) fn copy(wanted: Option<&Path>, seed: &Path) -> Outcome<Copied> {
    let from = match wanted {
        Some(path) => Some(top(path).ok_or_else(|| {
            Failure::new(format!("{} cannot be surveyed", path.display()))
                .why("it is not in a git repository, or git is not installed")
                .fix("name a git repository, or leave --repo out")
        })?),
        None => std::env::current_dir().ok().and_then(|here| top(&here)),
    };
    match from {
        Some(from) => copy_known(&from, seed).context(format!("{} cannot be copied", from.display())),
        None => make_up(seed).context("the sample repository cannot be made"),
    }
}

/// Copies what git tracks, and what it would: not what is ignored, and not git's own directory.
fn copy_known(from: &Path, seed: &Path) -> std::io::Result<Copied> {
    let listed =
        git(from).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"]).output()?;
    if !listed.status.success() {
        return Err(std::io::Error::other(String::from_utf8_lossy(&listed.stderr).trim().to_owned()));
    }
    let (mut files, mut left_out, mut bytes) = (0, 0, 0);
    for name in listed.stdout.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let name = Path::new(std::ffi::OsStr::from_bytes(name));
        if name.is_absolute() || name.components().any(|part| matches!(part.as_os_str().as_bytes(), b".." | b"target"))
        {
            left_out += 1;
            continue;
        }
        let (source, target) = (from.join(name), seed.join(name));
        // What was deleted and not committed is still listed; a submodule is a directory.
        let Ok(meta) = fs::symlink_metadata(&source) else { continue };
        let fits = meta.len() <= LARGEST && bytes + meta.len() <= MOST_BYTES && files < MOST_FILES;
        if !(meta.is_file() && fits || meta.is_symlink()) {
            left_out += 1;
            continue;
        }
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        if meta.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
        } else {
            bytes += fs::copy(&source, &target)?;
        }
        files += 1;
    }
    Ok(Copied { from: Some(from.to_owned()), files, left_out })
}

fn make_up(seed: &Path) -> std::io::Result<Copied> {
    const FILES: [(&str, &str); 5] = [
        ("README.md", "# Greeter\n\nSays hello to whoever is named.\n"),
        ("Cargo.toml", "[package]\nname = \"greeter\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[dependencies]\n"),
        ("Cargo.lock", "version = 4\n\n[[package]]\nname = \"greeter\"\nversion = \"0.1.0\"\n"),
        (
            "src/main.rs",
            "fn main() {\n    // TODO: take the name from the command line\n    println!(\"hello, world\");\n}\n",
        ),
        (".gitignore", "target/\n"),
    ];
    fs::create_dir_all(seed.join("src"))?;
    for (name, content) in FILES {
        fs::write(seed.join(name), content)?;
    }
    Ok(Copied { from: None, files: FILES.len(), left_out: 0 })
}

/// A file of the copy that says what the project is; any file at all when there is none.
pub(super) fn readme(seed: &Path) -> String {
    let names = ["README.md", "README", "README.rst", "README.txt", "readme.md", "Cargo.toml", "package.json"];
    let found = names.iter().find(|name| seed.join(name).is_file());
    format!("/workspace/{}", found.unwrap_or(&"README.md"))
}
