//! Paths of requests, in one form, and the patterns that they are compared with.

use std::fmt;
use std::str::FromStr;

/// A path in the one form in which it is compared: unreserved characters decoded, the rest encoded with upper-case digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormalPath {
    text: String,
    /// Whether a slash was encoded in it. A pattern does not see it, so a rule must say that it may be.
    slashes: bool,
}

/// Why a path has two readings. Servers disagree about all of these, so a rule about paths cannot hold for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// Not from the root.
    #[error("it does not begin with a slash")]
    Relative,
    /// A control character, a space, or `#`.
    #[error("it has a character that no path has")]
    Character,
    /// A backslash, encoded or not: some servers take it for a slash.
    #[error("it has a backslash, which some servers take for a slash")]
    Backslash,
    /// `%` without two hexadecimal digits.
    #[error("it has a % without two hexadecimal digits behind it")]
    Percent,
    /// `%00` and the like.
    #[error("it has an encoded control character")]
    Control,
    /// `%c0%ae` and the like: characters written longer than they are.
    #[error("it has an encoded character in a longer form than it has")]
    Overlong,
    /// `%252e` and the like.
    #[error("it is encoded twice")]
    Twice,
    /// `.` or `..`, encoded or not, also as `..;x`.
    #[error("it has a . or .. segment: send the path that is meant")]
    Dots,
    /// `//`.
    #[error("it has two slashes in a row, which some servers take for one")]
    Slashes,
}

impl NormalPath {
    /// The form in which it is compared.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it has an encoded slash.
    pub fn has_encoded_slash(&self) -> bool {
        self.slashes
    }

    /// Reads a path as it came, with or without a query, which is left out.
    pub fn parse(raw: &str) -> Result<NormalPath, PathError> {
        let raw = without_query(raw);
        if !raw.starts_with('/') {
            return Err(PathError::Relative);
        }
        let bytes = raw.as_bytes();
        let mut text = String::with_capacity(raw.len());
        let mut slashes = false;
        // Where the segment begins, for which an encoded slash is a slash too.
        let mut segment = 0;
        let mut before = 0;
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            at += 1;
            let (byte, encoded) = if byte == b'%' {
                let value = bytes.get(at..at + 2).and_then(hexadecimal).ok_or(PathError::Percent)?;
                at += 2;
                (value, true)
            } else {
                (byte, false)
            };
            // Some servers read a slash or a dot out of these, which are no UTF-8.
            if matches!((before, byte), (_, 0xc0 | 0xc1) | (0xe0, 0x80..=0x9f) | (0xf0, 0x80..=0x8f)) {
                return Err(PathError::Overlong);
            }
            before = byte;
            match byte {
                b'\\' => return Err(PathError::Backslash),
                0..=31 | 127 if encoded => return Err(PathError::Control),
                0..=32 | 127 | b'#' if !encoded => return Err(PathError::Character),
                _ => {}
            }
            match byte {
                b'/' => {
                    // Before the first one there is nothing.
                    if !text.is_empty() {
                        check(&text[segment..], false)?;
                    }
                    if encoded {
                        slashes = true;
                        text.push_str("%2F");
                    } else {
                        text.push('/');
                    }
                    segment = text.len();
                }
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(char::from(byte)),
                // Reserved ones mean one thing as they are and another one encoded.
                b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@'
                    if !encoded =>
                {
                    text.push(char::from(byte));
                }
                _ => {
                    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
                    text.push('%');
                    text.push(char::from(DIGITS[usize::from(byte >> 4)]));
                    text.push(char::from(DIGITS[usize::from(byte & 15)]));
                }
            }
        }
        check(&text[segment..], true)?;
        // Looked for at the end: the digits may have been encoded themselves.
        let twice = |rest: &str| rest.as_bytes().get(..2).and_then(hexadecimal).is_some();
        if text.split("%25").skip(1).any(twice) {
            return Err(PathError::Twice);
        }
        Ok(NormalPath { text, slashes })
    }
}

/// The path alone.
pub(crate) fn without_query(path: &str) -> &str {
    path.split_once('?').map_or(path, |(path, _)| path)
}

/// Whether a segment is one that servers read in two ways. The last one may be empty.
fn check(segment: &str, last: bool) -> Result<(), PathError> {
    if segment.is_empty() && !last {
        return Err(PathError::Slashes);
    }
    // Some servers cut parameters off before they resolve dots: `..;x`. An encoded semicolon is cut off by some, too.
    let name = segment.split(';').next().unwrap_or(segment);
    let name = name.split("%3B").next().unwrap_or(name);
    if matches!(name, "." | "..") { Err(PathError::Dots) } else { Ok(()) }
}

