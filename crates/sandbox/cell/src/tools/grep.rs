//! `grep`: what the files say.

use std::ffi::{CStr, OsStr};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use regex::bytes::{Regex, RegexBuilder};
use rustix::io::{read, retry_on_intr};
use serde_json::Value;

use super::path::{Roots, explain};
use super::walk::{Directory, Stop, Visit, open_file, walk};
use super::{base, pattern};

/// What `grep` returns.
const MAX_OUTPUT: usize = 100 << 10;
const MAX_LINE: usize = 2000;
/// What is searched of a file.
const MAX_SEARCHED: usize = 16 << 20;
const MAX_TIME: Duration = Duration::from_secs(30);
/// Where a NUL says that a file is no text.
const HEAD: usize = 8192;
/// What a thread reads most files with, and what it reads of larger ones at a time.
const BUFFER: usize = 64 << 10;
const PIECE: usize = 1 << 20;

pub(super) fn grep(roots: &Roots, input: &Value, stop: &Stop) -> Result<String, String> {
    let pattern = pattern("grep", input)?;
    let (given, root) = base(roots, "grep", input)?;
    let regex = RegexBuilder::new(pattern)
        .multi_line(true)
        .size_limit(8 << 20)
        .build()
        .map_err(|why| format!("grep: {why}"))?;
    let meta = fs::metadata(&root).map_err(|why| explain("grep", &given, &why))?;
    let stop = stop.at(Instant::now() + MAX_TIME);
    let mut out = Vec::new();
    if meta.is_file() {
        if let Ok((file, size)) = open_file(&root)
            && let Some(bytes) = fill(&file, size, &mut Vec::new(), &stop)
        {
            search(bytes, &regex, None, &mut out);
        }
    } else if !meta.is_dir() {
        return Err(format!("grep: {given} is neither a file nor a directory"));
    } else if let Ok(directory) = Directory::root(&root) {
        let found = Found::default();
        walk(directory, false, &stop, || Grep {
            found: &found,
            // One of one's own: its scratch space is then no matter of contention.
            regex: regex.clone(),
            root: &root,
            stop: &stop,
            buffer: Vec::new(),
            out: Vec::new(),
        });
        out = found.lines();
    }
    if out.is_empty() && !stop.came() {
        return Ok("no matches".to_owned());
    }
    let cut = out.len() > MAX_OUTPUT;
    out.truncate(MAX_OUTPUT);
    let mut text = String::from_utf8_lossy(&crate::shell::strip_escapes(&out)).into_owned();
    if cut {
        text.push_str("\n[output truncated]\n");
    }
    if stop.came() {
        text.push_str("[search stopped after 30 s]\n");
    }
    Ok(text)
}

/// What was found, of the first files in the order of paths only: as much as is returned, and a little more.
#[derive(Default)]
struct Found {
    files: Mutex<Lines>,
    /// There is enough; only what comes before can still matter.
    full: AtomicBool,
}

#[derive(Default)]
struct Lines {
    /// In the order of paths, each with NUL for slash, so that bytes compare as parts do.
    files: Vec<(Vec<u8>, Vec<u8>)>,
    bytes: usize,
}

impl Found {
    fn with<T>(&self, what: impl FnOnce(&mut Lines) -> T) -> T {
        what(&mut self.files.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, key: Vec<u8>, lines: Vec<u8>) {
        self.with(|found| {
            found.bytes += lines.len();
            let at = found.files.partition_point(|(before, _)| *before < key);
            found.files.insert(at, (key, lines));
            while let Some((_, last)) = found.files.last()
                && found.bytes - last.len() > MAX_OUTPUT
            {
                found.bytes -= last.len();
                found.files.pop();
            }
            self.full.store(found.bytes > MAX_OUTPUT, Ordering::Relaxed);
        });
    }

    fn wants(&self, path: &[u8]) -> bool {
        !self.full.load(Ordering::Relaxed)
            || self.with(|found| found.files.last().is_none_or(|(last, _)| key(path) < *last))
    }

    fn lines(self) -> Vec<u8> {
        let found = self.files.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.files.into_iter().flat_map(|(_, lines)| lines).collect()
    }
}

fn key(path: &[u8]) -> Vec<u8> {
    path.iter().map(|byte| if *byte == b'/' { 0 } else { *byte }).collect()
}

struct Grep<'a> {
    found: &'a Found,
    regex: Regex,
    root: &'a Path,
    stop: &'a Stop,
    buffer: Vec<u8>,
    out: Vec<u8>,
}

impl Visit for Grep<'_> {
    fn wants(&self, path: &[u8]) -> bool {
        self.found.wants(path)
    }

    fn file(&mut self, directory: &Directory, name: &CStr, path: &[u8]) {
        let Ok((file, size)) = directory.open(name) else { return };
        let Some(bytes) = fill(&file, size, &mut self.buffer, self.stop) else { return };
        if self.regex.is_match(bytes) {
            let name = self.root.join(OsStr::from_bytes(path));
            search(bytes, &self.regex, Some(&name.to_string_lossy()), &mut self.out);
            if !self.out.is_empty() {
                self.found.add(key(path), self.out.as_slice().into());
                self.out.clear();
            }
        }
        if self.buffer.len() > PIECE {
            self.buffer = Vec::new();
        }
    }
}

/// Reads a file whose size was `size`; none if it is no text, cannot be read, or the search is over.
fn fill<'a>(file: &OwnedFd, size: u64, buffer: &'a mut Vec<u8>, stop: &Stop) -> Option<&'a [u8]> {
    let size = usize::try_from(size).unwrap_or(usize::MAX).min(MAX_SEARCHED);
    let mut have = 0;
    while have < MAX_SEARCHED {
        if have == buffer.len() {
            // With room for one byte more: the file may have grown.
            buffer.resize((size + 1).max(2 * have).clamp(BUFFER, MAX_SEARCHED), 0);
        }
        // A little first: a large file may be no text.
        let room = if have == 0 { BUFFER } else { PIECE };
        let end = buffer.len().min(have + room);
        let got = retry_on_intr(|| read(file, &mut buffer[have..end])).ok()?;
        let head = have.min(HEAD)..(have + got).min(HEAD);
        // As ripgrep does: a NUL in the first part means that this is no text.
        if memchr::memchr(0, &buffer[head]).is_some() {
            return None;
        }
        have += got;
        if got == 0 || have == size {
            break;
        }
        if stop.now() {
            return None;
        }
    }
    Some(&buffer[..have])
}

fn search(bytes: &[u8], regex: &Regex, name: Option<&str>, out: &mut Vec<u8>) {
    let (mut line, mut counted, mut next) = (1, 0, 0);
    while next <= bytes.len() && out.len() <= MAX_OUTPUT {
        let Some(found) = regex.find_at(bytes, next) else { return };
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
