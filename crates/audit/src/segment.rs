//! Segments: files of lines, each named for the first record in it.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::record::{MAX_LINE, Seq};

/// What is read at once.
const CHUNK: usize = 64 * 1024;

/// The file name of the segment that begins with a record.
pub(crate) fn name(first: Seq) -> String {
    format!("{first:020}.jsonl")
}

/// The segments of a directory, by their first records, in order. Other files are passed over.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<Seq>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?.file_name();
        let first = entry.to_str().and_then(|text| text.strip_suffix(".jsonl")).and_then(|digits| digits.parse().ok());
        if let Some(first) = first.filter(|first| entry.to_str() == Some(&name(*first))) {
            found.push(first);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Where a segment is.
pub(crate) fn path(dir: &Path, first: Seq) -> PathBuf {
    dir.join(name(first))
}

/// Reads a segment line by line. One that grows can be read on after its end was met.
#[derive(Debug)]
pub(crate) struct Lines {
    file: File,
    buffer: Vec<u8>,
    /// Of what is in the buffer, where the next line begins.
    start: usize,
    /// Of what is in the buffer, how far no line feed was found.
    searched: usize,
    /// Where the next line begins in the file.
    offset: u64,
}

/// What comes next in a segment.
#[derive(Debug)]
pub(crate) enum Next<'a> {
    /// A line, without its line feed.
    Line { offset: u64, bytes: &'a [u8] },
    /// The end of the file, without a line feed: a line that is being written, or was not finished.
    Partial { offset: u64 },
    /// More than any line has.
    Endless { offset: u64 },
    /// The end of the file, after a line feed.
    End,
}

impl Lines {
    pub(crate) fn open(path: &Path) -> io::Result<Lines> {
        Ok(Lines { file: File::open(path)?, buffer: Vec::new(), start: 0, searched: 0, offset: 0 })
    }

    /// Where the next line begins.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes from where the next line begins to the end of the file.
    pub(crate) fn rest(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len().saturating_sub(self.offset))
    }

    pub(crate) fn next(&mut self) -> io::Result<Next<'_>> {
        let offset = self.offset;
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.buffer[self.searched..]) {
                let (start, end) = (self.start, self.searched + at);
                self.start = end + 1;
                self.searched = self.start;
                self.offset += (self.start - start) as u64;
                return Ok(Next::Line { offset, bytes: &self.buffer[start..end] });
            }
            self.searched = self.buffer.len();
            if self.buffer.len() - self.start > MAX_LINE {
                return Ok(Next::Endless { offset });
            }
            self.buffer.drain(..self.start);
            self.searched -= self.start;
            self.start = 0;
            if (&self.file).take(CHUNK as u64).read_to_end(&mut self.buffer)? == 0 {
                return Ok(if self.buffer.is_empty() { Next::End } else { Next::Partial { offset } });
            }
        }
    }
}
