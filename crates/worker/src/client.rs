//! The control plane as the worker sees it: one method per route, every answer bounded in size and time.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use palisade_api::Secret;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use serde::de::DeserializeOwned;

use crate::pace::{Backoff, unit};
use crate::sse::Decoder;
use crate::wire::{ErrorEnvelope, Event, EventPage, Heartbeat, Session, SkillVersion, WorkItem, work_item};

/// What stays as it is in a path segment or query value; everything else is percent-encoded.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const BETA: HeaderName = HeaderName::from_static("anthropic-beta");
const VERSION: HeaderName = HeaderName::from_static("anthropic-version");
const WORKER_ID: HeaderName = HeaderName::from_static("anthropic-worker-id");
const MANAGED_AGENTS: HeaderValue = HeaderValue::from_static("managed-agents-2026-04-01");

const MIB: usize = 1024 * 1024;
/// Answers to everything but lists and archives are small objects.
const OBJECT_LIMIT: usize = 8 * MIB;
/// A page of events; when a page is larger the worker asks for fewer events.
const PAGE_LIMIT: usize = 128 * MIB;
/// One streamed event: what a client may send (32 MB) and room for the rest.
const MESSAGE_LIMIT: usize = 40 * MIB;
/// A skill archive (30 MB uncompressed is the upload limit).
const ARCHIVE_LIMIT: usize = 64 * MIB;
const ORDINARY: Duration = Duration::from_secs(60);

/// Why a call to the control plane gave nothing. Never carries a credential.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("the control plane answered {status}: {message}")]
    Status {
        status: StatusCode,
        message: String,
        retry_after: Option<Duration>,
        /// `x-should-retry`, which overrules the status.
        should_retry: Option<bool>,
    },
    #[error("the control plane could not be reached: {0}")]
    Transport(String),
    #[error("no answer within {} s", .0.as_secs_f32())]
    Deadline(Duration),
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the answer is not what the protocol says: {0}")]
    Shape(String),
    #[error("the stream ended: {0}")]
    Stream(String),
}

impl CallError {
    /// Whether trying again can help.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Status { should_retry: Some(retry), .. } => *retry,
            Self::Status { status, .. } => status.is_server_error() || matches!(status.as_u16(), 408 | 409 | 425 | 429),
            Self::Transport(_) | Self::Deadline(_) | Self::Stream(_) => true,
            // A proxy's error page with status 200, or a body cut short.
            Self::Shape(_) => true,
            Self::TooLarge(_) => false,
        }
    }

    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(status.as_u16()),
            _ => None,
        }
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// What authenticates the calls of one work item: the item's sessions token, else the environment key.
#[derive(Debug)]
pub(crate) struct Credential {
    token: Option<Secret>,
    /// The token was answered with 401 (it expired or was revoked): the key, which may do all this too, takes over.
    token_refused: AtomicBool,
}

impl Credential {
    pub(crate) fn new(token: Option<Secret>) -> Self {
        Self { token, token_refused: AtomicBool::new(false) }
    }

    fn token(&self) -> Option<&Secret> {
        self.token.as_ref().filter(|_| !self.token_refused.load(Ordering::Relaxed))
    }
}

/// How the client is built.
pub(crate) struct ClientOptions<'a> {
    pub(crate) base_url: &'a Url,
    pub(crate) environment: &'a str,
    pub(crate) key: Secret,
    pub(crate) worker_id: &'a str,
    pub(crate) ca_file: Option<&'a Path>,
    pub(crate) silent_stream: Duration,
}

/// Why the client could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The CA file could not be read.
    #[error("cannot read the CA file {path}: {source}")]
    CaRead {
        /// The file named.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The CA file holds no certificate.
    #[error("the CA file {0} is not a PEM bundle of certificates")]
    CaParse(String),
    /// The worker id cannot be a header value.
    #[error("the worker id may hold only visible ASCII characters")]
    WorkerId,
    /// The environment key cannot be a header value.
    #[error("the environment key holds characters that no key has; was it read from the right place?")]
    Key,
    /// The HTTP client refused its configuration.
    #[error("the HTTP client could not be set up: {0}")]
    Http(String),
}

#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    environment: String,
    key: Secret,
    worker_id: HeaderValue,
    silent_stream: Duration,
}

struct Request<'a> {
    method: Method,
    path: String,
    /// `None`: the environment key.
    credential: Option<&'a Credential>,
    /// The key may take over when the token is refused with this status, too.
    key_on: &'a [u16],
    headers: HeaderMap,
    body: Option<Bytes>,
    deadline: Duration,
    limit: usize,
}

impl<'a> Request<'a> {
    fn new(method: Method, path: String, credential: Option<&'a Credential>) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(BETA, MANAGED_AGENTS);
        Self { method, path, credential, key_on: &[401], headers, body: None, deadline: ORDINARY, limit: OBJECT_LIMIT }
    }
}

