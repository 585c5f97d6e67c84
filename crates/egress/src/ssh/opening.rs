//! What a host says when a connection is opened, before it is encrypted: RFC 4253, and RFC 4419 and 5656 for the exchanges.

use super::wire::Reader;

/// The most that is looked at. Of a host that says more nothing is seen, so nothing is signed for it.
const MOST: usize = 128 << 10;
/// The longest packet (RFC 4253, section 6.1, asks for 35,000).
const PACKET: usize = 64 << 10;
/// Messages.
const NEW_KEYS: u8 = 21;
/// The end of most exchanges, and a part of one kind of them, which is no signature.
const REPLY: u8 = 31;
/// The end of an exchange of which the host chooses the group.
const GROUP_REPLY: u8 = 33;

/// What a host has shown of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    /// Its key.
    pub(crate) key: Vec<u8>,
    /// Its signature over what both sides have said, which is good for this connection only.
    pub(crate) signature: Vec<u8>,
}

/// Listens to a host until it has shown who it is.
#[derive(Debug, Default)]
pub(crate) struct Opening {
    seen: Vec<u8>,
    /// What of it has been understood.
    at: usize,
    /// Whether the lines are over that come before packets.
    named: bool,
    over: bool,
}

impl Opening {
    /// Takes what the host says next; tells once what it has shown.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Option<Shown> {
        if self.over {
            return None;
        }
        if self.seen.len() + bytes.len() > MOST {
            self.end();
            return None;
        }
        self.seen.extend_from_slice(bytes);
        let shown = self.understand();
        if shown.is_some() {
            self.end();
        }
        shown
    }

    /// Whether nothing more will be told.
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    fn end(&mut self) {
        *self = Opening { over: true, ..Opening::default() };
    }

    fn understand(&mut self) -> Option<Shown> {
        while !self.named {
            let rest = &self.seen[self.at..];
            let end = rest.iter().position(|byte| *byte == b'\n')?;
            self.named = rest.starts_with(b"SSH-");
            self.at += end + 1;
        }
        loop {
            let rest = &self.seen[self.at..];
            let length = usize::try_from(u32::from_be_bytes(*rest.first_chunk()?)).unwrap_or(usize::MAX);
            if length > PACKET {
                self.end();
                return None;
            }
            let packet = rest.get(4..4 + length)?;
            self.at += 4 + length;
            let padding = usize::from(*packet.first().unwrap_or(&0));
            let payload = packet.get(1..length.saturating_sub(padding)).unwrap_or_default();
            match payload.first() {
                Some(&(REPLY | GROUP_REPLY)) => {
                    if let Some(shown) = reply(payload) {
                        return Some(shown);
                    }
                }
                // What follows is encrypted.
                None | Some(&NEW_KEYS) => {
                    self.end();
                    return None;
                }
                Some(_) => {}
            }
        }
    }
}

/// The host's key, its part of the exchange, its signature.
fn reply(payload: &[u8]) -> Option<Shown> {
    let mut reader = Reader::new(payload.get(1..)?);
    let (key, _, signature) = (reader.string()?, reader.string()?, reader.string()?);
    reader.end()?;
    Some(Shown { key: key.to_vec(), signature: signature.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::super::wire::string;
    use super::*;

    fn packet(payload: &[u8]) -> Vec<u8> {
        let padding = 4 + (8 - (payload.len() + 9) % 8) % 8;
        let mut packet = u32::try_from(payload.len() + padding + 1).unwrap().to_be_bytes().to_vec();
        packet.push(u8::try_from(padding).unwrap());
        packet.extend_from_slice(payload);
        packet.resize(packet.len() + padding, 0);
        packet
    }

    fn message(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
        let mut payload = vec![kind];
        parts.iter().for_each(|part| string(&mut payload, part));
        packet(&payload)
    }

    fn shown() -> Option<Shown> {
        Some(Shown { key: b"key".to_vec(), signature: b"signature".to_vec() })
    }

    #[test]
    fn a_host_is_heard_however_its_words_are_cut() {
        let opening = [
            b"a banner\r\nSSH-2.0-host\r\n".to_vec(),
            message(20, &[b"what the host can do"]),
            // A group for the exchange: two numbers, no key.
            message(31, &[b"prime", b"generator"]),
            message(33, &[b"key", b"part", b"signature"]),
            packet(&[21]),
        ]
        .concat();
        for size in 1..opening.len() {
            let mut host = Opening::default();
            let found: Vec<_> = opening.chunks(size).filter_map(|piece| host.take(piece)).collect();
            assert_eq!(found, shown().into_iter().collect::<Vec<_>>(), "{size}");
            assert!(host.is_over());
        }
    }

    #[test]
    fn what_is_no_opening_shows_nothing() {
        let reply = message(31, &[b"key", b"part", b"signature"]);
        let named = b"SSH-2.0-x\r\n".to_vec();
        for wrong in [
            reply.clone(),
            [b"HTTP/1.1 200\r\n".to_vec(), reply.clone()].concat(),
            // After new keys nothing is in the clear.
            [named.clone(), packet(&[21]), reply.clone()].concat(),
            [named.clone(), message(31, &[b"key", b"part", b"signature", b"more"])].concat(),
            [named.clone(), vec![0xff; 64]].concat(),
            [named.clone(), packet(&[])].concat(),
            [named.clone(), vec![0; MOST], reply.clone()].concat(),
        ] {
            assert_eq!(Opening::default().take(&wrong), None);
        }
        assert_eq!(Opening::default().take(&[named, reply].concat()), shown());
    }

    proptest::proptest! {
        #[test]
        fn no_host_is_too_strange(pieces in proptest::collection::vec(proptest::collection::vec(proptest::num::u8::ANY, 0..50), 0..20)) {
            let mut host = Opening::default();
            host.take(b"SSH-2.0-x\n");
            for piece in pieces {
                host.take(&piece);
            }
        }
    }
}
