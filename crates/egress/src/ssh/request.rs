//! What an agent is asked, and answers: draft-miller-ssh-agent and OpenSSH's `PROTOCOL.agent`.

use super::wire::{Reader, string};

const FAILURE: u8 = 5;
const SUCCESS: u8 = 6;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGNATURE: u8 = 14;
const EXTENSION: u8 = 27;
const SESSION_BIND: &[u8] = b"session-bind@openssh.com";

/// One request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request<'a> {
    /// Which keys there are.
    Identities,
    /// That what follows is for one connection.
    Bind(Bind<'a>),
    /// To sign something.
    Sign(Sign<'a>),
    /// Something else, also what is malformed: keys are not added or removed by a sandbox.
    Other,
}

/// A connection, as its client says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bind<'a> {
    /// The host's key.
    pub(crate) host_key: &'a [u8],
    /// What both sides have agreed on (RFC 4253, section 7.2).
    pub(crate) session: &'a [u8],
    /// The host's signature over that.
    pub(crate) signature: &'a [u8],
    /// Whether the agent is to be used from the host.
    pub(crate) forwarding: bool,
}

/// What is to be signed, by which key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sign<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) data: &'a [u8],
}

impl<'a> Request<'a> {
    /// Reads a message without its length.
    pub(crate) fn read(message: &'a [u8]) -> Request<'a> {
        Request::understand(message).unwrap_or(Request::Other)
    }

    fn understand(message: &'a [u8]) -> Option<Request<'a>> {
        let mut reader = Reader::new(message);
        let request = match reader.byte()? {
            REQUEST_IDENTITIES => Request::Identities,
            SIGN_REQUEST => {
                let sign = Sign { key: reader.string()?, data: reader.string()? };
                // Which hash RSA is to be used with: what is to be signed names it, too.
                reader.number()?;
                Request::Sign(sign)
            }
            EXTENSION if reader.string()? == SESSION_BIND => Request::Bind(Bind {
                host_key: reader.string()?,
                session: reader.string()?,
                signature: reader.string()?,
                forwarding: reader.byte()? != 0,
            }),
            _ => return None,
        };
        reader.end()?;
        Some(request)
    }
}

/// What a client signs to log in (RFC 4252, section 7).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Authentication<'a> {
    pub(crate) session: &'a [u8],
    pub(crate) user: &'a [u8],
    /// How it is signed, which names the hash where there is a choice.
    pub(crate) algorithm: &'a [u8],
    pub(crate) key: &'a [u8],
    /// The host's key, where the client says it (`publickey-hostbound-v00@openssh.com`).
    pub(crate) host_key: Option<&'a [u8]>,
}

impl<'a> Authentication<'a> {
    /// Reads it; none when something else is to be signed, such as a commit.
    pub(crate) fn read(data: &'a [u8]) -> Option<Authentication<'a>> {
        const REQUEST: u8 = 50;
        let mut reader = Reader::new(data);
        let session = reader.string()?;
        let (request, user, service) = (reader.byte()?, reader.string()?, reader.string()?);
        let (method, signed) = (reader.string()?, reader.byte()?);
        let (algorithm, key) = (reader.string()?, reader.string()?);
        let host_key = match method {
            b"publickey" => None,
            b"publickey-hostbound-v00@openssh.com" => Some(reader.string()?),
            _ => return None,
        };
        reader.end()?;
        (request == REQUEST && service == b"ssh-connection" && signed == 1).then_some(Authentication {
            session,
            user,
            algorithm,
            key,
            host_key,
        })
    }
}

/// Answers, each with its length.
pub(crate) mod answer {
    use super::*;

    fn framed(message: &[u8]) -> Vec<u8> {
        let mut framed = Vec::with_capacity(4 + message.len());
        string(&mut framed, message);
        framed
    }

    /// That nothing was done.
    pub(crate) fn failure() -> Vec<u8> {
        framed(&[FAILURE])
    }

    /// That it was done.
    pub(crate) fn success() -> Vec<u8> {
        framed(&[SUCCESS])
    }

