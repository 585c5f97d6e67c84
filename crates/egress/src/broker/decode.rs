//! Encodings of answers, undone so that they can be searched.

use std::io::Write as _;

use bytes::{Buf as _, Bytes};
use flate2::write::MultiGzDecoder;
use flate2::{Decompress, FlushDecompress, Status};
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap, HeaderValue};

use super::Misuse;

/// So many bytes are decoded in one step: the most that they can become bounds the memory.
const STEP: usize = 256;
/// An answer may become so many times larger …
const RATIO: u64 = 200;
/// … once it has so many bytes.
const FREE: u64 = 16 * 1024 * 1024;
/// What one step gives at most, where that can be said.
const OUT: usize = 128 * 1024;
/// The largest window of zstd that is taken, as a power of two: 8 MiB, what RFC 8878 says that all should support.
const ZSTD_WINDOW: u32 = 23;

/// An encoding of bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// None.
    Identity,
    /// `gzip`.
    Gzip,
    /// `deflate`: with or without the header of zlib, since servers send both.
    Deflate,
    /// `zstd`.
    Zstd,
}

impl Coding {
    /// The encoding of an answer; `None` when it is one that is not known here.
    pub fn of(headers: &HeaderMap) -> Option<Coding> {
        let mut all = headers.get_all(CONTENT_ENCODING).iter();
        let Some(value) = all.next() else { return Some(Coding::Identity) };
        if all.next().is_some() {
            return None;
        }
        match value.to_str().ok()?.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Some(Coding::Identity),
            "gzip" | "x-gzip" => Some(Coding::Gzip),
            "deflate" => Some(Coding::Deflate),
            "zstd" => Some(Coding::Zstd),
            _ => None,
        }
    }
}

/// Takes out of `Accept-Encoding` what cannot be decoded here.
pub(super) fn limit_encodings(headers: &mut HeaderMap) {
    let mut kept = Vec::new();
    for value in headers.get_all(ACCEPT_ENCODING) {
        let Ok(value) = value.to_str() else { continue };
        for part in value.split(',').map(str::trim) {
            let name = part.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
            if matches!(name.as_str(), "gzip" | "x-gzip" | "deflate" | "zstd" | "identity") {
                kept.push(part.to_owned());
            }
        }
    }
    let kept = if kept.is_empty() { "identity".to_owned() } else { kept.join(", ") };
    if let Ok(value) = HeaderValue::from_str(&kept) {
        headers.insert(ACCEPT_ENCODING, value);
    }
}

enum Inner {
    Identity,
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    Inflate {
        decoder: Box<Decompress>,
        ended: bool,
        /// Whether more may come out without more coming in.
        full: bool,
    },
    /// The first byte tells which.
    Unsure,
    Zstd {
        decoder: Box<zstd::stream::raw::Decoder<'static>>,
        /// Whether what came so far ends with a frame.
        whole: bool,
        /// Whether more may come out without more coming in.
        full: bool,
    },
}

/// Decodes a stream in bounded steps: [`Decoder::feed`] it, then call [`Decoder::next`] until it gives nothing.
pub struct Decoder {
    inner: Inner,
    input: Bytes,
    taken: u64,
    given: u64,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("taken", &self.taken).field("given", &self.given).finish_non_exhaustive()
    }
}

const BROKEN: Misuse = Misuse::Unscannable { why: "it is not what its Content-Encoding says" };

impl Decoder {
    /// For one body.
    pub fn new(coding: Coding) -> Result<Decoder, Misuse> {
        let inner = match coding {
            Coding::Identity => Inner::Identity,
            Coding::Gzip => Inner::Gzip(Box::new(MultiGzDecoder::new(Vec::new()))),
            Coding::Deflate => Inner::Unsure,
            Coding::Zstd => {
                let mut decoder = zstd::stream::raw::Decoder::new().map_err(|_| BROKEN)?;
                decoder.set_parameter(zstd::stream::raw::DParameter::WindowLogMax(ZSTD_WINDOW)).map_err(|_| BROKEN)?;
                Inner::Zstd { decoder: Box::new(decoder), whole: true, full: false }
            }
        };
        Ok(Decoder { inner, input: Bytes::new(), taken: 0, given: 0 })
    }

