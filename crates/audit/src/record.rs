//! One record and its only written form.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use palisade_api::Timestamp;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::error::Flaw;

/// The number of a record: the first is 1, and none is left out.
pub type Seq = u64;

/// What comes between the hashed part of a line and its hash, and what ends the line.
const BEFORE_HASH: &str = r#","hash":""#;
const AFTER_HASH: &str = "\"}";

/// Bytes of a line after its hashed part, without the line feed.
const SUFFIX: usize = BEFORE_HASH.len() + 64 + AFTER_HASH.len();

/// The longest body, in bytes of JSON. A trail holds what happened, not what was carried.
pub(crate) const MAX_BODY: usize = 64 * 1024;

/// The longest kind and the longest session.
pub(crate) const MAX_KIND: usize = 64;
pub(crate) const MAX_SESSION: usize = 256;

/// What most records need.
const USUAL: usize = 768;

/// A line that is longer was not written by a trail. Six bytes is the longest that JSON makes of one.
pub(crate) const MAX_LINE: usize = MAX_BODY + 6 * MAX_SESSION + 1024;

/// A SHA-256, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash([u8; 32]);

impl Hash {
    /// What the first record names as the one before it.
    pub const NONE: Hash = Hash([0; 32]);

    /// The hash of some bytes.
    pub(crate) fn of(bytes: &[u8]) -> Hash {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
        Hash(hash)
    }

