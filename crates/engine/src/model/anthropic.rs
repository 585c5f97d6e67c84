//! The Messages API over SSE, at any base URL.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Once};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use palisade_api::Secret;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Response, Url};
use serde_json::{Map, Value, json};
use tracing::warn;

use super::assembly::Assembly;
use super::retry::{RetryPolicy, refusal};
use super::secret::redact;
use super::sse::SseParser;
use super::{ModelClient, ModelError, ModelErrorKind, ModelEvent, ModelRequest, Role};
use crate::clock::{Clock, SystemClock, random_bytes};

/// The version of the Messages API that is asked for.
const VERSION: &str = "2023-06-01";
/// The most that is read of a refusal, in bytes.
const LONGEST_REFUSAL: usize = 64 * 1024;
/// The most that is read of a reply, in bytes: the longest output many times over.
const LONGEST_REPLY: usize = 128 * 1024 * 1024;
/// Tokens that a model can hold, unless said otherwise below.
const WINDOW: u32 = 200_000;
/// Windows by family, from the provider's model pages.
const WINDOWS: &[(&str, u32)] = &[
    ("claude-fable-5", 1_000_000),
    ("claude-haiku-5", 1_000_000),
    ("claude-opus-4-6", 1_000_000),
    ("claude-opus-4-7", 1_000_000),
    ("claude-opus-4-8", 1_000_000),
    ("claude-opus-5", 1_000_000),
    ("claude-sonnet-4-6", 1_000_000),
    ("claude-sonnet-5", 1_000_000),
];

/// In which header the key travels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KeyHeader {
    /// `x-api-key`.
    #[default]
    ApiKey,
    /// `Authorization: Bearer`, which some gateways want.
    Bearer,
}

/// What an [`Anthropic`] client is made of.
pub struct AnthropicOptions {
    /// Where the API is, such as `https://api.anthropic.com`; a trailing `/v1` does not count.
    pub base_url: String,
    /// The key; none for a provider that wants none.
    pub key: Option<Secret>,
    /// How the key is sent.
    pub key_header: KeyHeader,
    /// Values of `anthropic-beta`.
    pub betas: Vec<String>,
    /// How failures before the first content are tried again.
    pub retry: RetryPolicy,
    /// A stream that is silent for so long is given up.
    pub idle: Duration,
    /// How long connecting may take.
    pub connect: Duration,
    /// Context windows in tokens by model id prefix, before the built-in table; the longest prefix wins.
    pub windows: Vec<(String, u32)>,
    /// The time, for waits that are given as dates.
    pub clock: Arc<dyn Clock>,
}

impl AnthropicOptions {
    /// The usual options.
    pub fn new(base_url: impl Into<String>, key: Option<Secret>) -> AnthropicOptions {
        AnthropicOptions {
            base_url: base_url.into(),
            key,
            key_header: KeyHeader::default(),
            betas: Vec::new(),
            retry: RetryPolicy::default(),
            idle: Duration::from_secs(60),
            connect: Duration::from_secs(10),
            windows: Vec::new(),
            clock: Arc::new(SystemClock::default()),
        }
    }
}

/// Why a client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AnthropicError {
    /// The base URL cannot be used. It is not repeated when it may hold a password.
    #[error("the model provider's base URL {url:?} cannot be used: {why}")]
    BaseUrl {
        /// The URL, or what of it can be shown.
        url: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// A header cannot be sent.
    #[error("the model provider cannot be sent the header {name}: its value holds characters that no header may hold")]
    Header {
        /// Its name.
        name: &'static str,
    },
    /// TLS or the connection pool could not be set up.
    #[error(
        "the connection to the model provider could not be set up: {source}. For https the machine needs its CA certificates"
    )]
    Transport {
        /// Why.
        source: reqwest::Error,
    },
}

/// A client of the Messages API. Connections are pooled and shared by all of its requests.
pub struct Anthropic {
    inner: Arc<Inner>,
    windows: Vec<(String, u32)>,
}

struct Inner {
    http: Client,
    url: Url,
    headers: HeaderMap,
    key: Option<Secret>,
    retry: RetryPolicy,
    idle: Duration,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Anthropic {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Anthropic").field("url", &self.inner.url.as_str()).finish_non_exhaustive()
    }
}

