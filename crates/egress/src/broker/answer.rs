//! Answers: values become placeholders again, and new tokens become new ones.

use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use http::StatusCode;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::request;
use http::response;
use palisade_api::Secret;

use super::decode::{Coding, Decoder};
use super::redact::Known;
use super::table::Table;
use super::{Broker, Credential, Misuse, Redactor};
use crate::Authority;

/// An answer with tokens has at most so many bytes, decoded.
const TOKENS: usize = 256 * 1024;
/// What is sealed in such an answer. `refresh_token` may only go back to where it came from.
/// `token` is what registries of container images call it.
const SEALED: [&str; 4] = ["access_token", "refresh_token", "id_token", "token"];

/// What a request says about its answer.
#[derive(Debug, Clone)]
pub struct Expected {
    head: bool,
    /// The credential whose token endpoint was asked, by its index.
    exchange: Option<usize>,
    /// Whether a credential names the host.
    pub(super) named: bool,
    /// Whether the request said which encodings can be searched.
    pub(super) limited: bool,
}

impl Expected {
    pub(super) fn new(credentials: &[Credential], parts: &request::Parts, authority: &Authority) -> Expected {
        let mut named = false;
        let mut exchange = None;
        for (index, credential) in credentials.iter().enumerate() {
            if !credential.hosts.matches(authority) {
                continue;
            }
            named = true;
            if credential.exchange.as_ref().is_some_and(|exchange| exchange.path == parts.uri.path()) {
                exchange = exchange.or(Some(index));
            }
        }
        Expected { head: parts.method == Method::HEAD, exchange, named, limited: false }
    }
}

/// What to do with the body of an answer.
#[derive(Debug)]
pub enum AnswerPlan {
    /// Nothing: it has none, or there is nothing to look for.
    Stream,
    /// Search it, piece by piece. `Content-Encoding` is gone from its head, and `Content-Length` where it would not hold.
    Scan(Scan),
    /// Read it to its end, then [`Seal::finish`]. `Content-Length` is right once that has happened.
    Seal(Seal),
}

impl Broker {
    /// Takes values out of the head of an answer, and says what to do with its body. How many were taken out is the number.
    pub fn answer(&self, expected: &Expected, parts: &mut response::Parts) -> Result<(AnswerPlan, u64), Misuse> {
        let found = self.known.redact_headers(&mut parts.headers);
        let bodiless = expected.head
            || parts.status.is_informational()
            || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let exchange = expected.exchange.filter(|_| parts.status.is_success());
        let interesting = exchange.is_some() || expected.named || !self.known.is_empty();
        if bodiless || !interesting {
            return Ok((AnswerPlan::Stream, found));
        }
        let coding = match Coding::of(&parts.headers) {
            Some(coding) => coding,
            // It was asked for before any value was put in, and from a host that no credential names.
            None if !expected.limited => return Ok((AnswerPlan::Stream, found)),
            None => {
                let why = "its Content-Encoding is none that was asked for: gzip, deflate or zstd";
                return Err(Misuse::Unscannable { why });
            }
        };
        let decoder = Decoder::new(coding)?;
        parts.headers.remove(CONTENT_ENCODING);
        // What is no text has lengths and frames within, and a part of something has its place in it.
        let keeps = parts.status == StatusCode::PARTIAL_CONTENT || !is_text(&parts.headers);
        if !(keeps && coding == Coding::Identity) || exchange.is_some() {
            parts.headers.remove(CONTENT_LENGTH);
        }
        let redactor = if keeps { self.redactor().keeping_length() } else { self.redactor() };
        let scan = Scan { decoder, redactor, known: Arc::clone(&self.known), trailers: 0 };
        Ok(match exchange {
            Some(credential) => {
                (AnswerPlan::Seal(Seal { table: Arc::clone(&self.table), credential, scan, body: Vec::new() }), found)
            }
            None => (AnswerPlan::Scan(scan), found),
        })
    }
}

fn is_text(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return true };
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind.starts_with("text/")
        || ["json", "xml", "javascript", "yaml", "graphql"].iter().any(|text| kind.contains(text))
        || kind == "application/x-www-form-urlencoded"
}

/// Decodes and searches the body of an answer in bounded steps.
pub struct Scan {
    decoder: Decoder,
    redactor: Redactor,
    known: Arc<Known>,
    trailers: u64,
}

impl std::fmt::Debug for Scan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scan").field("decoder", &self.decoder).field("found", &self.found()).finish_non_exhaustive()
    }
}

impl Scan {
    /// Takes a piece. Then call [`Scan::next`] until it gives nothing.
    pub fn feed(&mut self, piece: Bytes) {
        self.decoder.feed(piece);
    }

    /// What may go to the sandbox now; nothing when more must be fed. On an error the connection to the sandbox is cut.
    #[expect(clippy::should_implement_trait, reason = "it is none: there is more after nothing")]
    pub fn next(&mut self) -> Result<Option<Bytes>, Misuse> {
        while let Some(piece) = self.decoder.next()? {
            let out = self.redactor.push(piece);
            if !out.is_empty() {
                return Ok(Some(out));
            }
        }
        Ok(None)
    }