fn hexadecimal(digits: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    match digits {
        [high, low] => Some((digit(*high)? << 4) | digit(*low)?),
        _ => None,
    }
}

/// What paths a rule allows. `*` stands for any text within a segment, `**` as a whole segment for any number of segments; a
/// pattern that ends in `/` allows everything below. Case counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    written: Box<str>,
    segments: Vec<Segment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    /// Without a star.
    Exactly(Box<str>),
    /// With stars: the pieces between them.
    Pieces(Vec<Box<str>>),
    /// `**`.
    Any,
}

/// Why something is not a pattern of paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatternError {
    /// It could never be a path.
    #[error("no request can have this path: {0}")]
    Path(#[from] PathError),
    /// `a**`.
    #[error("** stands for whole segments: write it between two slashes, or use *")]
    Stars,
    /// A query.
    #[error("queries are not compared: leave out the ? and what follows")]
    Query,
    /// Too long to be compared quickly.
    #[error("it is longer than {LONGEST} characters")]
    Long,
}

const LONGEST: usize = 512;

impl Pattern {
    /// Whether a path is allowed.
    pub fn allows(&self, path: &NormalPath) -> bool {
        let Some(rest) = path.text.strip_prefix('/') else { return false };
        // The usual ones, without a list of segments.
        match self.segments.as_slice() {
            [Segment::Any] => return true,
            [Segment::Exactly(first)] => return **first == *rest,
            _ => {}
        }
        let segments: Vec<&str> = rest.split('/').collect();
        glob(&self.segments, &segments)
    }
}

/// Patterns of segments against segments: each `**` takes as few as it can, and only the last one is reconsidered, which is
/// enough and keeps this quadratic.
fn glob(pattern: &[Segment], segments: &[&str]) -> bool {
    let (mut p, mut s) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    loop {
        match (pattern.get(p), segments.get(s)) {
            (None, None) => return true,
            // At the end, it stands for at least one segment: `/a/**` is what is below a.
            (Some(Segment::Any), Some(_)) if p + 1 == pattern.len() => return true,
            (Some(Segment::Any), _) if p + 1 < pattern.len() => {
                back = Some((p, s));
                p += 1;
                continue;
            }
            (Some(one), Some(segment)) if one.allows(segment) => {
                p += 1;
                s += 1;
                continue;
            }
            _ => {}
        }
        match back {
            Some((star, from)) if from < segments.len() => {
                back = Some((star, from + 1));
                p = star + 1;
                s = from + 1;
            }
            _ => return false,
        }
    }
}

impl Segment {
    fn allows(&self, segment: &str) -> bool {
        match self {
            Segment::Exactly(text) => **text == *segment,
            Segment::Pieces(pieces) => star(pieces, segment),
            Segment::Any => true,
        }
    }
}

/// Pieces with a star between each two: the first begins it, the last ends it, the others are found from left to right.
pub(crate) fn star(pieces: &[Box<str>], text: &str) -> bool {
    let [first, middle @ .., last] = pieces else { return pieces.first().is_some_and(|piece| **piece == *text) };
    let Some(rest) = text.strip_prefix(&**first) else { return false };
    let Some(mut rest) = rest.strip_suffix(&**last) else { return false };
    for piece in middle {
        match rest.split_once(&**piece) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    true
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Pattern, PatternError> {
        if text.len() > LONGEST {
            return Err(PatternError::Long);
        }
        if text.contains('?') {
            return Err(PatternError::Query);
        }
        let normal = NormalPath::parse(text)?;
        let mut segments = Vec::new();
        for segment in normal.text[1..].split('/') {
            segments.push(match segment {
                "**" => Segment::Any,
                _ if segment.contains("**") => return Err(PatternError::Stars),
                _ if segment.contains('*') => Segment::Pieces(segment.split('*').map(Box::from).collect()),
                _ => Segment::Exactly(segment.into()),
            });
        }
        if let Some(last) = segments.last_mut()
            && *last == Segment::Exactly("".into())
        {
            *last = Segment::Any;
        }
        // Two in a row mean what one means.
        segments.dedup_by(|a, b| *a == Segment::Any && *b == Segment::Any);
        Ok(Pattern { written: text.into(), segments })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}
