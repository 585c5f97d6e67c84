//! Moving finished segments elsewhere, while the trail is written.
//!
//! What is moved is copied, then a record of the trail says so, then it is removed: after a crash at any point each segment is in one
//! of the directories, and the trail verifies. Where a trail does not begin with its first record, a record in it must say which
//! segments were moved, and with which hash they end: so nobody can take away more.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use palisade_api::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::ArchiveError;
use crate::record::{Hash, Line, Seq};
use crate::segment::{self, Lines, Next};
use crate::sign::PublicKey;
use crate::trail::Trail;

/// The record that says what was moved.
pub(crate) const ARCHIVED: &str = "trail.archived";
/// Segments that one record names: a body has an end.
const AT_ONCE: usize = 256;

/// What was moved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Archived {
    /// Segments.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The last record in them.
    pub through: Option<Seq>,
}

/// The body of the record.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Moved {
    /// Where to: a hint, which nothing depends on.
    to: PathBuf,
    pub(crate) segments: Vec<Segment>,
}

/// One segment that is finished.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Segment {
    pub(crate) first: Seq,
    pub(crate) last: Seq,
    /// The hash of its last record.
    pub(crate) hash: String,
}

impl Trail {
    /// Moves the segments that are finished and all of whose records were written before `before` into a directory, oldest first.
    /// Together with what stays they verify: see [`verify_archived`](crate::verify_archived).
    ///
    /// # Errors
    ///
    /// The directory cannot be written, or the trail cannot say what was moved. What had been moved before is moved, the rest is
    /// where it was.
    pub async fn archive(&self, before: Timestamp, to: &Path) -> Result<Archived, ArchiveError> {
        let one_at_a_time = self.archiving().lock().await;
        let mut all = Archived::default();
        loop {
            let (dir, target) = (self.dir().to_owned(), to.to_owned());
            let copied = tokio::task::spawn_blocking(move || copy_old(&dir, before, &target)).await;
            let (segments, bytes) = copied.map_err(|_| ArchiveError::GivenUp)??;
            let Some(last) = segments.last() else { break };
            all.segments += segments.len() as u64;
            all.bytes += bytes;
            all.through = Some(last.last);
            let more = segments.len() == AT_ONCE;
            self.own(ARCHIVED, &Moved { to: to.to_owned(), segments: segments.clone() }).await?;
            let dir = self.dir().to_owned();
            let removed = tokio::task::spawn_blocking(move || remove(&dir, &segments)).await;
            removed.map_err(|_| ArchiveError::GivenUp)??;
            if !more {
                break;
            }
        }
        drop(one_at_a_time);
        Ok(all)
    }
}

fn failed<'a>(step: &'static str, path: &'a Path) -> impl Fn(io::Error) -> ArchiveError + 'a {
    move |cause| ArchiveError::Io { step, path: path.to_owned(), cause }
}

/// Copies the oldest segments, and the keys that they verify with.
fn copy_old(dir: &Path, before: Timestamp, to: &Path) -> Result<(Vec<Segment>, u64), ArchiveError> {
    let old = old(dir, before)?;
    if old.is_empty() {
        return Ok((old, 0));
    }
    DirBuilder::new().recursive(true).mode(0o700).create(to).map_err(failed("make the directory", to))?;
    let same = |path: &Path| path.canonicalize().map_err(failed("look at", path));
    if same(dir)? == same(to)? {
        return Err(ArchiveError::Same);
    }
    let keys = PublicKey::all_beside(dir).map_err(failed("read the public keys in", dir))?;
    for key in keys {
        key.put(to).map_err(|why| failed("put a public key into", to)(io::Error::other(why)))?;
    }
    let mut bytes = 0;
    for segment in &old {
        bytes += copy(&segment::path(dir, segment.first), to, segment.first)?;
    }
    File::open(to).and_then(|to| to.sync_all()).map_err(failed("sync", to))?;
    Ok((old, bytes))
}

/// The finished segments whose records are all old enough: the next one begins before that time.
fn old(dir: &Path, before: Timestamp) -> Result<Vec<Segment>, ArchiveError> {
    let all = segment::list(dir).map_err(failed("look into", dir))?;
    let mut old = Vec::new();
    for pair in all.windows(2).take(AT_ONCE) {
        let path = segment::path(dir, pair[1]);
        let mut lines = Lines::open(&path).map_err(failed("read", &path))?;
        let Next::Line { bytes, .. } = lines.next().map_err(failed("read", &path))? else { break };
        let flaw = |flaw| ArchiveError::Flaw { path: path.clone(), flaw };
        let line = Line::parse(bytes).map_err(flaw)?;
        let record = line.to_record().map_err(flaw)?;
        if record.time >= before {
            break;
        }
        old.push(Segment { first: pair[0], last: pair[1] - 1, hash: line.prev.to_string() });
    }
    Ok(old)
}

/// Copies one segment, whole or not at all. One that is there with the same content was copied before.
fn copy(from: &Path, to: &Path, first: Seq) -> Result<u64, ArchiveError> {
    let target = segment::path(to, first);
    let content = fs::read(from).map_err(failed("read", from))?;
    match fs::read(&target) {
        Ok(there) if there == content => return Ok(content.len() as u64),
        Ok(_) => return Err(ArchiveError::Taken { path: target }),
        Err(why) if why.kind() == io::ErrorKind::NotFound => {}
        Err(why) => return Err(failed("read", &target)(why)),
    }
    let new = target.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new);
    let written = file.as_mut().map_err(|why| io::Error::new(why.kind(), why.to_string())).and_then(|file| {
        io::Write::write_all(file, &content)?;
        file.sync_all()?;
        fs::rename(&new, &target)
    });
    written.map_err(|why| {
        // A part of it is no use to anybody.
        let _ = fs::remove_file(&new);
        failed("write", &target)(why)
    })?;
    Ok(content.len() as u64)
}

/// Oldest first, so that what is left after a crash has no hole.
fn remove(dir: &Path, segments: &[Segment]) -> Result<(), ArchiveError> {
    for segment in segments {
        let path = segment::path(dir, segment.first);
        fs::remove_file(&path).map_err(failed("remove", &path))?;
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", dir))
}

impl Segment {
    /// Whether a trail may begin behind it.
    pub(crate) fn ends_with(&self, last: Seq, hash: Hash) -> bool {
        self.last == last && self.hash == hash.to_string()
    }
}