    /// The body has ended: the rest of it.
    pub fn finish(&mut self) -> Result<Bytes, Misuse> {
        let rest = self.decoder.finish()?;
        let head = self.redactor.push(rest);
        let tail = self.redactor.finish();
        Ok(if tail.is_empty() { head } else { [head, tail].concat().into() })
    }

    /// Takes values out of trailers.
    pub fn trailers(&mut self, trailers: &mut HeaderMap) {
        self.trailers += self.known.redact_headers(trailers);
    }

    /// How many values were replaced in body and trailers.
    pub fn found(&self) -> u64 {
        self.redactor.found() + self.trailers
    }
}

/// The answer of a token endpoint, read as a whole: its tokens become placeholders.
pub struct Seal {
    table: Arc<Table>,
    credential: usize,
    scan: Scan,
    body: Vec<u8>,
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seal").field("credential", &self.credential).finish_non_exhaustive()
    }
}

impl Seal {
    /// Takes a piece.
    pub fn feed(&mut self, piece: Bytes) -> Result<(), Misuse> {
        self.scan.decoder.feed(piece);
        while let Some(piece) = self.scan.decoder.next()? {
            self.keep(&piece)?;
        }
        Ok(())
    }

    fn keep(&mut self, piece: &[u8]) -> Result<(), Misuse> {
        if self.body.len() + piece.len() > TOKENS {
            return Err(Misuse::Unscannable { why: "it is the answer of a token endpoint, and larger than 256 KiB" });
        }
        self.body.extend_from_slice(piece);
        Ok(())
    }

    /// All has come: gives the body with placeholders for tokens, and sets `Content-Length`. What is neither JSON nor a form is
    /// not passed on, since there may be tokens in it.
    pub fn finish(mut self, parts: &mut response::Parts) -> Result<(Bytes, u64), Misuse> {
        let rest = self.scan.decoder.finish()?;
        self.keep(&rest)?;
        let body = zeroize::Zeroizing::new(std::mem::take(&mut self.body));
        let sealed = self.seal(&parts.headers, &body)?;
        self.scan.decoder = Decoder::new(Coding::Identity)?;
        self.scan.feed(sealed.into());
        let mut out = Vec::new();
        while let Some(piece) = self.scan.next()? {
            out.extend_from_slice(&piece);
        }
        out.extend_from_slice(&self.scan.finish()?);
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(out.len()));
        Ok((out.into(), self.scan.found()))
    }

    fn seal(&self, headers: &HeaderMap, body: &[u8]) -> Result<Vec<u8>, Misuse> {
        let unscannable =
            || Misuse::Unscannable { why: "it is the answer of a token endpoint, and neither JSON nor a form" };
        let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if kind.starts_with("application/x-www-form-urlencoded") {
            let text = std::str::from_utf8(body).map_err(|_| unscannable())?;
            let mut pairs = Vec::new();
            for pair in text.split('&') {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                let value = if SEALED.contains(&key) {
                    let token = percent_encoding::percent_decode_str(&value.replace('+', " "))
                        .decode_utf8()
                        .map_err(|_| unscannable())?
                        .into_owned();
                    self.one(key, token)?
                } else {
                    value.to_owned()
                };
                pairs.push(format!("{key}={value}"));
            }
            return Ok(pairs.join("&").into_bytes());
        }
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(body.to_vec());
        }
        let mut answer: serde_json::Value = serde_json::from_slice(body).map_err(|_| unscannable())?;
        self.within(&mut answer)?;
        serde_json::to_vec(&answer).map_err(|_| unscannable())
    }

    /// Tokens also stand deeper: Slack answers with `authed_user.access_token`.
    fn within(&self, value: &mut serde_json::Value) -> Result<(), Misuse> {
        match value {
            serde_json::Value::Object(fields) => {
                for (key, field) in fields {
                    match field {
                        serde_json::Value::String(token) if SEALED.contains(&key.as_str()) => {
                            *token = self.one(key, std::mem::take(token))?;
                        }
                        field => self.within(field)?,
                    }
                }
            }
            serde_json::Value::Array(items) => {
                for item in items {
                    self.within(item)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn one(&self, key: &str, token: String) -> Result<String, Misuse> {
        let credential = &self.table.credentials()[self.credential];
        let token = Arc::new(Secret::new(token));
        // What cannot be found again is no token of any known kind; nobody could use it as a secret either.
        if token.expose().len() < 6 {
            return Ok(token.expose().to_owned());
        }
        let sealed = self
            .table
            .seal(credential, token, key == "refresh_token")
            .map_err(|error| Misuse::Unavailable { reference: credential.reference.clone(), why: error.to_string() })?;
        if let Some(forgotten) = sealed.forgotten {
            self.scan.known.forget(&forgotten);
        }
        self.scan.known.add(&sealed.token, &sealed.text);
        Ok(sealed.text)
    }
}
