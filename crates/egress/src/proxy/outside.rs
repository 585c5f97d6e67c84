//! Requests to the outside: over a connection that is idle, or a new one.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::header::{COOKIE, HOST, HeaderMap, HeaderValue};
use http::uri::PathAndQuery;
use http::{Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::body::{Flow, Lease, Upload};
use super::dial;
use super::fault::Fault;
use super::pool::{Key, Line, Sender};
use super::session::Shared;
use super::stream::Wire;
use super::tls;
use crate::broker::ClientCertificate;
use crate::policy::{Refusal, Scheme};

/// What an HTTP/2 peer may send before it is read. Streams of several megabits per millisecond of round trip.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// How long an idle connection may take to be ready.
const READY: Duration = Duration::from_secs(1);

/// Runs what HTTP/2 needs as tasks of the session.
#[derive(Debug, Clone)]
pub(super) struct Tasks(TaskTracker, CancellationToken);

impl Tasks {
    pub(super) fn of(shared: &Shared) -> Tasks {
        Tasks(shared.tasks.clone(), shared.stop.clone())
    }
}

impl<F: Future<Output: Send + 'static> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, future: F) {
        let stop = self.1.clone();
        self.0.spawn(async move { stop.run_until_cancelled(future).await.map(drop) });
    }
}

/// A request on its way.
pub(super) struct Outgoing {
    pub(super) key: Key,
    pub(super) request: Request<Upload>,
    pub(super) flow: Arc<Flow>,
    pub(super) certificate: Option<ClientCertificate>,
}

/// What came back.
pub(super) struct Answered {
    pub(super) response: Response<Incoming>,
    pub(super) address: SocketAddr,
    /// The connection, if it can be used again.
    pub(super) lease: Option<Lease>,
}

/// Sends a request. `check` is asked for each address before it is used; `used` is told which one is.
pub(super) async fn send(
    shared: &Arc<Shared>,
    outgoing: Outgoing,
    check: impl Fn(IpAddr) -> Result<(), Refusal>,
) -> Result<Answered, Fault> {
    let Outgoing { key, mut request, flow, certificate } = outgoing;
    loop {
        // An idle connection was checked for the rule of another request.
        let idle = shared.pool.take(&key).filter(|line| check(line.address.ip()).is_ok());
        let again = idle.is_some();
        let mut line = match idle {
            Some(line) => line,
            None => {
                let line = open(shared, &key, certificate.as_ref(), &check).await?;
                if let Sender::Two(sender) = &line.sender {
                    let sender = Sender::Two(sender.clone());
                    shared.pool.give(key.clone(), Line { sender, address: line.address });
                }
                line
            }
        };
        adapt(&mut request, &key, &line.sender)?;
        let sent = match &mut line.sender {
            Sender::One(sender) => {
                if again && !ready(sender.ready()).await {
                    continue;
                }
                let sending = sender.try_send_request(request);
                patient(shared, &flow, sending).await?
            }
            Sender::Two(sender) => {
                if again && !ready(sender.ready()).await {
                    continue;
                }
                let sending = sender.try_send_request(request);
                patient(shared, &flow, sending).await?
            }
        };
        match sent {
            Ok(response) => {
                let address = line.address;
                let lease = match line.sender {
                    Sender::One(_) => Some(Lease { shared: Arc::clone(shared), key, line }),
                    Sender::Two(_) => None,
                };
                return Ok(Answered { response, address, lease });
            }
            Err(mut error) => match error.take_message() {
                // The upstream closed while it was idle, and has seen nothing of the request.
                Some(unsent) if again => request = unsent,
                _ => return Err(broken(&flow, &error.into_error())),
            },
        }
    }
}

/// Whether a connection that was idle takes a request. One that needs time for that is not worth waiting for.
async fn ready(ready: impl Future<Output = hyper::Result<()>>) -> bool {
    matches!(tokio::time::timeout(READY, ready).await, Ok(Ok(())))
}

type Sent = Result<Response<Incoming>, TrySendError<Request<Upload>>>;

/// Waits for the head of the answer, for as long as the request still moves and then for the time that an answer may take.
async fn patient(shared: &Shared, flow: &Flow, sending: impl Future<Output = Sent>) -> Result<Sent, Fault> {
    let mut sending = std::pin::pin!(sending);
    let limit = shared.common.limits.answer;
    loop {
        let before = flow.sent.load(Relaxed);
        match tokio::time::timeout(limit, &mut sending).await {
            Ok(sent) => return Ok(sent),
            Err(_) if flow.sent.load(Relaxed) != before => {}
            Err(_) => {
                let message = format!("the upstream did not begin to answer within {} s", limit.as_secs());
                return Err(Fault::failed(StatusCode::GATEWAY_TIMEOUT, "upstream_timeout", message));
            }
        }
    }
}

