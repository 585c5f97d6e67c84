//! The resolver: synthetic addresses for names that are allowed.
//!
//! Nothing is ever asked upstream. A name that the policy knows gets an address of 198.18.0.0/15, which stays its own for as long
//! as the session lives; a connection to that address gives the name back. So a name, however long and whatever is encoded in it,
//! carries nothing out: only what is then connected to does, and that is decided anew.

mod codec;
mod names;

pub use names::Names;

use crate::Host;
use codec::{Code, Query};

/// Seconds for which an answer may be kept. The address never becomes another name's, so this only bounds how long a program goes
/// on with one that a restored session no longer knows.
const TTL: u32 = 60;

/// The largest message that is read: what a query can need, with options.
pub const LARGEST: usize = 4096;

/// What a query is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The reply, if the sender gets one: what is no query gets none.
    pub reply: Option<Vec<u8>>,
    /// The name that was asked for, in its one form, or what was said, when it is no name of a host; only printable characters.
    pub asked: Option<String>,
    /// Whether the policy knows the name.
    pub allowed: bool,
}

/// Answers one message.
///
/// For a name that `knows` accepts: its address for A, and nothing for any other type, since no other leads anywhere. For all
/// others NXDOMAIN, with an extended error (RFC 8914, "Filtered") for those who can read it: REFUSED would make a resolver ask
/// again.
pub fn answer(query: &[u8], names: &Names, knows: &dyn Fn(&Host) -> bool) -> Answer {
    let query = match Query::parse(query) {
        Ok(query) => query,
        Err(failed) => return Answer { reply: failed.reply(), asked: None, allowed: false },
    };
    if !query.is_internet() {
        return Answer {
            reply: Some(query.reply(Code::Refused, None, None)),
            asked: Some(query.shown()),
            allowed: false,
        };
    }
    let host = match query.text().as_deref().map(str::parse::<Host>) {
        Some(Ok(host @ Host::Name(_))) => host,
        _ => {
            let reply = query.reply(Code::NoName, None, Some("not the name of a host"));
            return Answer { reply: Some(reply), asked: Some(query.shown()), allowed: false };
        }
    };
    let asked = Some(host.to_string());
    if !knows(&host) {
        let reply =
            query.reply(Code::NoName, None, Some("not allowed by the egress policy; asking again does not help"));
        return Answer { reply: Some(reply), asked, allowed: false };
    }
    let reply = if query.wants_address() {
        match names.address(&host) {
            Some(address) => query.reply(Code::Good, Some((address, TTL)), None),
            None => query.reply(Code::Failed, None, Some("this session has asked for as many names as it may")),
        }
    } else {
        query.reply(Code::Good, None, None)
    };
    Answer { reply: Some(reply), asked, allowed: true }
}

/// Messages over TCP (RFC 1035, section 4.2.2): two bytes of length before each.
pub mod tcp {
    use super::LARGEST;

    /// The next message in what was read so far.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Next<'a> {
        /// One, and how many bytes it took, its length included.
        Message(&'a [u8], usize),
        /// Not all of it is there.
        More,
        /// It is longer than any query: the connection is to be closed.
        TooLong,
    }

    /// Takes the next message from the beginning of what was read.
    pub fn next(read: &[u8]) -> Next<'_> {
        let Some(([high, low], rest)) = read.split_first_chunk::<2>() else { return Next::More };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if length > LARGEST {
            return Next::TooLong;
        }
        rest.get(..length).map_or(Next::More, |message| Next::Message(message, length + 2))
    }

    /// A message with its length before it.
    pub fn frame(message: &[u8]) -> Vec<u8> {
        let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
        let mut framed = Vec::with_capacity(message.len() + 2);
        framed.extend_from_slice(&length.to_be_bytes());
        framed.extend_from_slice(message.get(..usize::from(length)).unwrap_or(message));
        framed
    }
}
