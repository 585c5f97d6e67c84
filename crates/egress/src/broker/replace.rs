//! Bodies of requests: placeholders become values, or stop the request.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::request::Parts;
use palisade_api::Secret;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};

use super::pieces::Pieces;
use super::redact::Known;
use super::scan::{Anchors, Stream};
use super::sigv4::Signing;
use super::table::{BodyNeedles, Entry, Find, Role, Table};
use super::{Misuse, Wire};
use crate::Authority;

/// A body that is read as a whole has at most so many bytes.
pub(super) const WHOLE: usize = 1024 * 1024;
/// What is signed again, its body included, has at most so many bytes.
pub(super) const SIGNED: usize = 8 * 1024 * 1024;

/// What to do with the body of a request.
#[derive(Debug)]
pub enum BodyPlan {
    /// Let each piece through the replacer. An error means that the connection to the upstream must be cut.
    Replace(Replacer),
    /// Read it to its end, at most [`Whole::limit`] bytes, then [`Whole::finish`], and only then send the head.
    Whole(Whole),
}

/// How a value is written where its placeholder stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Escape {
    Plain,
    Json,
    Percent,
    Xml,
}

/// What RFC 3986 calls unreserved stays as it is.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl Escape {
    pub(super) fn of_body(headers: &HeaderMap) -> Escape {
        let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if kind == "application/x-www-form-urlencoded" {
            Escape::Percent
        } else if kind.ends_with("/json") || kind.ends_with("+json") || kind.ends_with("ndjson") {
            Escape::Json
        } else if kind.ends_with("/xml") || kind.ends_with("+xml") {
            Escape::Xml
        } else {
            Escape::Plain
        }
    }

    pub(super) fn write(self, value: &Secret, out: &mut Vec<u8>) {
        let text = value.expose();
        match self {
            Escape::Plain => out.extend_from_slice(text.as_bytes()),
            Escape::Percent => {
                for part in percent_encoding::utf8_percent_encode(text, UNRESERVED) {
                    out.extend_from_slice(part.as_bytes());
                }
            }
            Escape::Json => {
                for character in text.chars() {
                    let mut buffer = [0; 4];
                    match character {
                        '"' | '\\' => out.extend_from_slice(&[b'\\', character as u8]),
                        '\0'..='\x1f' => out.extend_from_slice(format!("\\u{:04x}", u32::from(character)).as_bytes()),
                        _ => out.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes()),
                    }
                }
            }
            Escape::Xml => {
                for character in text.chars() {
                    let mut buffer = [0; 4];
                    match character {
                        '&' => out.extend_from_slice(b"&amp;"),
                        '<' => out.extend_from_slice(b"&lt;"),
                        '>' => out.extend_from_slice(b"&gt;"),
                        '"' => out.extend_from_slice(b"&quot;"),
                        _ => out.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes()),
                    }
                }
            }
        }
    }
}

/// Where a body goes.
#[derive(Debug, Clone)]
pub(super) struct Destination {
    pub(super) wire: Wire,
    pub(super) authority: Authority,
}

/// Replaces placeholders in a stream, across the borders of its pieces.
pub struct Replacer {
    table: Arc<Table>,
    known: Arc<Known>,
    needles: Option<Arc<BodyNeedles>>,
    destination: Destination,
    escape: Escape,
    /// Values by placeholder, had before the body began.
    values: HashMap<String, Result<Arc<Secret>, Misuse>>,
    stream: Stream,
    references: Vec<String>,
    /// Signs what goes out, where that is signed in pieces.
    pieces: Option<Box<Pieces>>,
}

impl std::fmt::Debug for Replacer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replacer").field("to", &self.destination.authority).finish_non_exhaustive()
    }
}

impl Replacer {
    /// One that only looks: no placeholder may stand in this body.
    pub(super) fn guard(table: Arc<Table>, known: Arc<Known>, destination: Destination) -> Replacer {
        Replacer {
            table,
            known,
            needles: None,
            destination,
            escape: Escape::Plain,
            values: HashMap::new(),
            stream: Stream::default(),
            references: Vec::new(),
            pieces: None,
        }
    }