fn segment(text: &str) -> String {
    // "." and ".." would be folded away by URL normalisation and change the route.
    if text.bytes().all(|byte| byte == b'.') { "%00".to_owned() } else { utf8_percent_encode(text, PLAIN).to_string() }
}

fn bearer(secret: &Secret) -> Result<HeaderValue, CallError> {
    let text = zeroize::Zeroizing::new(format!("Bearer {}", secret.expose().trim()));
    let mut value = HeaderValue::from_str(&text)
        .map_err(|_| CallError::Shape("the credential holds characters that no credential has".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Why a call has failed.
fn transport(error: reqwest::Error) -> CallError {
    CallError::Transport(causes(error))
}

/// The chain of causes, without the URL (it is long and the caller names the call).
fn causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

impl Client {
    pub(crate) fn new(options: ClientOptions<'_>) -> Result<Self, ClientError> {
        // Another part of the process may have installed it already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("palisade-worker/", env!("CARGO_PKG_VERSION")))
            // A stream that is not read for a while must not take the room of other sessions' answers, and a call that
            // is given up must not disturb them: one connection each.
            .http1_only()
            .tcp_nodelay(true)
            .tcp_keepalive(Duration::from_secs(30))
            .connect_timeout(Duration::from_secs(20))
            .pool_idle_timeout(Duration::from_secs(60))
            // A redirect would carry the credential to a place nobody named.
            .redirect(reqwest::redirect::Policy::none());
        if is_loopback(options.base_url) {
            http = http.no_proxy();
        }
        if options.base_url.scheme() == "http" {
            // No TLS: a machine without CA certificates must do.
            http = http.tls_certs_only([]);
        }
        if let Some(path) = options.ca_file {
            let shown = path.display().to_string();
            let pem = std::fs::read(path).map_err(|source| ClientError::CaRead { path: shown.clone(), source })?;
            let bundle = reqwest::Certificate::from_pem_bundle(&pem).ok().filter(|bundle| !bundle.is_empty());
            http = http.tls_certs_merge(bundle.ok_or(ClientError::CaParse(shown))?);
        }
        bearer(&options.key).map_err(|_| ClientError::Key)?;
        Ok(Self {
            http: http.build().map_err(|error| ClientError::Http(causes(error)))?,
            base: options.base_url.as_str().trim_end_matches('/').to_owned(),
            environment: segment(options.environment),
            key: options.key,
            worker_id: HeaderValue::from_str(options.worker_id).map_err(|_| ClientError::WorkerId)?,
            silent_stream: options.silent_stream,
        })
    }

    /// Asks for one work item. `block` is how long the server may hold the call (1–999 ms).
    pub(crate) async fn poll(
        &self,
        block: Option<u16>,
        reclaim_older_than_ms: Option<u32>,
    ) -> Result<Option<WorkItem>, CallError> {
        let mut path = format!("/v1/environments/{}/work/poll", self.environment);
        for (index, (name, value)) in
            [("block_ms", block.map(u32::from)), ("reclaim_older_than_ms", reclaim_older_than_ms)]
                .into_iter()
                .filter_map(|(name, value)| value.map(|value| (name, value)))
                .enumerate()
        {
            path.push_str(&format!("{}{name}={value}", if index == 0 { '?' } else { '&' }));
        }
        let mut request = Request::new(Method::GET, path, None);
        request.headers.insert(WORKER_ID, self.worker_id.clone());
        let body = self.send(request).await?;
        work_item(&body).map_err(|error| CallError::Shape(format!("work item: {error}")))
    }

    pub(crate) async fn ack(&self, work: &str) -> Result<(), CallError> {
        let path = format!("/v1/environments/{}/work/{}/ack", self.environment, segment(work));
        self.send(Request::new(Method::POST, path, None)).await.map(drop)
    }

    /// Beats once. `expected` goes out byte for byte, percent-encoded.
    pub(crate) async fn heartbeat(
        &self,
        credential: &Credential,
        work: &str,
        expected: &str,
        deadline: Duration,
    ) -> Result<Heartbeat, CallError> {
        let path = format!(
            "/v1/environments/{}/work/{}/heartbeat?expected_last_heartbeat={}",
            self.environment,
            segment(work),
            utf8_percent_encode(expected, PLAIN)
        );
        let request = Request { deadline, ..Request::new(Method::POST, path, Some(credential)) };
        parse("heartbeat", &self.send(request).await?)
    }

    /// Ends the item at once. An item that has ended already (409) is no error. `credential` `None`: the key.
    pub(crate) async fn stop(&self, credential: Option<&Credential>, work: &str) -> Result<(), CallError> {
        let path = format!("/v1/environments/{}/work/{}/stop", self.environment, segment(work));
        let mut backoff = Backoff::new((Duration::from_millis(300), Duration::from_secs(2)));
        let mut attempt = 0;
        loop {
            let mut request = Request::new(Method::POST, path.clone(), credential);
            request.body = Some(Bytes::from_static(br#"{"force":true}"#));
            request.deadline = Duration::from_secs(10);
            match self.send(request).await {
                Ok(_) => return Ok(()),
                Err(error) if error.status() == Some(409) => return Ok(()),
                Err(error) if attempt < 2 && error.is_transient() => {
                    tokio::time::sleep(backoff.delay_after(unit(), error.retry_after())).await;
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub(crate) async fn session(&self, credential: &Credential, session: &str) -> Result<Session, CallError> {
        let path = format!("/v1/sessions/{}", segment(session));
        parse("session", &self.send(Request::new(Method::GET, path, Some(credential))).await?)
    }

    /// One page of the session's history, oldest first, and the cursor of the next one.
    pub(crate) async fn events(
        &self,
        credential: &Credential,
        session: &str,
        limit: u32,
        page: Option<&str>,
    ) -> Result<(Vec<Event>, Option<String>), CallError> {
        let mut path = format!("/v1/sessions/{}/events?limit={limit}", segment(session));
        if let Some(page) = page {
            path.push_str(&format!("&page={}", utf8_percent_encode(page, PLAIN)));
        }
        let request = Request { limit: PAGE_LIMIT, ..Request::new(Method::GET, path, Some(credential)) };
        let body = self.send(request).await?;
        let page: EventPage<'_> =
            serde_json::from_slice(&body).map_err(|error| CallError::Shape(format!("events: {error}")))?;
        let events = page.data.iter().filter_map(|raw| readable(raw.get().as_bytes())).collect();
        Ok((events, page.next_page.map(|next| next.into_owned()).filter(|next| !next.is_empty())))
    }

    /// Opens the session's event stream. It carries only what happens after this returned.
    pub(crate) async fn stream(&self, credential: &Credential, session: &str) -> Result<EventStream, CallError> {
        let path = format!("/v1/sessions/{}/events/stream", segment(session));
        let mut request = Request::new(Method::GET, path, Some(credential));
        request.headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        let response = self.respond(request).await?;
        Ok(EventStream { response, decoder: Decoder::new(MESSAGE_LIMIT), silence: self.silent_stream })
    }

    /// Posts one event; `body` is the whole request.
    pub(crate) async fn post_events(
        &self,
        credential: &Credential,
        session: &str,
        body: Bytes,
    ) -> Result<(), CallError> {
        let path = format!("/v1/sessions/{}/events", segment(session));
        let mut request = Request::new(Method::POST, path, Some(credential));
        request.body = Some(body);
        self.send(request).await.map(drop)
    }

    /// The skill's version; `version` may be the alias `latest`. The hosted service refuses the token here, so the key
    /// takes over on 403, too.
    pub(crate) async fn skill_version(
        &self,
        credential: &Credential,
        skill: &str,
        version: &str,
    ) -> Result<SkillVersion, CallError> {
        let path = format!("/v1/skills/{}/versions/{}", segment(skill), segment(version));
        let mut request = Request::new(Method::GET, path, Some(credential));
        request.headers.remove(BETA);
        request.key_on = &[401, 403];
        parse("skill version", &self.send(request).await?)
    }

    /// The archive of one version of a skill.
    pub(crate) async fn skill_content(
        &self,
        credential: &Credential,
        skill: &str,
        version: &str,
    ) -> Result<Bytes, CallError> {
        let path = format!("/v1/skills/{}/versions/{}/content", segment(skill), segment(version));
        let mut request = Request::new(Method::GET, path, Some(credential));
        request.headers.remove(BETA);
        request.headers.insert(ACCEPT, HeaderValue::from_static("application/binary"));
        request.key_on = &[401, 403];
        request.limit = ARCHIVE_LIMIT;
        request.deadline = Duration::from_secs(600);
        self.send(request).await
    }

    async fn send(&self, request: Request<'_>) -> Result<Bytes, CallError> {
        let (deadline, limit) = (request.deadline, request.limit);
        let whole = async {
            let response = self.respond(request).await?;
            read(response, limit).await
        };
        tokio::time::timeout(deadline, whole).await.unwrap_or(Err(CallError::Deadline(deadline)))
    }

    /// Sends the request and waits for a successful head.
    async fn respond(&self, request: Request<'_>) -> Result<reqwest::Response, CallError> {
        let token = request.credential.and_then(Credential::token);
        match self.attempt(&request, token.unwrap_or(&self.key)).await {
            Err(CallError::Status { status, .. }) if token.is_some() && request.key_on.contains(&status.as_u16()) => {
                if let (401, Some(credential)) = (status.as_u16(), request.credential) {
                    credential.token_refused.store(true, Ordering::Relaxed);
                    tracing::warn!(path = request.path, "the sessions token was refused; using the environment key");
                }
                self.attempt(&request, &self.key).await
            }
            other => other,
        }
    }

    async fn attempt(&self, request: &Request<'_>, secret: &Secret) -> Result<reqwest::Response, CallError> {
        let url = format!("{}{}", self.base, request.path);
        let mut built = self
            .http
            .request(request.method.clone(), url)
            .header(AUTHORIZATION, bearer(secret)?)
            .header(VERSION, HeaderValue::from_static("2026-10-21"))
            .headers(request.headers.clone());
        if !request.headers.contains_key(ACCEPT) {
            built = built.header(ACCEPT, HeaderValue::from_static("application/json"));
        }
        if let Some(body) = &request.body {
            built = built.header(CONTENT_TYPE, HeaderValue::from_static("application/json")).body(body.clone());
        } else if request.method == Method::POST {
            built = built.header(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        let head = tokio::time::timeout(request.deadline, built.send()).await;
        let response = head.map_err(|_| CallError::Deadline(request.deadline))?.map_err(transport)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let headers = response.headers();
        let should_retry = headers.get("x-should-retry").and_then(|value| value.to_str().ok()?.parse().ok());
        let retry_after = headers.get("retry-after").and_then(|value| value.to_str().ok()?.trim().parse::<f64>().ok());
        let retry_after = retry_after.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let request_id = headers.get("request-id").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let body = tokio::time::timeout(Duration::from_secs(5), read(response, MIB)).await;
        let body = body.ok().and_then(Result::ok).unwrap_or_default();
        let mut message = serde_json::from_slice::<ErrorEnvelope>(&body).unwrap_or_default().error.message;
        message = message.chars().filter(|character| !character.is_control()).take(500).collect();
        if message.is_empty() {
            message = status.canonical_reason().unwrap_or("no reason given").to_owned();
        }
        if let Some(request_id) = request_id.filter(|id| id.len() <= 100) {
            message.push_str(&format!(" (request {request_id})"));
        }
        Err(CallError::Status { status, message, retry_after, should_retry })
    }
}

/// Whether the URL's host is this machine, by address or by the name that resolvers must answer locally.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback()),
        None => false,
    }
}

async fn read(mut response: reqwest::Response, limit: usize) -> Result<Bytes, CallError> {
    if response.content_length().is_some_and(|length| length > limit as u64) {
        return Err(CallError::TooLarge(limit));
    }
    let mut whole = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(transport)? {
        if whole.len() + chunk.len() > limit {
            return Err(CallError::TooLarge(limit));
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.freeze())
}

fn parse<T: DeserializeOwned>(what: &str, body: &[u8]) -> Result<T, CallError> {
    serde_json::from_slice(body).map_err(|error| CallError::Shape(format!("{what}: {error}")))
}

fn readable(raw: &[u8]) -> Option<Event> {
    match serde_json::from_slice::<Event>(raw) {
        Ok(event) => Some(event),
        Err(error) => {
            tracing::warn!(%error, "an event could not be read and is passed over");
            None
        }
    }
}

/// An open event stream.
#[derive(Debug)]
pub(crate) struct EventStream {
    response: reqwest::Response,
    decoder: Decoder,
    silence: Duration,
}

impl EventStream {
    /// The next event. A clean end is an error like a cut: either way the stream has to be opened again.
    ///
    /// Cancel-safe: what was received stays in the decoder.
    pub(crate) async fn next(&mut self) -> Result<Event, CallError> {
        loop {
            while let Some(message) = self.decoder.next().map_err(|error| CallError::Stream(error.to_string()))? {
                match message.event.as_deref() {
                    Some("ping") => {}
                    Some("error") => {
                        let envelope: ErrorEnvelope = serde_json::from_slice(&message.data).unwrap_or_default();
                        return Err(CallError::Stream(envelope.error.message));
                    }
                    // Official clients drop a message without a name; the JSON names its type, so nothing is gained by that.
                    _ => {
                        if let Some(event) = readable(&message.data) {
                            return Ok(event);
                        }
                    }
                }
            }
            match tokio::time::timeout(self.silence, self.response.chunk()).await {
                Err(_) => return Err(CallError::Deadline(self.silence)),
                Ok(Err(error)) => return Err(transport(error)),
                Ok(Ok(None)) => return Err(CallError::Stream("closed by the control plane".into())),
                Ok(Ok(Some(chunk))) => self.decoder.push(&chunk),
            }
        }
    }
}
