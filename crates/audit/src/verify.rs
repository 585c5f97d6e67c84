//! Proving a trail, from its first record to its head.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use palisade_api::Timestamp;

use crate::archive::{ARCHIVED, Moved};
use crate::error::{Flaw, ReadError};
use crate::head::{self, Said};
use crate::record::{Hash, Line, MAX_LINE, Seq};
use crate::segment::{self, Lines, Next};
use crate::sign::{CHECKPOINT, Checkpoint, PublicKey, statement};

/// A place in a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// The record's number.
    pub seq: Seq,
    /// When it was written.
    pub time: Timestamp,
    /// Its hash.
    pub hash: Hash,
}

/// What checkpoints vouch for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// How many there are.
    pub checkpoints: u64,
    /// The last one: all before it was there when it was signed, as it is now.
    pub last: Point,
    /// The ids of the keys they are signed with, in the order of their first use.
    pub keys: Vec<String>,
}

/// Where a trail does not verify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// The record that belongs there.
    pub seq: Seq,
    /// The segment's file name and where in it, if the place is in one.
    pub at: Option<(String, u64)>,
    /// What is wrong.
    pub flaw: Flaw,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {}", self.seq)?;
        if let Some((segment, offset)) = &self.at {
            write!(f, " ({segment}, byte {offset})")?;
        }
        write!(f, ": {}", self.flaw)
    }
}

/// What verifying found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Records that verify, from the first on.
    pub records: u64,
    /// Segments that were looked into.
    pub segments: usize,
    /// The first record.
    pub first: Option<Point>,
    /// The last record that verifies.
    pub last: Option<Point>,
    /// What the head file says: the number and hash of a record that was there. 0 before the first.
    pub head: Option<(Seq, Hash)>,
    /// Records after the one that the head file names. Some are usual while the trail is written and after a crash; in one that was
    /// closed there are none, and any were added by somebody else.
    pub beyond_head: u64,
    /// Bytes at the end that are not a whole record: one that is being written, or that a crash interrupted.
    pub torn_bytes: u64,
    /// What checkpoints vouch for, when there are any.
    pub signed: Option<Signed>,
    /// The first place that does not verify. What follows it was not looked at.
    pub broken: Option<Broken>,
}

impl Report {
    /// Whether all of it verifies.
    pub fn intact(&self) -> bool {
        self.broken.is_none()
    }
}

/// Verifies the trail in a directory: each record, the chain across segments, the head, and checkpoints under the keys that lie beside.
/// A trail that is being written can be verified, up to where it was.
///
/// Keys beside a trail can be replaced together with it. Give those you trust to [`verify_with`].
///
/// # Errors
///
/// The trail cannot be read. One that does not verify is no error: see [`Report::broken`].
pub fn verify(dir: &Path) -> Result<Report, ReadError> {
    let keys = PublicKey::all_beside(dir).map_err(|cause| ReadError::Io { path: dir.to_owned(), cause })?;
    whole(dir, None, keys, false)
}

/// Verifies a trail together with what was moved out of it by [`Trail::archive`](crate::Trail::archive): from its first record on, if
/// that is in the archive.
///
/// # Errors
///
/// As [`verify()`].
pub fn verify_archived(dir: &Path, archive: &Path) -> Result<Report, ReadError> {
    let keys = PublicKey::all_beside(dir).map_err(|cause| ReadError::Io { path: dir.to_owned(), cause })?;
    whole(dir, Some(archive), keys, false)
}

/// Verifies as [`verify()`] does, under these keys and no others: the trail must be signed with them, up to an end that is no longer
/// than a checkpoint may be away.
///
/// # Errors
///
/// As [`verify()`].
pub fn verify_with(dir: &Path, trusted: &[PublicKey]) -> Result<Report, ReadError> {
    whole(dir, None, trusted.to_vec(), true)
}

fn whole(dir: &Path, archive: Option<&Path>, keys: Vec<PublicKey>, must_be_signed: bool) -> Result<Report, ReadError> {
    let mut walk = Walk::new(keys, must_be_signed);
    if !walk.walk_with(dir, archive)? {
        return Err(ReadError::NoTrail { dir: dir.to_owned() });
    }
    if walk.head_torn && walk.report.broken.is_none() {
        walk.report.broken = Some(Broken { seq: walk.next, at: None, flaw: Flaw::HeadDamaged });
    }
    Ok(walk.report)
}