    /// The same, of a body whose pieces are to be signed again.
    pub(super) fn signing(mut self, pieces: Box<Pieces>) -> Replacer {
        self.pieces = Some(pieces);
        self
    }

    /// One that replaces by the values that it is given.
    pub(super) fn replacing(
        mut self,
        escape: Escape,
        values: HashMap<String, Result<Arc<Secret>, Misuse>>,
    ) -> Replacer {
        self.needles = Some(self.table.body_needles());
        self.escape = escape;
        self.values = values;
        self
    }

    /// Whether what it gives may have another length than what it takes.
    pub fn changes_length(&self) -> bool {
        self.needles.is_some()
    }

    /// Takes a piece of the body and gives what may go to the upstream. On an error nothing of the piece may go there, and the
    /// connection must be cut: the upstream must not take what it has for a whole request.
    pub fn push(&mut self, piece: Bytes) -> Result<Bytes, Misuse> {
        let passed = self.run(piece, false)?;
        self.signed(passed)
    }

    fn signed(&mut self, passed: Bytes) -> Result<Bytes, Misuse> {
        match &mut self.pieces {
            Some(pieces) => pieces.push(&passed).map(Bytes::from),
            None => Ok(passed),
        }
    }

    /// The body has ended: gives what was held back.
    pub fn finish(&mut self) -> Result<Bytes, Misuse> {
        let rest = self.run(Bytes::new(), true)?;
        let rest = self.signed(rest)?;
        self.pieces.as_ref().map_or(Ok(()), |pieces| pieces.finish())?;
        Ok(rest)
    }

    /// Trailers of the request: no placeholder may stand in them.
    pub fn trailers(&self, trailers: &HeaderMap) -> Result<(), Misuse> {
        let guard = self.table.guard();
        for value in trailers.values() {
            for (owner, at, length) in Anchors::finds(&**guard, value.as_bytes()) {
                let core = guard.core(owner, &value.as_bytes()[at..at + length]);
                let entry = core.and_then(|core| self.table.entry(&core)).ok_or(Misuse::Replay)?;
                entry.check(self.destination.wire, &self.destination.authority, "trailer")?;
            }
        }
        Ok(())
    }

    /// References of the credentials that were put in so far.
    pub fn references(&self) -> &[String] {
        &self.references
    }

    fn run(&mut self, piece: Bytes, ended: bool) -> Result<Bytes, Misuse> {
        let Replacer { table, known, needles, destination, escape, values, stream, references, .. } = self;
        let seen = |core: Option<String>| seen_core(table, destination, core);
        match needles {
            None => {
                let guard = table.guard();
                stream.push(piece, ended, &**guard, &mut |owner, found, out| {
                    seen(guard.core(owner, found))?;
                    out.extend_from_slice(found);
                    Ok(())
                })
            }
            Some(needles) => {
                stream.push(piece, ended, &**needles, &mut |owner, found, out| match needles.find(owner, found) {
                    Find::Core(core) => {
                        seen(core)?;
                        out.extend_from_slice(found);
                        Ok(())
                    }
                    Find::Own(entry) => {
                        if !enabled(&entry, destination)? {
                            out.extend_from_slice(found);
                            return Ok(());
                        }
                        let value = match values.get(&entry.text) {
                            Some(value) => value.clone()?,
                            None => {
                                let why = "its placeholder was made after the request began".to_owned();
                                return Err(Misuse::Unavailable { reference: entry.reference.clone(), why });
                            }
                        };
                        known.add(&value, &entry.text);
                        escape.write(&value, out);
                        if !references.contains(&entry.reference) {
                            references.push(entry.reference.clone());
                        }
                        Ok(())
                    }
                })
            }
        }
    }
}

