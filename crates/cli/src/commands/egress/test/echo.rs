//! How the upstreams answer: by path, with the credential that they were sent in all ways of writing it.

use std::io;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use futures::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::ext::ReasonPhrase;
use hyper::header::{AUTHORIZATION, CONNECTION, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response};

use super::outside::Records;

type Body = BoxBody<Bytes, io::Error>;

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// A body of these pieces, with trailers if there are any.
fn pieces(pieces: Vec<Bytes>, trailers: Option<HeaderMap>) -> Body {
    let data = pieces.into_iter().map(|piece| Ok(Frame::data(piece)));
    let frames: Vec<io::Result<Frame<Bytes>>> = data.chain(trailers.map(|map| Ok(Frame::trailers(map)))).collect();
    BodyExt::boxed(StreamBody::new(stream::iter(frames)))
}

/// What is written in `Authorization: Bearer`.
fn bearer(headers: &HeaderMap) -> String {
    let value = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.strip_prefix("Bearer ").unwrap_or(value).to_owned()
}

/// In `%XX`, all characters or those alone that must be.
fn percent(text: &str, all: bool) -> String {
    let write = |byte: u8| {
        if !all && (byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    text.bytes().map(write).collect()
}

/// A text in one of the ways in which a sandbox could read it again; the judge looks for the same ones.
pub(super) fn written(way: &str, text: &str) -> Option<String> {
    Some(match way {
        "plain" => text.to_owned(),
        "base64-0" => STANDARD.encode(text),
        "base64-1" => STANDARD_NO_PAD.encode(format!("x{text}!")),
        "base64-2" => STANDARD_NO_PAD.encode(format!("xy{text}!!")),
        "base64-url" => URL_SAFE.encode(text),
        "basic" => STANDARD.encode(format!("user:{text}")),
        "percent" => percent(text, false),
        "percent-all" => percent(text, true),
        "percent-lower" => percent(text, true).to_ascii_lowercase(),
        "hex" => text.bytes().map(|byte| format!("{byte:02x}")).collect(),
        "hex-upper" => text.bytes().map(|byte| format!("{byte:02X}")).collect(),
        "json" => text.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect(),
        "json-upper" => text.chars().map(|c| format!("\\u{:04X}", u32::from(c))).collect(),
        "json-slash" => text.replace('/', "\\/"),
        _ => return None,
    })
}

/// All of those.
pub(super) const WAYS: &[&str] = &[
    "plain",
    "base64-0",
    "base64-1",
    "base64-2",
    "base64-url",
    "basic",
    "percent",
    "percent-all",
    "percent-lower",
    "hex",
    "hex-upper",
    "json",
    "json-upper",
    "json-slash",
];

fn packed<W: io::Write>(mut to: W, bytes: &[u8], finish: impl FnOnce(W) -> io::Result<Vec<u8>>) -> Vec<u8> {
    // Into memory: it cannot fail.
    let _ = to.write_all(bytes);
    finish(to).unwrap_or_default()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    packed(GzEncoder::new(Vec::new(), Compression::default()), bytes, GzEncoder::finish)
}

/// Much in little. Packed once and ahead: without optimisation it takes a second, and others wait meanwhile.
pub(super) static ZEROS: LazyLock<Vec<u8>> = LazyLock::new(|| gzip(&vec![b'0'; 16 << 20]));

/// Keeps a request, and answers it.
pub(super) async fn answer(request: Request<Incoming>, at: &'static str, records: &Records) -> Response<Body> {
    let (parts, body) = request.into_parts();
    records.keep(at, true, format!("{} {}\n{:?}", parts.method, parts.uri, parts.headers));
    // Headers as they are, too: a secret is not to hide in how they are shown.
    for value in parts.headers.values() {
        records.keep(at, true, value.as_bytes());
    }
    // What breaks off is recorded as bytes.
    let read = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    records.keep(at, false, read.to_vec());
    let path = parts.uri.path().to_owned();
    let secret = bearer(&parts.headers);
    let mut response = Response::new(full("a good answer"));
    if path == "/last" {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let Some(way) = path.strip_prefix("/echo/") else { return response };
    let header = |response: &mut Response<Body>, name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
    };
    let line = format!("it is {secret}, as you said\n");
    if let Some(text) = written(way, &secret) {
        *response.body_mut() = full(format!("it is {text}, as you said\n"));
        return response;
    }
    match way {
        "gzip" => {
            header(&mut response, "content-encoding", "gzip");
            *response.body_mut() = full(gzip(line.as_bytes()));
        }
        "gzip-members" => {
            header(&mut response, "content-encoding", "gzip");
            let (one, other) = line.as_bytes().split_at(line.len() / 2);
            *response.body_mut() = full([gzip(one), gzip(other)].concat());
        }
        "gzip-twice" => {
            header(&mut response, "content-encoding", "gzip, gzip");
            *response.body_mut() = full(gzip(&gzip(line.as_bytes())));
        }
        "deflate" => {
            header(&mut response, "content-encoding", "deflate");
            let packed =
                packed(DeflateEncoder::new(Vec::new(), Compression::default()), line.as_bytes(), |it| it.finish());
            *response.body_mut() = full(packed);
        }
        "zlib" => {
            header(&mut response, "content-encoding", "deflate");
            let packed =
                packed(ZlibEncoder::new(Vec::new(), Compression::default()), line.as_bytes(), |it| it.finish());
            *response.body_mut() = full(packed);
        }
        "brotli" => {
            // Not asked for, and not looked into: the bytes do not matter.
            header(&mut response, "content-encoding", "br");
            *response.body_mut() = full(line);
        }
        "bomb" => {
            header(&mut response, "content-encoding", "gzip");
            *response.body_mut() = full([&ZEROS[..], &gzip(line.as_bytes())].concat());
        }
        "chunks" => {
            let each = line.bytes().map(|byte| Bytes::from(vec![byte])).collect();
            *response.body_mut() = pieces(each, None);
        }
        "halves" => {
            let (one, other) = line.split_at(line.len() / 2);
            *response.body_mut() = pieces(vec![one.to_owned().into(), other.to_owned().into()], None);
        }
        "events" => {
            header(&mut response, "content-type", "text/event-stream");
            *response.body_mut() = pieces(vec![format!("data: {secret}\n\n").into()], None);
        }
        "grown" => {
            let long = "x".repeat(200_000);
            *response.body_mut() = full(format!("{long}{secret}{long}"));
        }
        "again" => *response.body_mut() = full(secret.repeat(50)),
        "header" => header(&mut response, "x-said", &secret),
        "header-base64" => header(&mut response, "x-said", &STANDARD.encode(&secret)),
        "cookie" => header(&mut response, "set-cookie", &format!("session={secret}; Path=/")),
        "location" => {
            *response.status_mut() = hyper::StatusCode::FOUND;
            header(&mut response, "location", &format!("https://other.test/?key={}", percent(&secret, false)));
        }
        "reason" => {
            if let Ok(reason) = ReasonPhrase::try_from(secret.into_bytes()) {
                response.extensions_mut().insert(reason);
            }
        }
        "trailer" => {
            let mut trailers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_str(&secret) {
                trailers.insert("x-said", value);
            }
            header(&mut response, "trailer", "x-said");
            *response.body_mut() = pieces(vec![Bytes::from_static(b"a good answer")], Some(trailers));
        }
        "error" => {
            *response.status_mut() = hyper::StatusCode::INTERNAL_SERVER_ERROR;
            *response.body_mut() = full(format!("{{\"error\":\"{secret} is not known\"}}"));
        }
        "binary" => {
            header(&mut response, "content-type", "application/octet-stream");
            *response.body_mut() = full([&[0u8, 255, 1][..], secret.as_bytes(), &[0, 254]].concat());
        }
        "range" => {
            *response.status_mut() = hyper::StatusCode::PARTIAL_CONTENT;
            header(&mut response, "content-range", "bytes 0-1/2");
            *response.body_mut() = full(line);
        }
        _ => {}
    }
    response
}