/// What the records so far amount to.
#[derive(Debug)]
pub(crate) struct Walk {
    pub(crate) report: Report,
    /// The number of the next record.
    pub(crate) next: Seq,
    /// The hash of the last one.
    pub(crate) hash: Hash,
    /// The segment that was looked into last, by its first record.
    pub(crate) segment: Option<Seq>,
    /// Bytes of it that verify.
    pub(crate) length: u64,
    /// Whether a line of the head file is damaged.
    pub(crate) head_torn: bool,
    keys: Vec<PublicKey>,
    must_be_signed: bool,
    /// Records that the last checkpoint lets follow before the next.
    every: u64,
    /// Where the trail begins, as long as no record has said that what came before was archived.
    archived: Option<(Seq, Hash)>,
}

impl Walk {
    pub(crate) fn new(keys: Vec<PublicKey>, must_be_signed: bool) -> Walk {
        let report = Report {
            records: 0,
            segments: 0,
            first: None,
            last: None,
            head: None,
            beyond_head: 0,
            torn_bytes: 0,
            signed: None,
            broken: None,
        };
        Walk {
            report,
            next: 1,
            hash: Hash::NONE,
            segment: None,
            length: 0,
            head_torn: false,
            keys,
            must_be_signed,
            every: 0,
            archived: None,
        }
    }

    /// Goes through a directory; `false` when there is no trail in it.
    pub(crate) fn walk(&mut self, dir: &Path) -> Result<bool, ReadError> {
        self.walk_with(dir, None)
    }

    /// The same with the segments of an archive before those of the directory.
    fn walk_with(&mut self, dir: &Path, archive: Option<&Path>) -> Result<bool, ReadError> {
        let failed = |cause| ReadError::Io { path: dir.to_owned(), cause };
        // The head first: a writer that is at work is never behind it.
        let said = head::read(dir).map_err(failed)?;
        let own = segment::list(dir).map_err(failed)?;
        let mut segments: Vec<(Seq, PathBuf)> = Vec::new();
        if let Some(archive) = archive {
            let moved = segment::list(archive).map_err(|cause| ReadError::Io { path: archive.to_owned(), cause })?;
            // What is in both was copied and not removed yet.
            let moved = moved.into_iter().filter(|first| own.first().is_none_or(|own| first < own));
            segments.extend(moved.map(|first| (first, segment::path(archive, first))));
        }
        segments.extend(own.into_iter().map(|first| (first, segment::path(dir, first))));
        let head = match said {
            None if segments.is_empty() => return Ok(false),
            None => return Ok(self.broken(None, Flaw::HeadMissing)),
            Some(Err(head::Damaged)) => return Ok(self.broken(None, Flaw::HeadDamaged)),
            Some(Ok(head)) => head,
        };
        self.report.head = Some((head.seq, head.hash));
        self.head_torn = head.torn;
        let count = segments.len();
        for (index, (first, path)) in segments.into_iter().enumerate() {
            let last = index + 1 == count;
            if index == 0 && first > 1 {
                self.begin(first, &path).map_err(|cause| ReadError::Io { path: path.clone(), cause })?;
            }
            self.segment(&path, first, last, head).map_err(|cause| ReadError::Io { path, cause })?;
            if self.report.broken.is_some() {
                return Ok(true);
            }
        }
        self.end(head);
        Ok(true)
    }

    fn broken(&mut self, at: Option<(Seq, u64)>, flaw: Flaw) -> bool {
        let at = at.map(|(segment, offset)| (segment::name(segment), offset));
        self.report.broken = Some(Broken { seq: self.next, at, flaw });
        true
    }

    /// Begins behind what was archived, with the hash that the first record says it had.
    fn begin(&mut self, first: Seq, path: &Path) -> io::Result<()> {
        let mut lines = Lines::open(path)?;
        if let Next::Line { bytes, .. } = lines.next()?
            && let Ok(line) = Line::parse(bytes)
        {
            (self.next, self.hash) = (first, line.prev);
            self.archived = Some((first - 1, line.prev));
        }
        Ok(())
    }

