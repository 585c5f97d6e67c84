//! SSH: an agent that signs for named hosts, with keys that no sandbox holds.
//!
//! What is carried by SSH cannot be read on its way, so nothing is put in there. Instead the client in the sandbox asks an agent
//! for each signature by which it logs in, and that signs only what logs a named user in at a named host: the request must be
//! bound to a connection (the extension `session-bind@openssh.com`, OpenSSH 8.9), the host's key must be one that the operator has
//! named, and the very signature with which the host has opened that connection must have been **seen on a connection of this
//! session that is open**. What somebody else's connection is bound to is thus worth nothing, here or elsewhere.
//!
//! [`request`] reads what the agent is asked, [`opening`] what a host says when a connection is opened.

mod key;
mod live;
mod opening;
mod request;
mod rsa;
mod wire;

pub use key::{HostKey, SshKey, SshKeyError};
pub(crate) use key::{Signed, public_key, sign};
pub(crate) use live::{Live, Proof};
pub(crate) use opening::{Opening, Shown};
pub(crate) use request::{Authentication, Bind, Request, Sign, answer};

/// What strangers say, for `fuzz/`.
#[cfg(fuzzing)]
pub mod fuzzed {
    use super::{Authentication, Opening, Request, Signed as _};

    /// What an agent is asked, and what is then signed.
    pub fn asked(message: &[u8]) {
        match Request::read(message) {
            Request::Sign(sign) => {
                if let Some(login) = Authentication::read(sign.data) {
                    assert!(login.session.len() + login.user.len() + login.key.len() < message.len());
                }
            }
            Request::Bind(bind) => assert!(!bind.is_signed() || bind.signature.len() > 64),
            Request::Identities | Request::Other => {}
        }
    }

    /// What a host says, at once and in pieces: what it has shown is the same.
    pub fn opening(said: &[u8], piece: usize) {
        let (mut whole, mut cut) = (Opening::default(), Opening::default());
        let at_once = whole.take(said);
        let mut shown = None;
        for piece in said.chunks(piece.max(1)) {
            shown = shown.or(cut.take(piece));
        }
        // In pieces it can be understood before it is too much.
        assert!(at_once.is_none() || at_once == shown);
        if let Some(shown) = shown {
            assert!(shown.key.len() + shown.signature.len() < said.len());
        }
    }
}
