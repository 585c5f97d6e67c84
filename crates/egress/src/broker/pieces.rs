//! Bodies whose pieces are signed one by one, each with the signature of the one before: what S3 calls `aws-chunked` with a
//! signed payload. The client signed them with placeholder keys; they are signed again as they pass.
//!
//! As documented by AWS under "Signature calculations for the authorization header: Transferring payload in multiple chunks",
//! and "… trailing headers". Nothing changes its length, so that a stated length stays true.

use ring::{digest, hmac};

use super::Misuse;
use super::forms::hex;

/// The most of a piece in bytes: a piece must be there whole before it can be signed. Clients make pieces of 8 KiB to 1 MiB.
const PIECE: usize = 8 * 1024 * 1024;
/// The longest first line of a piece, and the longest trailers.
const LINE: usize = 256;
const TRAILERS: usize = 16 * 1024;
/// What comes before the signature of a piece, and of the trailers.
const SIGNATURE: &str = ";chunk-signature=";
const TRAILER_SIGNATURE: &[u8] = b"x-amz-trailer-signature:";
/// Hexadecimal digits of a signature.
const DIGITS: usize = 64;

/// Signs the pieces of a body.
pub(super) struct Pieces {
    key: hmac::Key,
    reference: String,
    date: String,
    scope: String,
    /// The signature of what came before.
    last: String,
    trailers: bool,
    held: Vec<u8>,
    part: Part,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The first line of a piece.
    Head,
    /// So many bytes of a piece, and the end of their line; its first line was so long.
    Data { line: usize, size: usize },
    /// Trailers, with their signature.
    Trailers,
    /// Ends of lines.
    End,
}

impl Pieces {
    /// Of a request with this date and scope, whose head has the signature `seed`.
    pub(super) fn new(
        key: hmac::Key,
        reference: String,
        date: String,
        scope: String,
        seed: String,
        trailers: bool,
    ) -> Pieces {
        Pieces { key, reference, date, scope, last: seed, trailers, held: Vec::new(), part: Part::Head }
    }

    /// Takes what came of the body and gives the pieces that are whole, signed again.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<u8>, Misuse> {
        self.held.extend_from_slice(bytes);
        let mut held = std::mem::take(&mut self.held);
        let mut out = Vec::with_capacity(held.len());
        let mut used = 0;
        while let Some(taken) = self.step(&held[used..], &mut out)? {
            used += taken;
        }
        held.drain(..used);
        self.held = held;
        Ok(out)
    }

    /// The body has ended.
    pub(super) fn finish(&self) -> Result<(), Misuse> {
        if self.part == Part::End && self.held.is_empty() { Ok(()) } else { Err(self.wrong("it ends within a piece")) }
    }

    fn wrong(&self, why: &'static str) -> Misuse {
        Misuse::Signature { reference: self.reference.clone(), why }
    }

    /// One part, if it is there whole: how long it was.
    fn step(&mut self, rest: &[u8], out: &mut Vec<u8>) -> Result<Option<usize>, Misuse> {
        match self.part {
            Part::Head => {
                let Some(line) = memchr::memmem::find(rest, b"\r\n") else {
                    return if rest.len() > LINE { Err(self.no_piece()) } else { Ok(None) };
                };
                let size = std::str::from_utf8(&rest[..line]).ok().and_then(|text| {
                    let (size, signature) = text.split_once(SIGNATURE)?;
                    let plain = !size.is_empty() && size.bytes().all(|digit| digit.is_ascii_hexdigit());
                    let signed = signature.len() == DIGITS && signature.bytes().all(|digit| digit.is_ascii_hexdigit());
                    usize::from_str_radix(size, 16).ok().filter(|_| plain && signed)
                });
                let size = size.ok_or_else(|| self.no_piece())?;
                if size > PIECE {
                    return Err(Misuse::TooLarge {
                        limit: PIECE,
                        why: "one piece of it is larger, and is signed as a whole",
                    });
                }
                self.part = Part::Data { line: line + 2, size };
                // It is given with its data.
                Ok(Some(0))
            }
            Part::Data { line, size } => {
                let last = size == 0 && self.trailers;
                let whole = line + if last { 0 } else { size + 2 };
                let Some(piece) = rest.get(..whole) else { return Ok(None) };
                let data = &piece[line..][..size];
                if !last && !piece.ends_with(b"\r\n") {
                    return Err(self.no_piece());
                }
                let empty = digest::digest(&digest::SHA256, b"");
                let hash = digest::digest(&digest::SHA256, data);
                self.sign("AWS4-HMAC-SHA256-PAYLOAD", &[empty, hash]);
                out.extend_from_slice(&piece[..line - 2 - DIGITS]);
                out.extend_from_slice(self.last.as_bytes());
                out.extend_from_slice(&piece[line - 2..]);
                self.part = match size {
                    0 if self.trailers => Part::Trailers,
                    0 => Part::End,
                    _ => Part::Head,
                };
                Ok(Some(whole))
            }
            Part::Trailers => {
                let Some(at) = memchr::memmem::find(rest, TRAILER_SIGNATURE) else {
                    return if rest.len() > TRAILERS { Err(self.no_trailers()) } else { Ok(None) };
                };
                let start = at + TRAILER_SIGNATURE.len();
                let whole = start + DIGITS;
                let Some(signature) = rest.get(start..whole) else { return Ok(None) };
                let begins = at == 0 || rest[at - 1] == b'\n';
                if !begins || at > TRAILERS || !signature.iter().all(u8::is_ascii_hexdigit) {
                    return Err(self.no_trailers());
                }
                let mut canonical = Vec::new();
                for line in rest[..at].split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii) {
                    if line.is_empty() {
                        continue;
                    }
                    let colon = memchr::memchr(b':', line).ok_or_else(|| self.no_trailers())?;
                    canonical.extend(line[..colon].trim_ascii().to_ascii_lowercase());
                    canonical.push(b':');
                    canonical.extend_from_slice(line[colon + 1..].trim_ascii());
                    canonical.push(b'\n');
                }
                self.sign("AWS4-HMAC-SHA256-TRAILER", &[digest::digest(&digest::SHA256, &canonical)]);
                out.extend_from_slice(&rest[..start]);
                out.extend_from_slice(self.last.as_bytes());
                self.part = Part::End;
                Ok(Some(whole))
            }
            Part::End => {
                if !rest.iter().all(|byte| matches!(byte, b'\r' | b'\n')) {
                    return Err(self.wrong("its body goes on after the last piece"));
                }
                out.extend_from_slice(rest);
                Ok(Some(rest.len()).filter(|taken| *taken > 0))
            }
        }
    }

    fn no_piece(&self) -> Misuse {
        self.wrong("its body is not in pieces that each begin with SIZE;chunk-signature=SIGNATURE")
    }

    fn no_trailers(&self) -> Misuse {
        self.wrong("its trailers do not end with x-amz-trailer-signature")
    }

    fn sign(&mut self, what: &str, hashes: &[digest::Digest]) {
        let mut text = format!("{what}\n{}\n{}\n{}", self.date, self.scope, self.last).into_bytes();
        for hash in hashes {
            text.push(b'\n');
            text.extend(hex(hash.as_ref()));
        }
        self.last = hex(hmac::sign(&self.key, &text).as_ref()).into_iter().map(char::from).collect();
    }
}