    fn segment(&mut self, path: &Path, first: Seq, last: bool, head: Said) -> io::Result<()> {
        self.report.segments += 1;
        if first != self.next {
            self.broken(Some((first, 0)), Flaw::SegmentMissing { expected: self.next, found: first });
            return Ok(());
        }
        self.segment = Some(first);
        self.length = 0;
        let mut lines = Lines::open(path)?;
        loop {
            let (offset, flaw) = match lines.next()? {
                Next::End => return Ok(()),
                Next::Partial { .. } if last => {
                    self.report.torn_bytes = lines.rest()?;
                    return Ok(());
                }
                Next::Partial { offset } => (offset, Flaw::SegmentCut),
                Next::Endless { offset } => {
                    (offset, Flaw::Malformed { cause: format!("it is longer than {MAX_LINE} bytes") })
                }
                Next::Line { offset, bytes } => match self.line(bytes, head) {
                    Ok(()) => {
                        self.length = lines.offset();
                        continue;
                    }
                    // Where a machine stopped while a file grew, some file systems leave zeros, which no record has. The head
                    // tells whether a record was there that somebody was told of.
                    Err(_) if last && memchr::memchr(0, bytes).is_some() => {
                        self.report.torn_bytes = lines.rest()? + (lines.offset() - offset);
                        return Ok(());
                    }
                    Err(flaw) => (offset, flaw),
                },
            };
            self.broken(Some((first, offset)), flaw);
            return Ok(());
        }
    }

    fn line(&mut self, bytes: &[u8], head: Said) -> Result<(), Flaw> {
        let line = Line::parse(bytes)?;
        line.check()?;
        if line.prev != self.hash {
            return Err(Flaw::Unlinked { expected: self.hash });
        }
        if line.seq != self.next {
            return Err(Flaw::OutOfOrder { expected: self.next, found: line.seq });
        }
        let time = line.time.parse().map_err(|why| Flaw::Malformed { cause: format!("time {why}") })?;
        if line.seq == head.seq && line.hash != head.hash {
            return Err(Flaw::HeadDiffers { stated: head.hash });
        }
        let point = Point { seq: line.seq, time, hash: line.hash };
        if line.kind == CHECKPOINT {
            self.checkpoint(&line, &point)?;
        }
        if line.kind == ARCHIVED
            && let Some((last, hash)) = self.archived
            && let Ok(moved) = serde_json::from_str::<Moved>(line.body.get())
            && moved.segments.iter().any(|segment| segment.ends_with(last, hash))
        {
            self.archived = None;
        }
        self.report.records += 1;
        self.report.beyond_head += u64::from(line.seq > head.seq);
        self.report.first.get_or_insert_with(|| point.clone());
        self.report.last = Some(point);
        self.next += 1;
        self.hash = line.hash;
        Ok(())
    }

    fn checkpoint(&mut self, line: &Line<'_>, point: &Point) -> Result<(), Flaw> {
        let body: Checkpoint = serde_json::from_str(line.body.get())
            .map_err(|why| Flaw::Malformed { cause: format!("its body is no checkpoint: {why}") })?;
        if body.seq + 1 != line.seq || body.hash != line.prev.to_string() {
            return Err(Flaw::CheckpointMoved);
        }
        let Some(key) = self.keys.iter().find(|key| key.id() == body.key) else {
            return Err(Flaw::UnknownKey { key: body.key });
        };
        if !key.holds(&statement(body.seq, line.prev, &line.time, body.every), &body.signature) {
            return Err(Flaw::Forged { key: body.key });
        }
        self.every = body.every;
        let signed = self.report.signed.get_or_insert(Signed { checkpoints: 0, last: point.clone(), keys: Vec::new() });
        signed.checkpoints += 1;
        signed.last = point.clone();
        if !signed.keys.contains(&body.key) {
            signed.keys.push(body.key);
        }
        Ok(())
    }

    /// What can be said when there are no more records.
    fn end(&mut self, head: Said) {
        let last = self.next - 1;
        let signed = self.report.signed.as_ref();
        let flaw = if last < head.seq {
            Flaw::Truncated { last, head: head.seq }
        } else if let Some((before, _)) = self.archived {
            self.next = before + 1;
            Flaw::BeginningMissing { first: before + 1 }
        } else if let Some(signed) = signed.filter(|signed| last - signed.last.seq > self.every) {
            self.next = signed.last.seq + self.every + 1;
            Flaw::Unsigned
        } else if signed.is_none() && self.must_be_signed && last > 0 {
            self.next = 1;
            Flaw::Unsigned
        } else if (signed.is_some() || self.must_be_signed) && !head.signed_by(&self.keys) {
            Flaw::HeadForged
        } else {
            return;
        };
        self.broken(None, flaw);
    }
}