    /// Takes a piece. What was fed before must have been taken out by [`Decoder::next`].
    pub fn feed(&mut self, piece: Bytes) {
        self.taken += piece.len() as u64;
        self.input =
            if self.input.is_empty() { piece } else { [std::mem::take(&mut self.input), piece].concat().into() };
    }

    /// The next decoded piece, at most some hundred KiB; nothing when more must be fed.
    #[expect(clippy::should_implement_trait, reason = "it is none: there is more after nothing")]
    pub fn next(&mut self) -> Result<Option<Bytes>, Misuse> {
        if let Inner::Identity = self.inner {
            let piece = std::mem::take(&mut self.input);
            return Ok(if piece.is_empty() { None } else { Some(piece) });
        }
        loop {
            if let (Inner::Unsure, Some(first)) = (&self.inner, self.input.first()) {
                // RFC 1950: the method is 8, the window at most 7. A raw stream's first block is of another kind.
                let zlib = first & 0x0f == 8 && first >> 4 <= 7;
                self.inner = Inner::Inflate { decoder: Box::new(Decompress::new(zlib)), ended: false, full: false };
            }
            let full = matches!(self.inner, Inner::Zstd { full: true, .. } | Inner::Inflate { full: true, .. });
            if self.input.is_empty() && !full {
                return Ok(None);
            }
            let out = self.step()?;
            self.given += out.len() as u64;
            if self.given > FREE && self.given / RATIO > self.taken {
                return Err(Misuse::Unscannable { why: "it expands more than 200 times" });
            }
            if !out.is_empty() {
                return Ok(Some(out.into()));
            }
        }
    }

    fn step(&mut self) -> Result<Vec<u8>, Misuse> {
        let step = &self.input[..self.input.len().min(STEP)];
        let (used, out) = match &mut self.inner {
            Inner::Identity | Inner::Unsure => (step.len(), step.to_vec()),
            Inner::Gzip(decoder) => {
                decoder.write_all(step).and_then(|()| decoder.flush()).map_err(|_| BROKEN)?;
                (step.len(), std::mem::take(decoder.get_mut()))
            }
            Inner::Inflate { ended: true, .. } => return Err(BROKEN),
            Inner::Inflate { decoder, ended, full } => {
                let mut out = Vec::with_capacity(OUT);
                let before = decoder.total_in();
                let status =
                    decoder.decompress_vec(&self.input, &mut out, FlushDecompress::None).map_err(|_| BROKEN)?;
                *ended = status == Status::StreamEnd;
                *full = !*ended && out.len() == OUT;
                let used = usize::try_from(decoder.total_in() - before).unwrap_or_default();
                if used == 0 && out.is_empty() && !*ended && !self.input.is_empty() {
                    return Err(BROKEN);
                }
                (used, out)
            }
            Inner::Zstd { decoder, whole, full } => {
                use zstd::stream::raw::{InBuffer, Operation as _, OutBuffer};
                let mut out = vec![0; OUT];
                let mut input = InBuffer::around(&self.input[..]);
                let mut output = OutBuffer::around(&mut out[..]);
                let hint = decoder.run(&mut input, &mut output).map_err(|_| BROKEN)?;
                let (used, length) = (input.pos(), output.pos());
                *whole = hint == 0;
                *full = length == OUT;
                out.truncate(length);
                (used, out)
            }
        };
        self.input.advance(used);
        Ok(out)
    }

    /// The body has ended: the rest, or an error when it ended too early.
    pub fn finish(&mut self) -> Result<Bytes, Misuse> {
        let mut rest = Vec::new();
        while let Some(piece) = self.next()? {
            rest.extend_from_slice(&piece);
        }
        let nothing = self.taken == 0;
        match &mut self.inner {
            Inner::Identity | Inner::Unsure => {}
            _ if nothing => {}
            Inner::Gzip(decoder) => {
                decoder.try_finish().map_err(|_| BROKEN)?;
                rest.append(decoder.get_mut());
            }
            Inner::Inflate { ended: whole, .. } | Inner::Zstd { whole, .. } => {
                if !*whole {
                    return Err(BROKEN);
                }
            }
        }
        Ok(rest.into())
    }
}
