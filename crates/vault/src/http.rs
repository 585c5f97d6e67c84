//! Speaking HTTP to sources: nothing is followed, everything is bounded, and no answer is repeated in an error.

use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use palisade_api::Secret;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use serde::de::DeserializeOwned;
use zeroize::{Zeroize as _, Zeroizing};

use crate::clock::{Clock, rfc3339};
use crate::error::FetchError;
use crate::source::MAX_SECRET_BYTES;

/// The longest answer of a source: a secret in base64 within JSON, and what surrounds it.
const MAX_ANSWER_BYTES: usize = 4 * MAX_SECRET_BYTES;
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a call may take.
const CALL: Duration = Duration::from_secs(10);
/// Clocks that are further apart are named as the cause of a refusal.
const SKEW: Duration = Duration::from_secs(120);

/// RFC 3986's unreserved characters stay; all else is encoded.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Percent-encodes all but unreserved characters.
pub(crate) fn encode(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// Percent-encodes each part of a path, keeping the slashes.
pub(crate) fn encode_path(path: &str) -> String {
    path.split('/').map(encode).collect::<Vec<_>>().join("/")
}

/// A body that is zeroed once it was sent.
pub(crate) fn body(text: Zeroizing<String>) -> Bytes {
    struct Owned(Zeroizing<String>);
    impl AsRef<[u8]> for Owned {
        fn as_ref(&self) -> &[u8] {
            self.0.as_bytes()
        }
    }
    Bytes::from_owner(Owned(text))
}

/// An `application/x-www-form-urlencoded` body.
pub(crate) fn form(fields: &[(&str, &str)]) -> Bytes {
    // Room for the worst case: what grows leaves its former self behind in memory.
    let room = fields.iter().map(|(name, value)| 3 * (name.len() + value.len()) + 2).sum();
    let mut text = Zeroizing::new(String::with_capacity(room));
    for (name, value) in fields {
        if !text.is_empty() {
            text.push('&');
        }
        text.extend(utf8_percent_encode(name, SEGMENT));
        text.push('=');
        text.extend(utf8_percent_encode(value, SEGMENT));
    }
    body(text)
}

/// A header value that is marked as secret; `None` if it holds what no header may.
pub(crate) fn secret_header(prefix: &str, value: &Secret) -> Option<HeaderValue> {
    let text = Zeroizing::new(format!("{prefix}{}", value.expose()));
    let mut header = HeaderValue::from_str(&text).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// Why an address cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AddressError {
    #[error("no http or https address")]
    Parse,
    #[error("it holds a user name or a password; configure the source's authentication instead")]
    UserInfo,
    #[error("it holds a query or a fragment")]
    Query,
    #[error("it is not encrypted, so every secret could be read on the way; use https")]
    Plain,
}

/// Parses the address of a source. Plain HTTP is for this machine only.
pub(crate) fn address(text: &str) -> Result<Url, AddressError> {
    let url = Url::parse(text).map_err(|_| AddressError::Parse)?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(AddressError::Parse);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(AddressError::UserInfo);
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(AddressError::Query);
    }
    if url.scheme() == "http" && !is_loopback(&url) {
        return Err(AddressError::Plain);
    }
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => {
            host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        None => false,
    }
}

/// Why there is no client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("`{0}` cannot be read: {1}")]
    CaRead(String, String),
    #[error("`{0}` holds no certificate in PEM")]
    CaParse(String),
    #[error("no HTTPS client could be made: {0}")]
    Build(String),
}

/// What lies at the bottom of a failure.
fn innermost(error: &reqwest::Error) -> Option<String> {
    let mut cause = std::error::Error::source(error);
    let mut last = None;
    while let Some(inner) = cause {
        last = Some(inner.to_string());
        cause = inner.source();
    }
    last
}

/// Calls to one server.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    place: String,
}

/// A call to make.
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) url: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Option<Bytes>,
}

impl Call {
    pub(crate) fn get(url: String) -> Self {
        Self { method: Method::GET, url, headers: HeaderMap::new(), body: None }
    }

    pub(crate) fn post(url: String, content_type: &'static str, body: Bytes) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(reqwest::header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        Self { method: Method::POST, url, headers, body: Some(body) }
    }
}

/// A whole answer, zeroed when dropped.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Zeroizing<Vec<u8>>,
    /// What the server's clock said.
    pub(crate) date: Option<SystemTime>,
}