/// A core without the rest of its placeholder, or encoded: useless to whoever gets it, but a sign of misuse elsewhere.
fn seen_core(table: &Table, to: &Destination, core: Option<String>) -> Result<(), Misuse> {
    let entry = core.and_then(|core| table.entry(&core)).ok_or(Misuse::Replay)?;
    enabled(&entry, to).map(drop)
}

/// Whether a placeholder in a body is to be replaced. At a host that its credential names it may stand where it is not: it is
/// worth nothing there, and an agent that has once printed its environment sends it to its model in every request.
fn enabled(entry: &Entry, to: &Destination) -> Result<bool, Misuse> {
    match entry.check(to.wire, &to.authority, "body") {
        Ok(()) => Ok(true),
        Err(Misuse::Place { .. }) if entry.role == Role::Token => Ok(false),
        Err(misuse) => Err(misuse),
    }
}

/// A body that is read to its end before anything is sent.
pub struct Whole {
    pub(super) table: Arc<Table>,
    pub(super) known: Arc<Known>,
    pub(super) destination: Destination,
    pub(super) task: Task,
}

/// Why it is read as a whole.
pub(super) enum Task {
    Replace(Escape),
    Sign(Box<Signing>),
}

impl std::fmt::Debug for Whole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Whole").field("to", &self.destination.authority).finish_non_exhaustive()
    }
}

impl Whole {
    /// How many bytes it may have. For more there is [`Whole::too_large`].
    pub fn limit(&self) -> usize {
        match self.task {
            Task::Replace(_) => WHOLE,
            Task::Sign(_) => SIGNED,
        }
    }

    /// The refusal of a larger one.
    pub fn too_large(&self) -> Misuse {
        let why = match self.task {
            Task::Replace(_) => "it may hold placeholders and has a stated length",
            Task::Sign(_) => "its signature covers the body and has to be made again",
        };
        Misuse::TooLarge { limit: self.limit(), why }
    }

    /// Puts values in, or signs again, and sets `Content-Length` in `parts`. Gives the body and the references of what was put in.
    pub async fn finish(self, parts: &mut Parts, body: Bytes) -> Result<(Bytes, Vec<String>), Misuse> {
        if body.len() > self.limit() {
            return Err(self.too_large());
        }
        let Whole { table, known, destination, task } = self;
        let guard = Replacer::guard(Arc::clone(&table), known, destination);
        let (body, references) = match task {
            Task::Sign(signing) => {
                let mut guard = guard;
                let head = guard.push(body)?;
                let rest = guard.finish()?;
                let body = if rest.is_empty() { head } else { [head, rest].concat().into() };
                signing.sign_body(parts, &body)?;
                (body, Vec::new())
            }
            Task::Replace(escape) => {
                let values = values_in(&table, &guard.destination, &body).await;
                let mut replacer = guard.replacing(escape, values);
                let head = replacer.push(body)?;
                let rest = replacer.finish()?;
                let body = if rest.is_empty() { head } else { [head, rest].concat().into() };
                (body, replacer.references)
            }
        };
        if parts.headers.contains_key(CONTENT_LENGTH) {
            parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        Ok((body, references))
    }
}

/// The values of those placeholders that stand in `body`, and of no others.
async fn values_in(table: &Table, to: &Destination, body: &[u8]) -> HashMap<String, Result<Arc<Secret>, Misuse>> {
    let guard = table.guard();
    let mut values = HashMap::new();
    for (owner, at, length) in Anchors::finds(&**guard, body) {
        let entry = guard.core(owner, &body[at..at + length]).and_then(|core| table.entry(&core));
        if let Some(entry) = entry
            && entry.check(to.wire, &to.authority, "body").is_ok()
            && !values.contains_key(&entry.text)
        {
            values.insert(entry.text.clone(), entry.value().await);
        }
    }
    values
}

/// The values of all that may stand in the body, for one that is not read as a whole.
pub(super) async fn values_of(entries: &[Arc<Entry>]) -> HashMap<String, Result<Arc<Secret>, Misuse>> {
    let mut values = HashMap::new();
    for entry in entries {
        values.insert(entry.text.clone(), entry.value().await);
    }
    values
}