/// Why an exchange broke: what was found in the request's body on the way goes first.
fn broken(flow: &Flow, error: &hyper::Error) -> Fault {
    if let Some(fault) = flow.fault.get() {
        return fault.clone();
    }
    let (code, what) = if error.is_parse() || error.is_parse_too_large() {
        ("upstream_malformed", "answers with something that is not HTTP, or with a head that is too large")
    } else if error.is_user() || error.is_body_write_aborted() {
        ("request_broken", "was not sent the whole request: its sender broke it off")
    } else {
        ("upstream_reset", "closed the connection before it answered")
    };
    Fault::failed(StatusCode::BAD_GATEWAY, code, format!("the upstream {what}: {error}"))
}

/// Gives a request the form of the protocol that is spoken on the connection.
fn adapt(request: &mut Request<Upload>, key: &Key, sender: &Sender) -> Result<(), Fault> {
    let host = spelled(key);
    let malformed = |error: http::Error| {
        Fault::refused(crate::policy::Reason::MalformedRequest, format!("the request cannot be sent on: {error}"))
    };
    let mut uri = std::mem::take(request.uri_mut()).into_parts();
    let path = uri.path_and_query.take().unwrap_or_else(|| PathAndQuery::from_static("/"));
    match sender {
        Sender::One(_) => {
            *request.uri_mut() = Uri::from(path);
            *request.version_mut() = Version::HTTP_11;
            let host = HeaderValue::try_from(host).map_err(|error| malformed(error.into()))?;
            request.headers_mut().insert(HOST, host);
            one_cookie(request.headers_mut());
        }
        Sender::Two(_) => {
            let uri = Uri::builder().scheme(key.scheme.as_str()).authority(host).path_and_query(path).build();
            *request.uri_mut() = uri.map_err(malformed)?;
            *request.version_mut() = Version::HTTP_2;
            request.headers_mut().remove(HOST);
        }
    }
    Ok(())
}

/// HTTP/2 may split cookies over fields, HTTP/1.1 may not (RFC 9113, section 8.2.3).
fn one_cookie(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_some() {
        let all: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
        // What was a value each is one with `; ` between.
        if let Ok(all) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
            headers.insert(COOKIE, all);
        }
    }
}

fn spelled(key: &Key) -> String {
    super::requests::spelled(key.scheme, &key.authority)
}

/// A new connection.
async fn open(
    shared: &Arc<Shared>,
    key: &Key,
    certificate: Option<&ClientCertificate>,
    check: impl Fn(IpAddr) -> Result<(), Refusal>,
) -> Result<Line, Fault> {
    let common = &shared.common;
    let limits = &common.limits;
    let (stream, address) = dial::dial(&key.authority, &*common.resolver, limits.dial, check).await?;
    let (wire, two) = match key.scheme {
        // In the clear nothing is negotiated: who begins with HTTP/2 knows that the other side speaks it.
        Scheme::Http => (Wire::Plain(stream), key.two),
        Scheme::Https => {
            let config = if key.two { &shared.client.two } else { &shared.client.one };
            let config = match certificate {
                None => Arc::clone(config),
                Some(certificate) => Arc::new(with_certificate(config, certificate)),
            };
            let stream = tls::connect(stream, &key.authority.host, config, limits.dial).await?;
            let two = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            (Wire::Tls(Box::new(stream)), two)
        }
    };
    let failed = |error: hyper::Error| {
        let message = format!("{} does not speak HTTP as it should: {error}", key.authority);
        Fault::failed(StatusCode::BAD_GATEWAY, "upstream_malformed", message)
    };
    let sender = if two {
        let mut builder = http2::Builder::new(Tasks::of(shared));
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX));
        let (sender, connection) = builder.handshake(TokioIo::new(wire)).await.map_err(failed)?;
        shared.spawn(async move { report(connection.await) });
        Sender::Two(sender)
    } else {
        let mut builder = http1::Builder::new();
        builder.max_headers(limits.headers.max(256));
        let (sender, connection) = builder.handshake(TokioIo::new(wire)).await.map_err(failed)?;
        shared.spawn(async move { report(connection.with_upgrades().await) });
        Sender::One(sender)
    };
    Ok(Line { sender, address })
}

/// What a request on the connection has not heard itself, nobody needs to.
fn report(ended: Result<(), hyper::Error>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to an upstream ended");
    }
}

/// Shows one certificate to whoever asks for any.
#[derive(Debug)]
struct Certificate(Arc<CertifiedKey>);

impl ResolvesClientCert for Certificate {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn with_certificate(config: &ClientConfig, certificate: &ClientCertificate) -> ClientConfig {
    let mut config = config.clone();
    config.client_auth_cert_resolver = Arc::new(Certificate(Arc::clone(&certificate.key)));
    // A session that is resumed keeps the identity with which it began.
    config.resumption = rustls::client::Resumption::disabled();
    config
}