    /// Its digits.
    fn hex(self) -> [u8; 64] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut hex = [0; 64];
        for (pair, byte) in hex.chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        hex
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The digits are ASCII.
        f.write_str(std::str::from_utf8(&self.hex()).unwrap_or_default())
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a hash as they are written here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be 64 lower-case hexadecimal digits")]
pub struct HashError;

impl FromStr for Hash {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Hash, HashError> {
        let digit = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(HashError),
        };
        let bytes = text.as_bytes();
        if bytes.len() != 64 {
            return Err(HashError);
        }
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(bytes.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Hash(hash))
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One record of a trail.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    /// Its number.
    pub seq: Seq,
    /// When it was written, by the trail's clock. A clock that is set back makes times go back; numbers never do.
    pub time: Timestamp,
    /// What it is about, as words joined by dots. Those that begin with `trail.` are the trail's own.
    pub kind: String,
    /// The session that it belongs to, if any.
    pub session: Option<String>,
    /// What happened.
    pub body: Box<RawValue>,
    /// The hash of the record before it.
    pub prev: Hash,
    /// Its own.
    pub hash: Hash,
}

/// A record as it lies in its line.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    pub(crate) seq: Seq,
    pub(crate) time: Cow<'a, str>,
    pub(crate) kind: Cow<'a, str>,
    pub(crate) session: Option<Cow<'a, str>>,
    pub(crate) body: &'a RawValue,
    pub(crate) prev: Hash,
    pub(crate) hash: Hash,
    hashed: &'a [u8],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields<'a> {
    seq: Seq,
    #[serde(borrow)]
    time: Cow<'a, str>,
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    session: Option<Cow<'a, str>>,
    #[serde(borrow)]
    body: &'a RawValue,
    #[serde(borrow)]
    prev: Cow<'a, str>,
    #[serde(borrow)]
    hash: Cow<'a, str>,
}

impl<'a> Line<'a> {
    /// Reads a line, given without its line feed. The hash is not looked at: see [`Line::check`].
    pub(crate) fn parse(line: &'a [u8]) -> Result<Line<'a>, Flaw> {
        let fields: Fields<'a> =
            serde_json::from_slice(line).map_err(|why| Flaw::Malformed { cause: why.to_string() })?;
        let malformed = |cause: &str| Flaw::Malformed { cause: cause.to_owned() };
        let prev = fields.prev.parse().map_err(|why: HashError| malformed(&format!("prev {why}")))?;
        let hash: Hash = fields.hash.parse().map_err(|why: HashError| malformed(&format!("hash {why}")))?;
        let split = line.len().checked_sub(SUFFIX).ok_or_else(|| malformed("it is too short"))?;
        let (hashed, suffix) = line.split_at(split);
        // What is hashed must be all but the hash, and the hash that was parsed must be the one at the end.
        let at_the_end = suffix.starts_with(BEFORE_HASH.as_bytes())
            && suffix.ends_with(AFTER_HASH.as_bytes())
            && suffix[BEFORE_HASH.len()..][..64] == hash.hex();
        if !at_the_end {
            return Err(malformed("its hash is not what ends it"));
        }
        Ok(Line {
            seq: fields.seq,
            time: fields.time,
            kind: fields.kind,
            session: fields.session,
            body: fields.body,
            prev,
            hash,
            hashed,
        })
    }

    /// Whether the record is what its hash was made of.
    pub(crate) fn check(&self) -> Result<(), Flaw> {
        let found = Hash::of(self.hashed);
        if found == self.hash { Ok(()) } else { Err(Flaw::Altered { stated: self.hash, found }) }
    }

    /// The record by itself.
    pub(crate) fn to_record(&self) -> Result<Record, Flaw> {
        Ok(Record {
            seq: self.seq,
            time: self.time.parse().map_err(|why| Flaw::Malformed { cause: format!("time {why}") })?,
            kind: self.kind.clone().into_owned(),
            session: self.session.clone().map(Cow::into_owned),
            body: self.body.to_owned(),
            prev: self.prev,
            hash: self.hash,
        })
    }
}

/// The part of a record that its caller gives, as it is written, and how many bytes of it are the body's. Made at one go:
/// there are many.
pub(crate) fn middle(kind: &str, session: Option<&str>, body: &impl Serialize) -> serde_json::Result<(String, usize)> {
    let mut text = Vec::with_capacity(USUAL);
    text.extend_from_slice(br#","kind":""#);
    text.extend_from_slice(kind.as_bytes());
    text.extend_from_slice(br#"","session":"#);
    serde_json::to_writer(&mut text, &session)?;
    text.extend_from_slice(br#","body":"#);
    let start = text.len();
    serde_json::to_writer(&mut text, body)?;
    // Only JSON that came as text (`RawValue`) has any, between its tokens: a record is one line.
    for byte in &mut text[start..] {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    let bytes = text.len() - start;
    Ok((String::from_utf8(text).map_err(serde::ser::Error::custom)?, bytes))
}

/// Writes a record behind `out`, with its line feed, and returns its hash.
pub(crate) fn write(out: &mut Vec<u8>, seq: Seq, time: &str, middle: &str, prev: Hash) -> Hash {
    let start = out.len();
    out.extend_from_slice(br#"{"seq":"#);
    out.extend_from_slice(decimal(seq, &mut [0; 20]));
    out.extend_from_slice(br#","time":""#);
    out.extend_from_slice(time.as_bytes());
    out.push(b'"');
    out.extend_from_slice(middle.as_bytes());
    out.extend_from_slice(br#","prev":""#);
    out.extend_from_slice(&prev.hex());
    out.push(b'"');
    let hash = Hash::of(&out[start..]);
    out.extend_from_slice(BEFORE_HASH.as_bytes());
    out.extend_from_slice(&hash.hex());
    out.extend_from_slice(AFTER_HASH.as_bytes());
    out.push(b'\n');
    hash
}

fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        let digit = (number % 10) as u8;
        digits[at] = b'0' + digit;
        number /= 10;
        if number == 0 {
            return &digits[at..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_back_and_its_hash_is_that_of_the_bytes_before_it() {
        let mut out = Vec::new();
        let time = "2026-11-01T08:00:00Z";
        let hash = write(
            &mut out,
            1_204,
            time,
            &middle("a.b", Some("s\n"), &serde_json::json!({"x": 1})).unwrap().0,
            Hash::NONE,
        );
        let line = out.strip_suffix(b"\n").unwrap();
        let read = Line::parse(line).unwrap();
        read.check().unwrap();
        let record = read.to_record().unwrap();
        assert_eq!((record.seq, record.kind.as_str(), record.session.as_deref()), (1_204, "a.b", Some("s\n")));
        assert_eq!((record.body.get(), record.prev, record.hash), (r#"{"x":1}"#, Hash::NONE, hash));
        let text = std::str::from_utf8(line).unwrap();
        assert_eq!(Hash::of(text.split(r#","hash""#).next().unwrap().as_bytes()), hash);
    }

    #[test]
    fn one_hash_and_at_the_end() {
        let hash = Hash::of(b"x");
        let body = format!(r#"{{"seq":1,"time":"t","kind":"k","session":null,"body":{{}},"prev":"{hash}""#);
        for line in [
            format!(r#"{body},"hash":"{hash}" }}"#),
            format!(r#"{body},"hash":"{hash}","hash":"{hash}"}}"#),
            format!(r#"{body},"hash":"{hash}","more":1}}"#),
            format!(r#"{{"hash":"{hash}",{}}}"#, &body[1..]),
            format!("{body}}}"),
            String::new(),
        ] {
            assert!(Line::parse(line.as_bytes()).is_err(), "{line}");
        }
        assert_eq!(decimal(0, &mut [0; 20]), b"0");
        assert_eq!(decimal(u64::MAX, &mut [0; 20]), u64::MAX.to_string().as_bytes());
    }
}
