//! Changes as a patch.

use std::io::Write as _;

use similar::TextDiff;

use super::view::{self, Base, Found};
use super::{Change, ChangeKind, EntryKind, Version};
use crate::store::Store;
use crate::store::index::Index;
use crate::{LayerPath, Result};

/// Files above this size are not compared line by line.
const TEXT: u64 = 1 << 20;

/// Appends what changed at one path.
pub(super) fn write(
    store: &Store,
    index: &Index,
    base: Option<&Base>,
    change: &Change,
    found: &[Option<Found>; 2],
    out: &mut Vec<u8>,
) -> Result<()> {
    // A patch knows no directories, and only one kind of file at each path.
    let listed = |version: Option<Version>| version.filter(|it| it.kind != EntryKind::Directory);
    let (before, after) = (listed(change.before), listed(change.after));
    let bytes = |found: &Option<Found>| -> Result<Vec<u8>> {
        let file = found.as_ref().filter(|it| it.version().is_some_and(|it| it.kind != EntryKind::Directory));
        file.map_or(Ok(Vec::new()), |it| view::read(store, index, base, &change.path, it, TEXT))
    };
    let (old, new) = (bytes(&found[0])?, bytes(&found[1])?);
    match (before, after) {
        (None, None) => {}
        (Some(a), Some(b)) if a.kind != b.kind => {
            // Git has no change of kind: it is removed, and made anew.
            one(&change.path, Some(a), None, &old, &[], out);
            one(&change.path, None, Some(b), &[], &new, out);
        }
        (Some(_), Some(_)) if change.kind == ChangeKind::Mode => one(&change.path, before, after, &[], &[], out),
        (before, after) => one(&change.path, before, after, &old, &new, out),
    }
    Ok(())
}

fn one(path: &LayerPath, before: Option<Version>, after: Option<Version>, old: &[u8], new: &[u8], out: &mut Vec<u8>) {
    let (a, b) = (quoted(b"a/", path), quoted(b"b/", path));
    let mut head = String::new();
    let mode = |version: &Version| match version.kind {
        EntryKind::Symlink => "120000",
        _ if version.mode & 0o100 != 0 => "100755",
        _ => "100644",
    };
    match (&before, &after) {
        (None, Some(new)) => head.push_str(&format!("new file mode {}\n", mode(new))),
        (Some(old), None) => head.push_str(&format!("deleted file mode {}\n", mode(old))),
        (Some(old), Some(new)) if mode(old) != mode(new) => {
            head.push_str(&format!("old mode {}\nnew mode {}\n", mode(old), mode(new)));
        }
        _ => {}
    }
    // What differs is not compared again: of large files only the beginning is here.
    let same = old.is_empty() && new.is_empty();
    if head.is_empty() && same {
        return;
    }
    let from = if before.is_some() { a.as_str() } else { "/dev/null" };
    let to = if after.is_some() { b.as_str() } else { "/dev/null" };
    let mut write = |text: &str| out.extend_from_slice(text.as_bytes());
    write(&format!("diff --git {a} {b}\n{head}"));
    if same {
        return;
    }
    match (text(old), text(new)) {
        (Some(old), Some(new)) => {
            let diff = TextDiff::from_lines(old, new);
            // Writing to memory does not fail.
            let _ = write!(out, "{}", diff.unified_diff().context_radius(3).header(from, to));
        }
        _ => write(&format!("Binary files {from} and {to} differ\n")),
    }
}

/// The bytes as text, when they are and not too many.
fn text(bytes: &[u8]) -> Option<&str> {
    if bytes.len() as u64 > TEXT || bytes.contains(&0) {
        return None;
    }
    std::str::from_utf8(bytes).ok()
}

/// A path as git writes it: in quotes where it is not plain.
fn quoted(prefix: &[u8], path: &LayerPath) -> String {
    let whole: Vec<u8> = prefix.iter().chain(path.as_bytes()).copied().collect();
    if whole.iter().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')) {
        return String::from_utf8(whole).expect("it is ASCII");
    }
    let mut text = String::from("\"");
    for byte in whole {
        match byte {
            b'"' | b'\\' => text.extend(['\\', char::from(byte)]),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => text.push_str(&format!("\\{byte:03o}")),
        }
    }
    text.push('"');
    text
}