impl Anthropic {
    /// A client with these options.
    ///
    /// # Errors
    /// When the base URL or a header cannot be used, or TLS cannot be set up.
    pub fn new(options: AnthropicOptions) -> Result<Anthropic, AnthropicError> {
        let url = endpoint(&options.base_url)?;
        let headers = headers(&options)?;
        install_crypto();
        let mut builder = Client::builder()
            .connect_timeout(options.connect)
            // A redirect would carry the key, and the conversation, to a place that nobody configured.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("palisade/", env!("CARGO_PKG_VERSION")));
        if url.scheme() == "http" {
            // No TLS: a machine without CA certificates must do.
            builder = builder.tls_certs_only([]);
        }
        if is_loopback(&url) {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|source| AnthropicError::Transport { source })?;
        let mut windows = options.windows;
        windows.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        let inner = Inner {
            http,
            url,
            headers,
            key: options.key,
            retry: options.retry,
            idle: options.idle,
            clock: options.clock,
        };
        Ok(Anthropic { inner: Arc::new(inner), windows })
    }
}

impl ModelClient for Anthropic {
    fn stream(&self, request: ModelRequest) -> BoxStream<'static, Result<ModelEvent, ModelError>> {
        let conversation = request.conversation.clone();
        let exchange = Exchange {
            inner: self.inner.clone(),
            conversation,
            body: Bytes::from(body(request).to_string()),
            phase: Phase::Ready,
            failed: 0,
            started: false,
            content: false,
        };
        stream::unfold(exchange, |mut exchange| async move { Some((exchange.next().await?, exchange)) }).boxed()
    }

    fn context_window(&self, model: &str) -> u32 {
        let chosen = self.windows.iter().find(|(prefix, _)| model.starts_with(prefix.as_str()));
        let known = || WINDOWS.iter().find(|(prefix, _)| model.starts_with(prefix)).map(|(_, window)| *window);
        chosen.map(|(_, window)| *window).or_else(known).unwrap_or(WINDOW)
    }
}

/// One request until its reply is complete, with its retries.
struct Exchange {
    inner: Arc<Inner>,
    conversation: String,
    body: Bytes,
    phase: Phase,
    /// Failures so far.
    failed: u32,
    /// `Start` has been delivered.
    started: bool,
    /// Something of the reply has been delivered: from here on the client may not ask again by itself.
    content: bool,
}

enum Phase {
    Ready,
    Open(Box<Open>),
    Ended,
}

/// A response that is being read.
struct Open {
    bytes: BoxStream<'static, reqwest::Result<Bytes>>,
    parser: SseParser,
    assembly: Assembly,
    queue: VecDeque<Result<ModelEvent, ModelError>>,
    read: usize,
}

