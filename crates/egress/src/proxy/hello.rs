//! The first message of a TLS client, read from the wire before anything is answered.

use crate::name::Host;

/// No handshake that this program accepts begins with more than this. With post-quantum key shares and every extension in use a
/// real one stays below 4 KiB.
const MAX_HELLO: usize = 32 * 1024;
/// Bytes of handshake that one TLS record may hold.
const MAX_RECORD: usize = 16 * 1024;

const SERVER_NAME: u16 = 0;
const ENCRYPTED_HELLO: u16 = 0xfe0d;
/// The name of the drafts before encrypted hellos.
const ENCRYPTED_SERVER_NAME: u16 = 0xffce;

/// What a ClientHello says that matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hello {
    /// The name that it asks for.
    pub(super) name: Option<Host>,
    /// Whether it holds a second, encrypted hello, which could ask for another name.
    pub(super) encrypted: bool,
}

/// How far the bytes go.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The hello has more bytes.
    More,
    /// The hello is whole.
    Whole(Hello),
}

/// Why the bytes are no ClientHello.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum HelloError {
    /// Not in the form of TLS.
    #[error("the first message is not a well-formed TLS ClientHello: {0}")]
    Malformed(&'static str),
    /// Longer than any real one.
    #[error("the TLS ClientHello is longer than {MAX_HELLO} bytes")]
    TooLong,
    /// The name is not the name of a host.
    #[error("the TLS server name is not a host name: {0}")]
    Name(String),
}

/// Reads a ClientHello from the beginning of `bytes`, which may split it over any number of records.
///
/// It is stricter than servers are: what two programs could read differently (two names, an extension twice, bytes after the
/// end) is refused, so that the upstream cannot see another name than was checked.
pub(super) fn read(bytes: &[u8]) -> Result<Progress, HelloError> {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        let Some((head, tail)) = rest.split_at_checked(5) else { return Ok(Progress::More) };
        if head[0] != 22 || head[1] != 3 {
            return Err(HelloError::Malformed("a record is not a TLS handshake"));
        }
        let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
        if length == 0 || length > MAX_RECORD {
            return Err(HelloError::Malformed("a record has an impossible length"));
        }
        let part = &tail[..length.min(tail.len())];
        message.extend_from_slice(part);
        if message.first().is_some_and(|kind| *kind != 1) {
            return Err(HelloError::Malformed("the first handshake message is not a ClientHello"));
        }
        if let Some(&[_, a, b, c]) = message.first_chunk::<4>() {
            let wanted = 4 + u32::from_be_bytes([0, a, b, c]) as usize;
            if wanted > MAX_HELLO {
                return Err(HelloError::TooLong);
            }
            if message.len() > wanted {
                return Err(HelloError::Malformed("something follows the ClientHello in its record"));
            }
            if message.len() == wanted && part.len() == length {
                return body(&message[4..]).map(Progress::Whole);
            }
        }
        if part.len() < length {
            return Ok(Progress::More);
        }
        rest = &tail[length..];
    }
}

fn body(bytes: &[u8]) -> Result<Hello, HelloError> {
    let mut body = Reader(bytes);
    body.take(2 + 32)?;
    let session = body.byte()?;
    body.take(session.into())?;
    body.block()?;
    let compressions = body.byte()?;
    body.take(compressions.into())?;
    let mut hello = Hello { name: None, encrypted: false };
    if body.0.is_empty() {
        return Ok(hello);
    }
    let mut extensions = Reader(body.block()?);
    if !body.0.is_empty() {
        return Err(HelloError::Malformed("bytes follow its extensions"));
    }
    let mut seen = Vec::new();
    while !extensions.0.is_empty() {
        let kind = extensions.short()?;
        let content = extensions.block()?;
        if seen.contains(&kind) {
            return Err(HelloError::Malformed("an extension is given twice"));
        }
        seen.push(kind);
        match kind {
            SERVER_NAME => hello.name = Some(server_name(content)?),
            ENCRYPTED_HELLO | ENCRYPTED_SERVER_NAME => hello.encrypted = true,
            _ => {}
        }
    }
    Ok(hello)
}

fn server_name(bytes: &[u8]) -> Result<Host, HelloError> {
    let mut extension = Reader(bytes);
    let mut list = Reader(extension.block()?);
    if !extension.0.is_empty() || list.byte()? != 0 {
        return Err(HelloError::Malformed("the server name extension is not one host name"));
    }
    let name = list.block()?;
    if !list.0.is_empty() {
        return Err(HelloError::Malformed("it has more than one server name"));
    }
    let name = std::str::from_utf8(name).map_err(|_| HelloError::Malformed("the server name is not text"))?;
    match name.parse() {
        // TLS has no addresses in this place (RFC 6066, section 3).
        Ok(Host::Address(_)) => Err(HelloError::Name("it is an address".to_owned())),
        Ok(host) => Ok(host),
        Err(error) => Err(HelloError::Name(error.to_string())),
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], HelloError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(HelloError::Malformed("it ends early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, HelloError> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn short(&mut self) -> Result<u16, HelloError> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// Bytes with their length before them, in two bytes.
    fn block(&mut self) -> Result<&'a [u8], HelloError> {
        let length = self.short()?;
        self.take(length.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(bytes: &[u8]) -> Vec<u8> {
        [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
    }

    fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &block(content)].concat()
    }

    fn name(text: &str) -> Vec<u8> {
        extension(SERVER_NAME, &block(&[&[0][..], &block(text.as_bytes())].concat()))
    }

    fn message(extensions: &[Vec<u8>]) -> Vec<u8> {
        let body = [&[3, 3][..], &[7; 32], &[0], &block(&[0x13, 1]), &[1, 0], &block(&extensions.concat())].concat();
        [&[1, 0][..], &block(&body)].concat()
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message.chunks(size).flat_map(|part| [&[22, 3, 1][..], &block(part)].concat()).collect()
    }

    #[test]
    fn a_hello_is_read_however_it_is_split() {
        let message = message(&[extension(10, b"x"), name("API.Example.com"), extension(ENCRYPTED_HELLO, b"?")]);
        let whole = Hello { name: Some("api.example.com".parse().unwrap()), encrypted: true };
        for size in [1, 3, 4, 5, 50, 4000] {
            let bytes = records(&message, size);
            for length in 0..bytes.len() {
                assert_eq!(read(&bytes[..length]), Ok(Progress::More), "{length} of {size}");
            }
            assert_eq!(read(&bytes), Ok(Progress::Whole(whole.clone())), "{size}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let two = extension(SERVER_NAME, &block(&[&[0][..], &block(b"a.test"), &[0], &block(b"b.test")].concat()));
        let mut trailing = message(&[name("a.test")]);
        trailing.push(0);
        for bytes in [
            records(&message(&[name("a.test"), name("b.test")]), 4000),
            records(&message(&[two]), 4000),
            records(&trailing, 4000),
            records(&message(&[name("127.0.0.1")]), 4000),
            records(&message(&[name("a\0b.test")]), 4000),
            records(&message(&[name("")]), 4000),
            vec![22, 3, 1, 0, 0],
            vec![22, 3, 1, 0xff, 0xff],
            vec![22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff],
            vec![22, 3, 1, 0, 1, 2],
        ] {
            assert!(read(&bytes).is_err(), "{bytes:?}");
        }
    }
}
