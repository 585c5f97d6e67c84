//! Queries and replies (RFC 1035, RFC 6891). Names in questions are never compressed, and pointers are never followed.

use std::net::Ipv4Addr;

const HEADER: usize = 12;
const TYPE_A: u16 = 1;
const TYPE_OPT: u16 = 41;
const CLASS_IN: u16 = 1;
/// What is read from a datagram, as said to the sender.
const UDP_SIZE: u16 = 1232;
/// More records than a query has.
const RECORDS: u16 = 16;

/// How a query ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    Good,
    Malformed,
    Failed,
    NoName,
    NotImplemented,
    Refused,
    /// Only in an OPT record.
    Version,
}

impl Code {
    /// The bits in the header, and those in the OPT record.
    fn bits(self) -> (u8, u8) {
        match self {
            Code::Good => (0, 0),
            Code::Malformed => (1, 0),
            Code::Failed => (2, 0),
            Code::NoName => (3, 0),
            Code::NotImplemented => (4, 0),
            Code::Refused => (5, 0),
            Code::Version => (0, 1),
        }
    }
}

/// A query with one question.
#[derive(Debug, Clone, Copy)]
pub(super) struct Query<'a> {
    header: Header,
    /// The question as it came: its name's letters are sent back in the case in which they came.
    question: &'a [u8],
    name: &'a [u8],
    kind: u16,
    class: u16,
    /// Whether the sender reads OPT records.
    extended: bool,
}

#[derive(Debug, Clone, Copy)]
struct Header {
    id: [u8; 2],
    opcode: u8,
    recursion: bool,
}

/// What could not be read, and what is said to the sender, if anything.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unread {
    header: Option<Header>,
    code: Code,
    extended: bool,
}

impl Unread {
    pub(super) fn reply(&self) -> Option<Vec<u8>> {
        self.header.map(|header| write(header, &[], self.code, None, self.extended, None))
    }
}

impl<'a> Query<'a> {
    pub(super) fn parse(message: &'a [u8]) -> Result<Query<'a>, Unread> {
        let silent = Unread { header: None, code: Code::Malformed, extended: false };
        if message.len() > super::LARGEST {
            return Err(silent);
        }
        let Some((head, body)) = message.split_first_chunk::<HEADER>() else { return Err(silent) };
        let [id0, id1, flags, _, q0, q1, an0, an1, ns0, ns1, ar0, ar1] = *head;
        // Two that answer each other's replies would never end.
        if flags & 0x80 != 0 {
            return Err(silent);
        }
        let header = Header { id: [id0, id1], opcode: (flags >> 3) & 15, recursion: flags & 1 != 0 };
        let failed = |code| Unread { header: Some(header), code, extended: false };
        if header.opcode != 0 {
            return Err(failed(Code::NotImplemented));
        }
        let additional = u16::from_be_bytes([ar0, ar1]);
        if [q0, q1, an0, an1, ns0, ns1] != [0, 1, 0, 0, 0, 0] || additional > RECORDS {
            return Err(failed(Code::Malformed));
        }
        let name = plain_name(body).ok_or(failed(Code::Malformed))?;
        let after = body.get(name.len()..).unwrap_or_default();
        let Some(([k0, k1, c0, c1], mut rest)) = after.split_first_chunk::<4>() else {
            return Err(failed(Code::Malformed));
        };
        let mut query = Query {
            header,
            question: body.get(..name.len() + 4).unwrap_or_default(),
            name,
            kind: u16::from_be_bytes([*k0, *k1]),
            class: u16::from_be_bytes([*c0, *c1]),
            extended: false,
        };
        for _ in 0..additional {
            let record = Record::parse(rest).ok_or(failed(Code::Malformed))?;
            rest = record.rest;
            if record.kind == TYPE_OPT {
                // One, and of the root.
                if query.extended || record.name != [0] {
                    return Err(failed(Code::Malformed));
                }
                query.extended = true;
                if record.version != 0 {
                    return Err(Unread { header: Some(header), code: Code::Version, extended: true });
                }
            }
        }
        Ok(query)
    }

    /// Whether it is about the internet and not some other class.
    pub(super) fn is_internet(&self) -> bool {
        self.class == CLASS_IN
    }

    /// Whether an IPv4 address is asked for.
    pub(super) fn wants_address(&self) -> bool {
        self.kind == TYPE_A
    }

    /// The name as text; none if a label has a dot in it or is not ASCII, which text could not tell.
    pub(super) fn text(&self) -> Option<String> {
        let mut text = String::new();
        for label in labels(self.name) {
            let label = std::str::from_utf8(label).ok().filter(|label| label.is_ascii() && !label.contains('.'))?;
            if !text.is_empty() {
                text.push('.');
            }
            text.push_str(label);
        }
        Some(text)
    }

    /// The name for a record of what was asked: what is not printable is left out.
    pub(super) fn shown(&self) -> String {
        let mut shown = String::new();
        for label in labels(self.name) {
            if !shown.is_empty() {
                shown.push('.');
            }
            shown.extend(label.iter().map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { '?' }));
        }
        if shown.is_empty() { ".".to_owned() } else { shown }
    }

