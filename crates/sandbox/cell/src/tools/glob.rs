//! `glob`: which files there are.

use std::cmp::Reverse;
use std::ffi::{CStr, OsStr};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};
use serde_json::Value;

use super::path::{Roots, explain};
use super::walk::{Directory, Stop, Visit, order, walk};
use super::{base, pattern};

const MAX_PATHS: usize = 200;
/// Alternatives within each other in a pattern, which are taken apart by recursion.
const MAX_NESTED: usize = 32;
/// Paths that are held until all but the newest are dropped.
const HELD: usize = 4096;

pub(super) fn glob(roots: &Roots, input: &Value, stop: &Stop) -> Result<String, String> {
    let pattern = pattern("glob", input)?;
    if nested(pattern) > MAX_NESTED {
        return Err(format!("glob: more than {MAX_NESTED} alternatives within each other in the pattern"));
    }
    if pattern.starts_with('/') {
        return Err("glob: absolute pattern not permitted; pass a relative pattern (and optionally path)".to_owned());
    }
    if pattern.split('/').any(|part| part == "..") {
        return Err("glob: '..' is not permitted in a pattern".to_owned());
    }
    let (given, root) = base(roots, "glob", input)?;
    let meta = fs::metadata(&root).map_err(|why| explain("glob", &given, &why))?;
    if !meta.is_dir() {
        return Err(format!("glob: {given} is not a directory"));
    }
    let matcher = GlobBuilder::new(pattern.strip_prefix("./").unwrap_or(pattern))
        .literal_separator(true)
        .backslash_escape(true)
        .build()
        .map_err(|why| format!("glob: {why}"))?
        .compile_matcher();
    // As in a shell, a leading dot is matched by a dot only.
    let hidden = pattern.split('/').any(|part| part.starts_with('.') && part != ".");
    // A matcher of one's own: its scratch space is then no matter of contention.
    let visitor = || Newest { matcher: matcher.clone(), files: Vec::new(), least: None };
    let found = Directory::root(&root).map(|root| walk(root, hidden, stop, visitor)).unwrap_or_default();
    let mut newest = Newest { matcher, files: found.into_iter().flat_map(|part| part.files).collect(), least: None };
    newest.prune();
    if newest.files.is_empty() {
        return Ok("no matches".to_owned());
    }
    let paths: Vec<_> =
        newest.files.iter().map(|(_, path)| root.join(OsStr::from_bytes(path)).into_os_string()).collect();
    let paths: Vec<&[u8]> = paths.iter().map(|path| path.as_bytes()).collect();
    // A name is as good a place for a terminal's commands as a line.
    Ok(String::from_utf8_lossy(&crate::shell::strip_escapes(&paths.join(&b'\n'))).into_owned())
}

/// The newest of the files that match.
struct Newest {
    matcher: GlobMatcher,
    files: Vec<((i64, u64), Vec<u8>)>,
    /// What is older than this is not among them.
    least: Option<(i64, u64)>,
}

impl Newest {
    fn prune(&mut self) {
        self.files.sort_unstable_by(|a, b| Reverse(a.0).cmp(&Reverse(b.0)).then_with(|| order(&a.1, &b.1)));
        self.files.truncate(MAX_PATHS);
        if self.files.len() == MAX_PATHS {
            self.least = self.files.last().map(|file| file.0);
        }
    }
}

impl Visit for Newest {
    fn wants(&self, _: &[u8]) -> bool {
        true
    }

    fn file(&mut self, directory: &Directory, name: &CStr, path: &[u8]) {
        if !self.matcher.is_match(Path::new(OsStr::from_bytes(path))) {
            return;
        }
        let changed = directory.changed(name).unwrap_or_default();
        if self.least.is_some_and(|least| changed < least) {
            return;
        }
        self.files.push((changed, path.to_vec()));
        if self.files.len() >= HELD {
            self.prune();
        }
    }
}

/// How many braces are open at once at most.
fn nested(pattern: &str) -> usize {
    let depths = pattern.bytes().scan(0usize, |open, byte| {
        match byte {
            b'{' => *open += 1,
            b'}' => *open = open.saturating_sub(1),
            _ => {}
        }
        Some(*open)
    });
    depths.max().unwrap_or(0)
}
