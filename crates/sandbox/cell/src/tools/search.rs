//! `glob` and `grep`: what is there, and what it says.

use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use globset::GlobBuilder;
use regex::bytes::RegexBuilder;
use serde_json::Value;

use super::path::{For, Roots, explain};
use super::text;

const MAX_PATHS: usize = 200;
/// Entries that a walk looks at.
const MAX_ENTRIES: usize = 200_000;
const MAX_DEPTH: usize = 40;
/// The longest pattern, in bytes: what is made of one may be hundreds of times as large.
const MAX_PATTERN: usize = 32 << 10;
/// Alternatives within each other in a pattern of `glob`, which are taken apart by recursion.
const MAX_NESTED: usize = 32;
/// What `grep` returns.
const MAX_OUTPUT: usize = 100 << 10;
const MAX_LINE: usize = 2000;
/// Larger files are not searched.
const MAX_SEARCHED: u64 = 16 << 20;
const MAX_TIME: Duration = Duration::from_secs(30);

fn base(roots: &Roots, tool: &str, input: &Value) -> Result<(String, PathBuf), String> {
    let given = match &input["path"] {
        Value::Null => ".".to_owned(),
        Value::String(path) if path.is_empty() => ".".to_owned(),
        Value::String(path) => path.clone(),
        _ => return Err(format!("{tool}: path must be a string")),
    };
    let path = roots.resolve(tool, &given, For::Reading)?;
    Ok((given, path))
}

/// The pattern, which must be there and not be made to exhaust this process.
fn pattern<'a>(tool: &str, input: &'a Value) -> Result<&'a str, String> {
    match text(input, tool, "pattern")? {
        "" => Err(format!("{tool}: pattern is required")),
        long if long.len() > MAX_PATTERN => Err(format!("{tool}: the pattern is longer than {MAX_PATTERN} bytes")),
        pattern => Ok(pattern),
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

/// Walks a tree without following links; calls `each` with every regular file. Hidden ones are left out unless asked for.
fn walk(root: &Path, hidden: bool, mut each: impl FnMut(&Path, &fs::DirEntry) -> bool) {
    let mut stack = vec![(root.to_owned(), 0)];
    let mut entries = 0;
    while let Some((directory, depth)) = stack.pop() {
        let Ok(listing) = fs::read_dir(&directory) else { continue };
        for entry in listing.flatten() {
            entries += 1;
            if entries > MAX_ENTRIES {
                return;
            }
            let name = entry.file_name();
            if (name.as_encoded_bytes().starts_with(b".") && !hidden) || name == "node_modules" {
                continue;
            }
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                if depth < MAX_DEPTH {
                    stack.push((entry.path(), depth + 1));
                }
            } else if kind.is_file() && !each(&entry.path(), &entry) {
                return;
            }
        }
    }
}

pub(super) fn glob(roots: &Roots, input: &Value) -> Result<String, String> {
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
    let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
    // As in a shell, a leading dot is matched by a dot only.
    let hidden = pattern.split('/').any(|part| part.starts_with('.') && part != ".");
    walk(&root, hidden, |path, entry| {
        let relative = path.strip_prefix(&root).unwrap_or(path);
        if matcher.is_match(relative) {
            let time = entry.metadata().and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            found.push((time, path.to_owned()));
        }
        true
    });
    if found.is_empty() {
        return Ok("no matches".to_owned());
    }
    found.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    found.truncate(MAX_PATHS);
    let paths: Vec<&[u8]> = found.iter().map(|(_, path)| path.as_os_str().as_encoded_bytes()).collect();
    // A name is as good a place for a terminal's commands as a line.
    Ok(String::from_utf8_lossy(&crate::shell::strip_escapes(&paths.join(&b'\n'))).into_owned())
}

pub(super) fn grep(roots: &Roots, input: &Value) -> Result<String, String> {
    let pattern = pattern("grep", input)?;
    let (given, root) = base(roots, "grep", input)?;
    let regex = RegexBuilder::new(pattern)
        .multi_line(true)
        .size_limit(8 << 20)
        .build()
        .map_err(|why| format!("grep: {why}"))?;
    let meta = fs::metadata(&root).map_err(|why| explain("grep", &given, &why))?;
    let mut out = Vec::new();
    let deadline = Instant::now() + MAX_TIME;
    let mut late = false;
    if meta.is_file() {
        search(&root, &regex, None, &mut out);
    } else if !meta.is_dir() {
        return Err(format!("grep: {given} is neither a file nor a directory"));
    } else {
        let mut files = Vec::new();
        walk(&root, false, |path, _| {
            files.push(path.to_owned());
            true
        });
        files.sort();
        for path in files {
            if out.len() > MAX_OUTPUT {
                break;
            }
            if Instant::now() > deadline {
                late = true;
                break;
            }
            let name = path.to_string_lossy();
            search(&path, &regex, Some(&name), &mut out);
        }
    }
    if out.is_empty() && !late {
        return Ok("no matches".to_owned());
    }
    let cut = out.len() > MAX_OUTPUT;
    out.truncate(MAX_OUTPUT);
    let mut text = String::from_utf8_lossy(&crate::shell::strip_escapes(&out)).into_owned();
    if cut {
        text.push_str("\n[output truncated]\n");
    }
    if late {
        text.push_str("[search stopped after 30 s]\n");
    }
    Ok(text)
}

fn search(path: &Path, regex: &regex::bytes::Regex, name: Option<&str>, out: &mut Vec<u8>) {
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOFOLLOW)
        .open(path);
    let Ok(file) = file else { return };
    if crate::sys::refuse_process_files(&file).is_err() {
        return;
    }
    let mut bytes = Vec::new();
    if file.take(MAX_SEARCHED).read_to_end(&mut bytes).is_err() {
        return;
    }
    // As ripgrep does: a NUL in the first part means that this is no text.
    if memchr::memchr(0, &bytes[..bytes.len().min(8192)]).is_some() {
        return;
    }
    let (mut line, mut counted, mut next) = (1, 0, 0);
    while next <= bytes.len() && out.len() <= MAX_OUTPUT {
        let Some(found) = regex.find_at(&bytes, next) else { return };
        let start = memchr::memrchr(b'\n', &bytes[..found.start()]).map_or(0, |at| at + 1);
        if start >= bytes.len() && start > 0 {
            // An empty match behind the last line.
            return;
        }
        let end = memchr::memchr(b'\n', &bytes[found.start()..]).map_or(bytes.len(), |at| found.start() + at);
        next = end + 1;
        // The expression is about lines: what reaches over the end of one is no match, unless the line has one of its own.
        if found.end() > end && !regex.is_match(&bytes[start..end]) {
            continue;
        }
        line += memchr::memchr_iter(b'\n', &bytes[counted..start]).count();
        counted = start;
        if let Some(name) = name {
            out.extend_from_slice(name.as_bytes());
            out.push(b':');
        }
        out.extend_from_slice(line.to_string().as_bytes());
        out.push(b':');
        out.extend_from_slice(&bytes[start..end.min(start + MAX_LINE)]);
        out.push(b'\n');
    }
}
