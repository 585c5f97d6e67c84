//! Reading records back.

use std::io;
use std::path::{Path, PathBuf};

use palisade_api::Timestamp;

use crate::error::{Flaw, ReadError};
use crate::record::{Line, Record, Seq};
use crate::segment::{self, Lines, Next};

/// Which records are wanted; the default is all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Those of this session.
    pub session: Option<String>,
    /// Those of these kinds; one that ends with a dot stands for all that begin so. None means all.
    pub kinds: Vec<String>,
    /// Those written at this time or later.
    pub since: Option<Timestamp>,
    /// Those after this number.
    pub after: Seq,
}

impl Filter {
    fn wants(&self, line: &Line<'_>) -> bool {
        line.seq > self.after && self.wants_what(&line.kind, line.session.as_deref())
    }

    /// Whether a record is wanted, its time included.
    pub(crate) fn wants_record(&self, record: &Record) -> bool {
        record.seq > self.after
            && self.wants_what(&record.kind, record.session.as_deref())
            && self.since.is_none_or(|since| record.time >= since)
    }

    fn wants_what(&self, kind: &str, session: Option<&str>) -> bool {
        let named =
            |wanted: &String| kind == wanted.as_str() || wanted.ends_with('.') && kind.starts_with(wanted.as_str());
        (self.session.is_none() || self.session.as_deref() == session)
            && (self.kinds.is_empty() || self.kinds.iter().any(named))
    }
}

/// Reads the records of a trail, in order, also while it is written. Nothing is proved by reading: see [`verify()`](crate::verify()).
///
/// # Errors
///
/// There is no trail, or it cannot be read.
pub fn read(dir: &Path, filter: Filter) -> Result<Records, ReadError> {
    let failed = |cause| ReadError::Io { path: dir.to_owned(), cause };
    let segments = match segment::list(dir) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other.map_err(failed)?,
    };
    // The first that can hold a record that is wanted.
    let from = segments.iter().rev().find(|first| **first <= filter.after.saturating_add(1)).or(segments.first());
    let Some(&segment) = from else { return Err(ReadError::NoTrail { dir: dir.to_owned() }) };
    let path = segment::path(dir, segment);
    let lines = Lines::open(&path).map_err(|cause| ReadError::Io { path, cause })?;
    Ok(Records { dir: dir.to_owned(), filter, segment, lines, failed: false })
}

/// The records of a trail. At its end `next` gives `None`; asked again later it gives those that were written since.
#[derive(Debug)]
pub struct Records {
    dir: PathBuf,
    filter: Filter,
    /// The first record of the segment that is read.
    segment: Seq,
    lines: Lines,
    failed: bool,
}

impl Records {
    fn advance(&mut self) -> Result<Option<Record>, ReadError> {
        // Of a later segment, once it was seen: what is in this one is all of it.
        let mut later = None;
        loop {
            let path = segment::path(&self.dir, self.segment);
            let flawed = |offset, flaw| ReadError::Flaw { path: path.clone(), offset, flaw };
            let at_end = match self.lines.next().map_err(|cause| ReadError::Io { path: path.clone(), cause })? {
                Next::Line { offset, bytes } => {
                    let line = Line::parse(bytes).map_err(|flaw| flawed(offset, flaw))?;
                    if self.filter.wants(&line) {
                        let record = line.to_record().map_err(|flaw| flawed(offset, flaw))?;
                        if self.filter.wants_record(&record) {
                            return Ok(Some(record));
                        }
                    }
                    continue;
                }
                Next::Endless { offset } => {
                    return Err(flawed(offset, Flaw::Malformed { cause: "it has no end".to_owned() }));
                }
                Next::Partial { offset } => Some(offset),
                Next::End => None,
            };
            match (later, at_end) {
                (None, _) => {
                    let listed =
                        segment::list(&self.dir).map_err(|cause| ReadError::Io { path: self.dir.clone(), cause })?;
                    later = listed.into_iter().find(|first| *first > self.segment);
                    if later.is_none() {
                        return Ok(None);
                    }
                }
                (Some(_), Some(offset)) => return Err(flawed(offset, Flaw::SegmentCut)),
                (Some(next), None) => {
                    let path = segment::path(&self.dir, next);
                    self.lines = Lines::open(&path).map_err(|cause| ReadError::Io { path, cause })?;
                    self.segment = next;
                    later = None;
                }
            }
        }
    }
}

impl Iterator for Records {
    type Item = Result<Record, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.advance();
        self.failed = next.is_err();
        next.transpose()
    }
}