impl Exchange {
    async fn next(&mut self) -> Option<Result<ModelEvent, ModelError>> {
        loop {
            let step = match &mut self.phase {
                Phase::Ended => return None,
                Phase::Ready => match self.inner.open(&self.body).await {
                    Ok(open) => {
                        self.phase = Phase::Open(Box::new(open));
                        continue;
                    }
                    Err(error) => Err(error),
                },
                Phase::Open(open) => match open.queue.pop_front() {
                    Some(step) => step,
                    None => {
                        open.read(&self.inner).await;
                        continue;
                    }
                },
            };
            match step {
                Ok(ModelEvent::Start) if std::mem::replace(&mut self.started, true) => {}
                Ok(event) => {
                    match event {
                        ModelEvent::Start => {}
                        ModelEvent::Done(_) => self.phase = Phase::Ended,
                        _ => self.content = true,
                    }
                    return Some(Ok(event));
                }
                Err(error) => {
                    self.failed += 1;
                    let Some(wait) = self.wait(&error) else {
                        self.phase = Phase::Ended;
                        return Some(Err(error));
                    };
                    warn!(
                        session = %self.conversation, failed = self.failed, wait_ms = wait.as_millis(), error = %error,
                        "the model request is tried again"
                    );
                    // The broken response goes first, so that its connection is not held while waiting.
                    self.phase = Phase::Ready;
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// How long to wait before the request is sent again; none when this failure is the caller's to deal with.
    fn wait(&self, error: &ModelError) -> Option<Duration> {
        // After a silence as long as the watchdog's, another one of them is not worth blocking the session.
        if self.content || !error.retryable || error.kind == ModelErrorKind::Idle {
            return None;
        }
        self.inner.retry.wait(self.failed, error.retry_after, random_bytes()[0])
    }
}

impl Inner {
    /// Sends the request and waits for a stream.
    async fn open(&self, body: &Bytes) -> Result<Open, ModelError> {
        let request = self.http.post(self.url.clone()).headers(self.headers.clone()).body(body.clone());
        let response = match tokio::time::timeout(self.idle, request.send()).await {
            Err(_) => return Err(self.silence()),
            Ok(Err(why)) => {
                let host = self.url.host_str().unwrap_or_default();
                let what = if why.is_connect() { "could not be reached" } else { "did not answer the request" };
                let message = format!("the model provider at {host} {what}: {}", self.reason(why));
                return Err(ModelError::new(ModelErrorKind::RequestFailed, message));
            }
            Ok(Ok(response)) => response,
        };
        if !response.status().is_success() {
            return Err(self.refused(response).await);
        }
        let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or_default().to_owned();
        if !content_type.starts_with("text/event-stream") {
            let mut error = ModelError::new(
                ModelErrorKind::RequestFailed,
                format!(
                    "the model provider answered with {content_type:?} instead of an event stream: check that its base \
                     URL is that of a Messages API"
                ),
            );
            error.retryable = false;
            return Err(error);
        }
        Ok(Open {
            bytes: response.bytes_stream().boxed(),
            parser: SseParser::default(),
            assembly: Assembly::default(),
            queue: VecDeque::new(),
            read: 0,
        })
    }

    async fn refused(&self, mut response: Response) -> ModelError {
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let mut body = Vec::new();
        // The status alone is enough when the rest does not come.
        while let Ok(Ok(Some(bytes))) = tokio::time::timeout(self.idle, response.chunk()).await {
            body.extend_from_slice(&bytes);
            if body.len() >= LONGEST_REFUSAL {
                body.truncate(LONGEST_REFUSAL);
                break;
            }
        }
        self.clean(refusal(Some(status), &headers, &body, self.clock.now()))
    }

    fn silence(&self) -> ModelError {
        let seconds = self.idle.as_secs_f64();
        ModelError::new(ModelErrorKind::Idle, format!("the model provider sent nothing for {seconds} s"))
    }

    /// The innermost reason, without the URL.
    fn reason(&self, why: reqwest::Error) -> String {
        let why = why.without_url();
        let mut reason: &dyn std::error::Error = &why;
        while let Some(source) = reason.source() {
            reason = source;
        }
        self.redact(reason.to_string())
    }

    fn redact(&self, text: String) -> String {
        match &self.key {
            Some(key) => redact(key, text),
            None => text,
        }
    }

    fn clean(&self, mut error: ModelError) -> ModelError {
        error.message = self.redact(error.message);
        error
    }
}

impl Open {
    /// Waits for the next bytes; what they amount to, or the failure, is then in the queue.
    async fn read(&mut self, inner: &Inner) {
        let bytes = match tokio::time::timeout(inner.idle, self.bytes.next()).await {
            Err(_) => return self.queue.push_back(Err(inner.silence())),
            Ok(None) => return self.queue.push_back(Err(cut("it ended"))),
            Ok(Some(Err(why))) => return self.queue.push_back(Err(cut(&inner.reason(why)))),
            Ok(Some(Ok(bytes))) => bytes,
        };
        self.read += bytes.len();
        let mut messages = Vec::new();
        if self.parser.push(&bytes, &mut messages).is_err() || self.read > LONGEST_REPLY {
            let message = "the model provider's reply is longer than any reply can be";
            return self.queue.push_back(Err(ModelError::new(ModelErrorKind::Malformed, message)));
        }
        let mut events = Vec::new();
        for message in &messages {
            let applied = self.assembly.apply(message, inner.clock.now(), &mut events);
            self.queue.extend(events.drain(..).map(Ok));
            if let Err(error) = applied {
                return self.queue.push_back(Err(inner.clean(error)));
            }
        }
    }
}

fn cut(why: &str) -> ModelError {
    let message = format!("the model provider's stream broke before the reply was complete: {why}");
    ModelError::new(ModelErrorKind::Disconnected, message)
}

fn endpoint(base: &str) -> Result<Url, AnthropicError> {
    let bad = |url: &str, why: String| AnthropicError::BaseUrl { url: url.to_owned(), why };
    let example = "write it like https://api.anthropic.com";
    // A text that is no URL may hold anything, a key included: it is not repeated when it looks so.
    let shown = if base.contains('@') { "…" } else { base };
    let mut url = Url::parse(base.trim()).map_err(|why| bad(shown, format!("{why}; {example}")))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(bad(shown, format!("it is not an http or https URL; {example}")));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad(
            "…",
            "it holds a user name or password; put the key into a file or an environment variable".into(),
        ));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad(shown, format!("it has a query or a fragment; {example}")));
    }
    let path = url.path().trim_end_matches('/');
    let path = format!("{}/v1/messages", path.strip_suffix("/v1").unwrap_or(path));
    url.set_path(&path);
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn headers(options: &AnthropicOptions) -> Result<HeaderMap, AnthropicError> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert("anthropic-version", HeaderValue::from_static(VERSION));
    if !options.betas.is_empty() {
        let value = HeaderValue::from_str(&options.betas.join(","));
        headers.insert("anthropic-beta", value.map_err(|_| AnthropicError::Header { name: "anthropic-beta" })?);
    }
    if let Some(key) = &options.key {
        let (name, value) = match options.key_header {
            KeyHeader::ApiKey => ("x-api-key", HeaderValue::from_str(key.expose())),
            KeyHeader::Bearer => {
                let value = zeroize::Zeroizing::new(format!("Bearer {}", key.expose()));
                ("authorization", HeaderValue::from_str(&value))
            }
        };
        let mut value = value.map_err(|_| AnthropicError::Header { name })?;
        // Shown by no one's Debug, and not indexed by HTTP/2's header compression.
        value.set_sensitive(true);
        headers.insert(HeaderName::from_static(name), value);
    }
    Ok(headers)
}

/// The ring provider, for whoever builds TLS in this process; one that is there already is as good.
fn install_crypto() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// The request's body.
///
/// Four prompt-cache breakpoints, the most that the API takes: tools and system prompt, which stay, and the last two of the
/// user's messages. The newest is written for the next request; the one before it is where this request finds the cache.
fn body(request: ModelRequest) -> Value {
    let mut body = Map::new();
    body.insert("model".into(), request.model.into());
    body.insert("max_tokens".into(), request.max_tokens.into());
    body.insert("stream".into(), true.into());
    if let Some(system) = request.system.filter(|system| !system.trim().is_empty()) {
        body.insert("system".into(), json!([{"type": "text", "text": system, "cache_control": ephemeral()}]));
    }
    let mut tools: Vec<Value> = request
        .tools
        .into_iter()
        .map(|tool| {
            let mut definition = Map::new();
            definition.insert("name".into(), tool.name.into());
            if !tool.description.is_empty() {
                definition.insert("description".into(), tool.description.into());
            }
            definition.insert("input_schema".into(), tool.input_schema);
            Value::Object(definition)
        })
        .collect();
    if let Some(last) = tools.last_mut() {
        last["cache_control"] = ephemeral();
        body.insert("tools".into(), tools.into());
    }
    let mut breakpoints = 2;
    let mut messages = Vec::with_capacity(request.messages.len());
    // The API refuses a message without content.
    for mut message in request.messages.into_iter().rev().filter(|message| !message.content.is_empty()) {
        let role = match message.role {
            Role::Assistant => "assistant",
            Role::User => {
                // Clients may have sent breakpoints of their own; with ours there would be too many.
                message.content.iter_mut().filter_map(Value::as_object_mut).for_each(|block| {
                    block.remove("cache_control");
                });
                if let Some(Value::Object(last)) = message.content.last_mut()
                    && breakpoints > 0
                {
                    breakpoints -= 1;
                    last.insert("cache_control".into(), ephemeral());
                }
                "user"
            }
        };
        messages.push(json!({"role": role, "content": message.content}));
    }
    messages.reverse();
    body.insert("messages".into(), messages.into());
    if let Some(effort) = request.effort {
        body.insert("output_config".into(), json!({"effort": effort}));
    }
    if let Some(speed) = request.speed.filter(|speed| speed != "standard") {
        body.insert("speed".into(), speed.into());
    }
    if let Some(geo) = request.inference_geo {
        body.insert("inference_geo".into(), geo.into());
    }
    Value::Object(body)
}

fn ephemeral() -> Value {
    json!({"type": "ephemeral"})
}
