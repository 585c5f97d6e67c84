//! A small client of the Managed Agents API: JSON in, JSON out, and event streams. What it prints is what the server said.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use futures::StreamExt as _;
use palisade_api::Secret;
use reqwest::{Method, StatusCode, Url};
use serde_json::Value;

use crate::output::{Context as _, Failure, Outcome};
use crate::secret::Source;

/// The version and the beta that every request names (wire reference: conventions §2, §3).
const VERSION: &str = "2023-06-01";
const BETA: &str = "managed-agents-2026-04-01";
/// A line of a stream that is longer than this is not an event: requests are limited to 32 MB.
const LONGEST_LINE: usize = 64 * 1024 * 1024;

/// Where the server is and what opens it.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    key: Secret,
}

/// How the server is found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Address {
    pub(crate) base_url: Option<String>,
    pub(crate) key: Option<Source>,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) state_dir: PathBuf,
}

/// What lies at the bottom of a failure: reqwest's own line repeats the address or says nothing.
fn innermost(why: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = why;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// Has reqwest and everything else use ring. Called once, before the first client; a second call changes nothing.
pub(crate) fn install_crypto() {
    // An error says that it was installed before.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The file in which a running server leaves its address.
pub(crate) fn url_file(state_dir: &Path) -> PathBuf {
    state_dir.join("server.url")
}

/// The address of the server that runs on this state directory, if one does.
pub(crate) fn running_at(state_dir: &Path) -> Option<String> {
    let text = std::fs::read_to_string(url_file(state_dir)).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// The file in which the first start leaves an API key.
pub(crate) fn bootstrap_file(state_dir: &Path) -> PathBuf {
    state_dir.join("bootstrap.key")
}

/// Whether this address leads to this machine and nowhere else.
fn is_loopback(base: &str) -> bool {
    Url::parse(base).is_ok_and(|url| {
        let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    })
}

impl Client {
    /// A client of the server at `base` with this key.
    pub(crate) fn new(base: &str, key: Secret, ca_file: Option<&Path>) -> Outcome<Client> {
        install_crypto();
        let base = Url::parse(base)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| {
                Failure::new("the server's address cannot be used")
                    .why(format!("{base:?} is not an http:// or https:// address"))
                    .fix("give it as --base-url http://127.0.0.1:8484")
            })?;
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("palisade-cli/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            .tcp_nodelay(true)
            .redirect(reqwest::redirect::Policy::none());
        if is_loopback(base.as_str()) {
            // A proxy would see the key, and cannot reach this machine's loopback anyway.
            http = http.no_proxy();
        }
        if base.scheme() == "http" {
            // No TLS: a machine without CA certificates must do.
            http = http.tls_certs_only([]);
        }
        if let Some(path) = ca_file {
            let what = || format!("the certificates in {} cannot be used", path.display());
            let pem = std::fs::read(path).context(what())?;
            for certificate in reqwest::Certificate::from_pem_bundle(&pem).context(what())? {
                http = http.add_root_certificate(certificate);
            }
        }
        let http = http.build().map_err(|why| {
            Failure::new("the HTTP client cannot be set up")
                .why(innermost(&why))
                .fix("install this machine's CA certificates (ca-certificates), or name the server's with --ca-file")
        })?;
        Ok(Client { http, base, key })
    }

    /// A client of the server that the options, the environment or the state directory name.
    pub(crate) fn find(address: &Address) -> Outcome<Client> {
        let base = address.base_url.clone().or_else(|| running_at(&address.state_dir)).ok_or_else(|| {
            Failure::new("no server is known")
                .why(format!("--base-url is not given and none runs on {}", address.state_dir.display()))
                .fix("start one with `palisade up`, or name one with --base-url")
        })?;
        let key = match &address.key {
            Some(source) => source.read("the API key")?,
            // The key of this machine's server is for this machine's server.
            None if !is_loopback(&base) && running_at(&address.state_dir).as_ref() != Some(&base) => {
                return Err(Failure::new("no API key is known")
                    .why(format!("{base} is not on this machine, so the key in the state directory is not for it"))
                    .fix("name a file with --api-key-file or a variable with --api-key-env"));
            }
            None => {
                let path = bootstrap_file(&address.state_dir);
                Source::File(path).read("the API key").map_err(|failure| {
                    failure.fix("name a file with --api-key-file or a variable with --api-key-env")
                })?
            }
        };
        Client::new(&base, key, address.ca_file.as_deref())
    }

    fn url(&self, path: &str) -> Outcome<Url> {
        let joined = format!("{}{path}", self.base.as_str().trim_end_matches('/'));
        Url::parse(&joined).context(format!("{path} is no path of the API"))
    }

    fn request(&self, method: Method, path: &str, query: &[(&str, String)]) -> Outcome<reqwest::RequestBuilder> {
        let mut url = self.url(path)?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(self
            .http
            .request(method, url)
            .header("x-api-key", self.key.expose())
            .header("anthropic-version", VERSION)
            .header("anthropic-beta", BETA))
    }

    async fn answer(&self, what: &str, request: reqwest::RequestBuilder) -> Outcome<reqwest::Response> {
        let response = request.send().await.map_err(|why| self.unreachable(what, &why))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(refused(what, response).await)
    }

    fn unreachable(&self, what: &str, why: &reqwest::Error) -> Failure {
        let text = innermost(why);
        Failure::new(format!("cannot {what}")).why(format!("{} does not answer: {text}", self.base)).fix(
            match self.base.scheme() {
                "https" => "check --base-url, and name the authority of the server's certificate with --ca-file",
                _ => "check that the server runs (`palisade up` starts one) and that --base-url is right",
            },
        )
    }

    /// One call with a time limit; `what` completes "cannot …".
    pub(crate) async fn call(
        &self,
        what: &str,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<&Value>,
    ) -> Outcome<Value> {
        let mut request = self.request(method, path, query)?.timeout(Duration::from_secs(60));
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = self.answer(what, request).await?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(|why| self.unreachable(what, &why))?;
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|why| {
            Failure::new(format!("cannot {what}"))
                .why(format!("{} answered {status} with something that is not JSON: {why}", self.base))
                .fix("check that --base-url names a Managed Agents server")
        })
    }

    pub(crate) async fn get(&self, what: &str, path: &str) -> Outcome<Value> {
        self.call(what, Method::GET, path, &[], None).await
    }

    pub(crate) async fn post(&self, what: &str, path: &str, body: &Value) -> Outcome<Value> {
        self.call(what, Method::POST, path, &[], Some(body)).await
    }

    pub(crate) async fn delete(&self, what: &str, path: &str) -> Outcome<Value> {
        self.call(what, Method::DELETE, path, &[], None).await
    }

    /// Every object of a list, page after page, up to `limit`.
    pub(crate) async fn list(
        &self,
        what: &str,
        path: &str,
        query: &[(&str, String)],
        limit: usize,
    ) -> Outcome<Vec<Value>> {
        let mut objects = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let mut query = query.to_vec();
            if let Some(cursor) = cursor.take() {
                query.push(("page", cursor));
            }
            let mut page = self.call(what, Method::GET, path, &query, None).await?;
            if let Some(Value::Array(data)) = page.get_mut("data").map(Value::take) {
                objects.extend(data);
            }
            cursor = page["next_page"].as_str().map(str::to_owned);
            if cursor.is_none() || objects.len() >= limit {
                objects.truncate(limit);
                return Ok(objects);
            }
        }
    }

    /// Opens a session's stream. Events are those that are emitted from now on.
    pub(crate) async fn stream(&self, session: &str, deltas: bool) -> Outcome<Stream> {
        let previews = [("event_deltas[]", "agent.message".to_owned())];
        let query = if deltas { previews.as_slice() } else { &[] };
        let request = self.request(Method::GET, &format!("/v1/sessions/{session}/events/stream"), query)?;
        let request = request.header("accept", "text/event-stream");
        let response = self.answer("follow the session", request).await?;
        let bytes = response.bytes_stream().map(|piece| piece.map(|bytes| bytes.to_vec()));
        Ok(Stream { bytes: Box::pin(bytes), buffer: Vec::new(), scanned: 0, event: String::new(), data: String::new() })
    }
}

/// The failure that an answer other than 2xx stands for.
async fn refused(what: &str, response: reqwest::Response) -> Failure {
    let status = response.status();
    let request_id = response.headers().get("request-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    let body = response.bytes().await.unwrap_or_default();
    let envelope: Value = serde_json::from_slice(&body).unwrap_or_default();
    let message = envelope["error"]["message"]
        .as_str()
        .map_or_else(|| String::from_utf8_lossy(&body[..body.len().min(500)]).trim().to_owned(), str::to_owned);
    let id = request_id.map(|id| format!(", {id}")).unwrap_or_default();
    let failure =
        Failure::new(format!("cannot {what}")).why(format!("{message} ({}{id})", status.as_u16())).api(envelope);
    match status {
        StatusCode::UNAUTHORIZED => failure.fix("check the API key: --api-key-file or --api-key-env names it"),
        StatusCode::FORBIDDEN => failure.fix("use a key that may do this: an API key, not an environment key"),
        StatusCode::NOT_FOUND => failure.fix("check the id; the `list` command shows those that exist"),
        StatusCode::TOO_MANY_REQUESTS => failure.fix("wait a moment and try again"),
        status if status.is_server_error() => failure.fix("try again; the server's log says more"),
        _ => failure,
    }
}

type Bytes = Pin<Box<dyn futures::Stream<Item = reqwest::Result<Vec<u8>>> + Send>>;

/// A session's events as they come.
pub(crate) struct Stream {
    bytes: Bytes,
    buffer: Vec<u8>,
    /// How much of the buffer holds no line end.
    scanned: usize,
    event: String,
    data: String,
}

impl Stream {
    /// The next event; `None` when the server has ended the stream.
    pub(crate) async fn next(&mut self) -> Outcome<Option<Value>> {
        let broken = |why: String| {
            Failure::new("the session's stream broke off").why(why).fix("open it again: the log keeps every event")
        };
        loop {
            while let Some(end) = self.buffer[self.scanned..].iter().position(|&byte| byte == b'\n') {
                let rest = self.buffer.split_off(self.scanned + end + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                self.scanned = 0;
                let line = String::from_utf8_lossy(&line);
                if let Some((event, data)) = self.line(line.trim_end_matches(['\n', '\r'])) {
                    match event.as_str() {
                        "ping" => {}
                        "error" => return Err(broken(data)),
                        _ => return serde_json::from_str(&data).map(Some).map_err(|why| broken(why.to_string())),
                    }
                }
            }
            self.scanned = self.buffer.len();
            if self.scanned > LONGEST_LINE {
                return Err(broken("a line is too long to be an event".to_owned()));
            }
            match self.bytes.next().await {
                Some(Ok(piece)) => self.buffer.extend_from_slice(&piece),
                Some(Err(why)) => return Err(broken(why.to_string())),
                None => return Ok(None),
            }
        }
    }

    /// Takes one line; gives a message when the line ends one.
    fn line(&mut self, line: &str) -> Option<(String, String)> {
        if line.is_empty() {
            let (event, data) = (std::mem::take(&mut self.event), std::mem::take(&mut self.data));
            return (!event.is_empty() || !data.is_empty()).then_some((event, data));
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event),
            "data" => {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            _ => {}
        }
        None
    }
}
