//! The last of what a command has written, by offset: bounded, so that it can go on when nobody reads.

use std::collections::VecDeque;

use palisade_cell::KEPT_OUTPUT;

/// Changes between the two streams that are remembered; older ones go with their output.
const MARKS: usize = 1024;

/// Output of both streams in the order in which it was read.
#[derive(Default)]
pub(crate) struct Log {
    bytes: VecDeque<u8>,
    /// The offset of the first byte that is kept.
    start: u64,
    /// Where output of one stream begins, and whether it is standard error.
    marks: VecDeque<(u64, bool)>,
}

/// Some output of one stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece<'a> {
    pub(crate) offset: u64,
    pub(crate) stderr: bool,
    pub(crate) bytes: &'a [u8],
}

impl Log {
    /// One past the last byte.
    pub(crate) fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    pub(crate) fn add(&mut self, bytes: &[u8], stderr: bool) {
        if self.marks.back().is_none_or(|(_, last)| *last != stderr) {
            self.marks.push_back((self.end(), stderr));
        }
        self.bytes.extend(bytes);
        let mut excess = self.bytes.len().saturating_sub(KEPT_OUTPUT);
        if self.marks.len() > MARKS {
            excess = excess.max(usize::try_from(self.marks[1].0 - self.start).unwrap_or(0));
        }
        self.bytes.drain(..excess);
        self.start += excess as u64;
        while self.marks.get(1).is_some_and(|(begins, _)| *begins <= self.start) {
            self.marks.pop_front();
        }
    }

    /// What follows `from`, of one stream and no more than `most`; what is not kept any more is passed over.
    pub(crate) fn piece(&self, from: u64, most: usize) -> Option<Piece<'_>> {
        let offset = from.max(self.start);
        if offset >= self.end() {
            return None;
        }
        let index = self.marks.partition_point(|(begins, _)| *begins <= offset);
        let stderr = self.marks.get(index.checked_sub(1)?)?.1;
        let until = self.marks.get(index).map_or(self.end(), |(begins, _)| *begins);
        let first = usize::try_from(offset - self.start).ok()?;
        let length = usize::try_from(until - offset).ok()?.min(most);
        let (front, back) = self.bytes.as_slices();
        let bytes = match front.get(first..) {
            Some(rest) if !rest.is_empty() => &rest[..length.min(rest.len())],
            _ => &back[first - front.len()..][..length],
        };
        Some(Piece { offset, stderr, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that follows `from`, and what was passed over.
    fn all(log: &Log, mut from: u64) -> (Vec<u8>, u64) {
        let (mut bytes, mut lost) = (Vec::new(), 0);
        while let Some(piece) = log.piece(from, 1000) {
            lost += piece.offset - from;
            bytes.extend(piece.bytes);
            from = piece.offset + piece.bytes.len() as u64;
        }
        (bytes, lost)
    }

    #[test]
    fn nothing_is_doubled_and_what_is_gone_is_counted() {
        let mut log = Log::default();
        let mut written = Vec::new();
        for round in 0..3000u32 {
            let bytes = round.to_le_bytes().repeat(50);
            log.add(&bytes, round % 7 == 0);
            written.extend(bytes);
            assert!(log.bytes.len() <= KEPT_OUTPUT && log.marks.len() <= MARKS);
        }
        for from in [0, 1, log.start, log.start + 3, log.end() - 1, log.end()] {
            let (bytes, lost) = all(&log, from);
            let begins = usize::try_from(from + lost).unwrap();
            assert_eq!(bytes, written[begins..]);
            assert_eq!(lost, log.start.saturating_sub(from));
        }
    }

    #[test]
    fn each_piece_is_of_one_stream() {
        let mut log = Log::default();
        for round in 0..5000 {
            log.add(if round % 2 == 0 { b"o" } else { b"e" }, round % 2 == 1);
        }
        assert!(log.marks.len() <= MARKS);
        let mut from = log.start;
        while let Some(piece) = log.piece(from, 10) {
            assert_eq!(piece.bytes, if piece.stderr { b"e" } else { b"o" });
            from = piece.offset + 1;
        }
        assert_eq!(from, 5000);
    }
}
