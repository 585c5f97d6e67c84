//! Which paths the file tools may use.
//!
//! The walls of the sandbox are what protects the host; this rule protects the agent's own work from a tool that follows a
//! link somewhere unexpected.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Links that are followed before the path is taken for a loop.
const MAX_LINKS: usize = 40;

/// The places that tools may use, with whether they may write there, and where relative paths begin.
pub(crate) struct Roots {
    workdir: PathBuf,
    places: Vec<(PathBuf, bool)>,
}

/// What a path is wanted for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    Reading,
    Writing,
}

impl Roots {
    pub(crate) fn new(workdir: &str, roots: &[(String, bool)]) -> Roots {
        let places = roots.iter().map(|(root, writable)| (PathBuf::from(root), *writable)).collect();
        Roots { workdir: PathBuf::from(workdir), places }
    }

    /// The real path of `given`: `..` folded first, then every link followed, a dangling last one too.
    pub(crate) fn resolve(&self, tool: &str, given: &str, purpose: For) -> Result<PathBuf, String> {
        if given.is_empty() || given.contains('\0') {
            return Err(format!("{tool}: the path must not be empty or hold NUL"));
        }
        let outside = || format!("{tool}: path '{given}' is outside the session's working directory");
        let real = follow(&fold(&self.workdir.join(given))).map_err(|why| match why.raw_os_error() {
            Some(libc::ELOOP) => format!("{tool}: {given}: too many symbolic links"),
            _ => format!("{tool}: {given}: {why}"),
        })?;
        let root = self
            .places
            .iter()
            .filter(|(root, _)| real.starts_with(root))
            .max_by_key(|(root, _)| root.as_os_str().len());
        match root {
            None => Err(outside()),
            Some((_, false)) if purpose == For::Writing => {
                Err(format!("{tool}: path '{given}' is on a read-only mount"))
            }
            Some(_) => Ok(real),
        }
    }
}

/// Folds `.` and `..` without looking at the file system.
fn fold(path: &Path) -> PathBuf {
    let mut folded = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => folded.push(name),
            Component::ParentDir => {
                folded.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    folded
}

fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut real = PathBuf::from("/");
    let mut rest: Vec<std::ffi::OsString> = path.components().rev().filter_map(normal).map(ToOwned::to_owned).collect();
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == ".." {
            real.pop();
            continue;
        }
        real.push(&name);
        match fs::read_link(&real) {
            Ok(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(io::Error::from_raw_os_error(libc::ELOOP));
                }
                real.pop();
                if target.is_absolute() {
                    real = PathBuf::from("/");
                }
                for part in target.components().rev() {
                    match part {
                        Component::Normal(name) => rest.push(name.to_owned()),
                        Component::ParentDir => rest.push("..".into()),
                        Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
                    }
                }
            }
            // Not a link, or not there (yet).
            Err(why) if matches!(why.raw_os_error(), Some(libc::EINVAL | libc::ENOENT | libc::ENOTDIR)) => {}
            Err(why) => return Err(why),
        }
    }
    Ok(real)
}

fn normal<'a>(part: Component<'a>) -> Option<&'a std::ffi::OsStr> {
    match part {
        Component::Normal(name) => Some(name),
        _ => None,
    }
}

/// Says what went wrong with a file the way the other tools do.
pub(crate) fn explain(tool: &str, given: &str, why: &io::Error) -> String {
    match why.raw_os_error() {
        Some(libc::ENOENT) => format!("{tool}: {given}: no such file or directory"),
        Some(libc::EACCES | libc::EPERM) => format!("{tool}: {given}: permission denied"),
        Some(libc::EROFS) => format!("{tool}: {given}: read-only file system"),
        Some(libc::ENOSPC | libc::EDQUOT) => format!("{tool}: {given}: no space left"),
        Some(libc::EISDIR) => format!("{tool}: {given}: is a directory"),
        _ => format!("{tool}: {given}: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_are_folded_before_links_are_followed() {
        assert_eq!(fold(Path::new("/workspace/a/../../etc/./passwd")), Path::new("/etc/passwd"));
        assert_eq!(fold(Path::new("/../..")), Path::new("/"));
    }
}