impl Client {
    /// `ca` holds certificates in PEM that are trusted besides the machine's own; `place` is how errors call the server.
    pub(crate) fn new(place: &str, ca: Option<&Path>) -> Result<Self, ClientError> {
        // Another part of the process may have installed it already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("palisade-vault/", env!("CARGO_PKG_VERSION")))
            .tcp_nodelay(true)
            .connect_timeout(CONNECT)
            .timeout(CALL)
            .pool_idle_timeout(Duration::from_secs(60))
            // A proxy from the environment would be handed every secret of a plain connection, and a redirect would carry
            // the credential to a place nobody named.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none());
        if let Some(path) = ca {
            let shown = path.display().to_string();
            let pem = std::fs::read(path).map_err(|error| ClientError::CaRead(shown.clone(), error.to_string()))?;
            let bundle = reqwest::Certificate::from_pem_bundle(&pem).ok().filter(|bundle| !bundle.is_empty());
            http = http.tls_certs_merge(bundle.ok_or(ClientError::CaParse(shown))?);
        }
        let http =
            http.build().map_err(|error| ClientError::Build(innermost(&error).unwrap_or_else(|| error.to_string())))?;
        Ok(Self { http, place: place.to_owned() })
    }

    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// Makes a call and reads the answer whole.
    pub(crate) async fn call(&self, call: Call) -> Result<Answer, FetchError> {
        let mut request = self.http.request(call.method, call.url).headers(call.headers);
        if let Some(body) = call.body {
            request = request.body(body);
        }
        let mut response = request.send().await.map_err(|error| self.transport(error))?;
        let status = response.status().as_u16();
        let date = response
            .headers()
            .get(reqwest::header::DATE)
            .and_then(|date| date.to_str().ok())
            .and_then(|date| jiff::fmt::rfc2822::parse(date).ok())
            .map(|date| SystemTime::from(date.timestamp()));
        let expected = response.content_length().unwrap_or(0).min(MAX_ANSWER_BYTES as u64);
        // Reserved at once where the length is known, since what grows leaves its former self behind.
        let mut body = Zeroizing::new(Vec::with_capacity(usize::try_from(expected).unwrap_or(0).max(8 * 1024)));
        while let Some(chunk) = response.chunk().await.map_err(|error| self.transport(error))? {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(FetchError::TooLarge { place: self.place.clone(), limit: MAX_ANSWER_BYTES });
            }
            body.extend_from_slice(&chunk);
            if let Ok(mut own) = chunk.try_into_mut() {
                own.zeroize();
            }
        }
        Ok(Answer { status, body, date })
    }

    /// What kept a call from being answered, without the address's query or anything that was sent.
    fn transport(&self, error: reqwest::Error) -> FetchError {
        let error = error.without_url();
        let why = if error.is_timeout() {
            format!("no answer within {} s", CALL.as_secs())
        } else {
            let text = if error.is_connect() { "no connection" } else { "the connection broke" };
            // The innermost cause says it best: connection refused, unknown issuer, name not known.
            innermost(&error).map_or_else(|| text.to_owned(), |cause| format!("{text}: {cause}"))
        };
        FetchError::unavailable(&self.place, why)
    }

    /// Parses an answer. The parser's own text may quote it, so only the position is told.
    pub(crate) fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, FetchError> {
        self.parse_borrowed(body)
    }

    /// As [`Client::parse`], for what borrows from the answer.
    pub(crate) fn parse_borrowed<'a, T: serde::Deserialize<'a>>(&self, body: &'a [u8]) -> Result<T, FetchError> {
        serde_json::from_slice(body).map_err(|error| {
            let what = match error.classify() {
                serde_json::error::Category::Syntax => "it is no JSON",
                serde_json::error::Category::Eof => "its JSON is cut off",
                _ => "its JSON has another shape than documented",
            };
            FetchError::malformed(&self.place, format!("{what} (line {}, column {})", error.line(), error.column()))
        })
    }

    /// A refusal that is explained by clocks, if they are far apart.
    pub(crate) fn skew(&self, answer: &Answer, clock: &dyn Clock) -> Option<FetchError> {
        let theirs = answer.date?;
        let ours = clock.now();
        let apart = ours.duration_since(theirs).or_else(|_| theirs.duration_since(ours)).ok()?;
        (apart > SKEW).then(|| FetchError::ClockSkew {
            place: self.place.clone(),
            ours: rfc3339(ours),
            theirs: rfc3339(theirs),
        })
    }

    /// What a status means that the source's own rules do not explain.
    pub(crate) fn status(&self, status: u16) -> FetchError {
        let place = &self.place;
        match status {
            429 => FetchError::unavailable(place, "it is asked too often (429)"),
            500..=599 => FetchError::unavailable(place, format!("it answered with status {status}")),
            300..=399 => FetchError::malformed(
                place,
                format!("it redirects (status {status}), which is not followed; configure the address it redirects to"),
            ),
            401 | 403 => FetchError::denied(place, format!("it answered with status {status}")),
            404 => FetchError::not_found(place, "it answered with status 404"),
            _ => FetchError::malformed(place, format!("it answered with status {status}")),
        }
    }
}