    /// The keys, each with what people call it.
    pub(crate) fn identities(keys: &[(Vec<u8>, &str)]) -> Vec<u8> {
        let mut message = vec![IDENTITIES];
        message.extend(u32::try_from(keys.len()).unwrap_or(u32::MAX).to_be_bytes());
        for (key, name) in keys {
            string(&mut message, key);
            string(&mut message, name.as_bytes());
        }
        framed(&message)
    }

    /// A signature.
    pub(crate) fn signature(signature: &[u8]) -> Vec<u8> {
        let mut message = vec![SIGNATURE];
        string(&mut message, signature);
        framed(&message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, parts: &[&[u8]], end: &[u8]) -> Vec<u8> {
        let mut message = vec![kind];
        parts.iter().for_each(|part| string(&mut message, part));
        message.extend_from_slice(end);
        message
    }

    #[test]
    fn requests_are_read_whole_or_not_at_all() {
        assert_eq!(Request::read(&[REQUEST_IDENTITIES]), Request::Identities);
        let sign = message(SIGN_REQUEST, &[b"key", b"data"], &[0; 4]);
        assert_eq!(Request::read(&sign), Request::Sign(Sign { key: b"key", data: b"data" }));
        let bind = message(EXTENSION, &[SESSION_BIND, b"host", b"session", b"signature"], &[0]);
        let expected = Bind { host_key: b"host", session: b"session", signature: b"signature", forwarding: false };
        assert_eq!(Request::read(&bind), Request::Bind(expected));
        for whole in [&sign, &bind] {
            for end in 0..whole.len() {
                assert_eq!(Request::read(&whole[..end]), Request::Other);
            }
            assert_eq!(Request::read(&[&whole[..], &[0]].concat()), Request::Other);
        }
        // Adding, removing, locking, other extensions.
        for kind in [0, 17, 18, 19, 22, 23, 25, 26, 255] {
            assert_eq!(Request::read(&message(kind, &[b"key", b"data"], &[0; 4])), Request::Other);
        }
        assert_eq!(Request::read(&message(EXTENSION, &[b"query"], &[])), Request::Other);
        // A length that is longer than all there is.
        assert_eq!(Request::read(&[SIGN_REQUEST, 0xff, 0xff, 0xff, 0xff, 1]), Request::Other);
    }

    fn data(request: u8, service: &[u8], method: &[u8], signed: u8, more: &[&[u8]]) -> Vec<u8> {
        let mut data = Vec::new();
        string(&mut data, b"session");
        data.push(request);
        for part in [b"git", service, method] {
            string(&mut data, part);
        }
        data.push(signed);
        for part in [b"ssh-ed25519", &b"key"[..]].iter().chain(more) {
            string(&mut data, part);
        }
        data
    }

    #[test]
    fn only_what_logs_in_is_told_from_other_data() {
        let (connection, bound): (&[u8], &[u8]) = (b"ssh-connection", b"publickey-hostbound-v00@openssh.com");
        let plain = data(50, connection, b"publickey", 1, &[]);
        let read = Authentication::read(&plain).unwrap();
        assert_eq!(
            (read.session, read.user, read.algorithm, read.key, read.host_key),
            (&b"session"[..], &b"git"[..], &b"ssh-ed25519"[..], &b"key"[..], None)
        );
        let said = data(50, connection, bound, 1, &[b"host"]);
        assert_eq!(Authentication::read(&said).unwrap().host_key, Some(&b"host"[..]));
        for wrong in [
            data(51, connection, b"publickey", 1, &[]),
            data(50, b"ssh-userauth", b"publickey", 1, &[]),
            data(50, connection, b"hostbased", 1, &[]),
            data(50, connection, b"publickey", 0, &[]),
            data(50, connection, b"publickey", 1, &[b"more"]),
            data(50, connection, bound, 1, &[]),
            // What `ssh-keygen -Y sign` and git sign.
            b"SSHSIG\0\0\0\x03git\0\0\0\0\0\0\0\x06sha512\0\0\0\x01x".to_vec(),
            Vec::new(),
        ] {
            assert_eq!(Authentication::read(&wrong), None);
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_is_asked_is_too_strange(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = (Request::read(&bytes), Authentication::read(&bytes));
        }
    }
}