    /// The reply, with an address and for how many seconds it may be kept, or with words on why there is none.
    pub(super) fn reply(&self, code: Code, address: Option<(Ipv4Addr, u32)>, why: Option<&str>) -> Vec<u8> {
        write(self.header, self.question, code, address, self.extended, why)
    }
}

/// A record of which only the frame is read.
struct Record<'a> {
    name: &'a [u8],
    kind: u16,
    version: u8,
    rest: &'a [u8],
}

impl<'a> Record<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Record<'a>> {
        let name = skipped_name(bytes)?;
        let (fixed, rest) = bytes.get(name.len()..)?.split_first_chunk::<10>()?;
        let [k0, k1, _, _, _, version, _, _, l0, l1] = *fixed;
        let rest = rest.get(usize::from(u16::from_be_bytes([l0, l1]))..)?;
        Some(Record { name, kind: u16::from_be_bytes([k0, k1]), version, rest })
    }
}

/// The bytes of a name without pointers, the root's zero included.
fn plain_name(bytes: &[u8]) -> Option<&[u8]> {
    let mut at = 0;
    loop {
        let length = usize::from(*bytes.get(at)?);
        // What is longer than a label is a pointer, or something that was never defined.
        if length > 63 {
            return None;
        }
        at += 1 + length;
        if at > 255 {
            return None;
        }
        if length == 0 {
            return bytes.get(..at);
        }
    }
}

/// The bytes of a name that may end in a pointer.
fn skipped_name(bytes: &[u8]) -> Option<&[u8]> {
    let mut at = 0;
    loop {
        let length = usize::from(*bytes.get(at)?);
        if length >= 0xc0 {
            return bytes.get(..at + 2);
        }
        if length > 63 || at > 255 {
            return None;
        }
        at += 1 + length;
        if length == 0 {
            return bytes.get(..at);
        }
    }
}

/// The labels of a name that was found to be whole.
fn labels(mut name: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = name.split_first().filter(|(length, _)| **length > 0)?;
        let (label, rest) = rest.split_at_checked(usize::from(*length))?;
        name = rest;
        Some(label)
    })
}

fn write(
    header: Header,
    question: &[u8],
    code: Code,
    address: Option<(Ipv4Addr, u32)>,
    extended: bool,
    why: Option<&str>,
) -> Vec<u8> {
    let (bits, extended_bits) = code.bits();
    // A reply, with authority for what it says only as far as the sandbox goes; recursion as it was asked for.
    let flags = [0x80 | (header.opcode << 3) | u8::from(header.recursion), 0x80 | bits];
    let mut reply = Vec::with_capacity(HEADER + question.len() + 16 + 128);
    reply.extend_from_slice(&header.id);
    reply.extend_from_slice(&flags);
    reply.extend_from_slice(&[
        0,
        u8::from(!question.is_empty()),
        0,
        u8::from(address.is_some()),
        0,
        0,
        0,
        u8::from(extended),
    ]);
    reply.extend_from_slice(question);
    if let Some((address, ttl)) = address {
        // The name is that of the question, which begins behind the header.
        reply.extend_from_slice(&[0xc0, 12]);
        reply.extend_from_slice(&TYPE_A.to_be_bytes());
        reply.extend_from_slice(&CLASS_IN.to_be_bytes());
        reply.extend_from_slice(&ttl.to_be_bytes());
        reply.extend_from_slice(&[0, 4]);
        reply.extend_from_slice(&address.octets());
    }
    if extended {
        // Option 15 (RFC 8914): code 17, "Filtered", and words.
        let words = why.unwrap_or_default();
        let option = if why.is_some() { 6 + words.len() } else { 0 };
        reply.push(0);
        reply.extend_from_slice(&TYPE_OPT.to_be_bytes());
        reply.extend_from_slice(&UDP_SIZE.to_be_bytes());
        reply.extend_from_slice(&[extended_bits, 0, 0, 0]);
        reply.extend_from_slice(&u16::try_from(option).unwrap_or_default().to_be_bytes());
        if why.is_some() {
            reply.extend_from_slice(&[0, 15]);
            reply.extend_from_slice(&u16::try_from(2 + words.len()).unwrap_or_default().to_be_bytes());
            reply.extend_from_slice(&[0, 17]);
            reply.extend_from_slice(words.as_bytes());
        }
    }
    reply
}
