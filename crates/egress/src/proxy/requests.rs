//! Requests: read, decided, kept, sent on, and their answers.

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, SEC_WEBSOCKET_EXTENSIONS, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{Request, Response, StatusCode, Version};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::body::{Answer, Flow, Passing, Upload, Uploading, too_large};
use super::evidence::{Asked, Open, count};
use super::fault::Fault;
use super::outside::{self, Answered, Outgoing, Tasks};
use super::pool::Key;
use super::push;
use super::session::{Shared, Slot};
use super::upgrade::{self, Upgrade};
use crate::broker::{self, AnswerPlan, BodyPlan};
use crate::name::Authority;
use crate::policy::{self, Grant, Meter, Reason, Refusal, RuleName, Scheme, Verdict};

const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 2 * 1024 * 1024;
/// Bytes of a refused request that are read so that its sender is still there to read the refusal.
const MAX_DRAINED: usize = 512 * 1024;
const DRAINING: Duration = Duration::from_secs(2);

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const ALT_SVC: HeaderName = HeaderName::from_static("alt-svc");

/// A connection on which requests come.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) shared: Arc<Shared>,
    scheme: Scheme,
    /// Whom all of its requests are for. None on the explicit proxy, where each says it.
    to: Option<To>,
    /// Requests that were read.
    pub(super) requests: AtomicU64,
    pub(super) slot: Slot,
}

/// An authority and how it is written.
#[derive(Debug, Clone)]
struct To {
    authority: Authority,
    /// With the port, for records.
    text: String,
    /// As a `Host` header says it.
    host: String,
}

/// An authority as a `Host` header says it: without the port that the scheme has anyway.
pub(super) fn spelled(scheme: Scheme, authority: &Authority) -> String {
    if authority.port == scheme.default_port() { authority.host.to_string() } else { authority.to_string() }
}

impl To {
    fn new(scheme: Scheme, authority: Authority) -> To {
        To { text: authority.to_string(), host: spelled(scheme, &authority), authority }
    }
}

impl Door {
    pub(super) fn new(shared: Arc<Shared>, scheme: Scheme, to: Option<Authority>, slot: Slot) -> Arc<Door> {
        let to = to.map(|authority| To::new(scheme, authority));
        Arc::new(Door { shared, scheme, to, requests: AtomicU64::new(0), slot })
    }
}

/// Serves the requests of one connection until it is closed.
pub(super) async fn serve<S>(door: Arc<Door>, stream: S, two: bool)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let shared = Arc::clone(&door.shared);
    let limits = &shared.common.limits;
    let to = door.to.as_ref().map(|to| to.text.clone()).unwrap_or_default();
    let inner = Arc::clone(&door);
    let service = service_fn(move |request| {
        let door = Arc::clone(&inner);
        async move { Ok::<_, Infallible>(answer(&door, request).await) }
    });
    let served = if two {
        let mut builder = http2::Builder::new(Tasks::of(&shared));
        builder
            .timer(TokioTimer::new())
            .auto_date_header(false)
            .max_concurrent_streams(limits.streams)
            .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(limits.head)
            .keep_alive_timeout(limits.opening);
        builder.serve_connection(TokioIo::new(stream), service).await
    } else {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .auto_date_header(false)
            .header_read_timeout(limits.head)
            .max_headers(limits.headers)
            .max_header_size(limits.header_bytes);
        builder.serve_connection(TokioIo::new(stream), service).with_upgrades().await
    };
    if let Err(error) = served {
        unread(&door, to, &error).await;
    }
}

/// Keeps that a connection ended since what came on it is no request. The library has answered it already.
pub(super) async fn unread(door: &Door, to: String, error: &hyper::Error) {
    let shared = &door.shared;
    tracing::debug!(%error, session = shared.id, "a connection ended with an error");
    if error.is_parse() {
        door.requests.fetch_add(1, Relaxed);
        let asked = Asked { kind: "request", to, protocol: door.scheme.as_str(), method: None, path: None };
        let message = format!("the request is malformed: {error}");
        shared.refuse(asked, Fault::refused(Reason::MalformedRequest, message)).await;
    }
}

/// Answers one request, whatever comes.
pub(super) async fn answer(door: &Arc<Door>, mut request: Request<Incoming>) -> Response<Answer> {
    door.requests.fetch_add(1, Relaxed);
    count(&door.shared.tally.requests);
    let upgrade = request.headers().contains_key(UPGRADE).then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let waits = parts.headers.contains_key(EXPECT);
    let mut body = Some(body);
    match exchange(door, parts, &mut body, upgrade).await {
        Ok(response) => response,
        Err(Told::Fault(fault)) => {
            if let Some(body) = body.filter(|body| !waits && !body.is_end_stream()) {
                door.shared.spawn(drain(body));
            }
            fault.answer()
        }
        Err(Told::Push(refusal)) => {
            // git sends its pack before it reads.
            if let Some(body) = body {
                drain(body).await;
            }
            refusal
        }
    }
}

/// What is answered when nothing is sent on.
pub(super) enum Told {
    Fault(Fault),
    Push(Response<Answer>),
}

impl<F: Into<Fault>> From<F> for Told {
    fn from(fault: F) -> Told {
        Told::Fault(fault.into())
    }
}

/// Reads what a refused request still sends, within bounds: a connection that is closed with bytes unread is reset, and the
/// refusal with it.
async fn drain(mut body: Incoming) {
    let mut left = MAX_DRAINED;
    let reading = async {
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                return;
            }
        }
    };
    // In time or not: the answer goes out.
    let _ = tokio::time::timeout(DRAINING, reading).await;
}

/// A request that the policy allows.
struct Allowed {
    rule: RuleName,
    grant: Grant,
    observed: Option<Refusal>,
}

async fn exchange(
    door: &Arc<Door>,
    mut parts: Parts,
    body: &mut Option<Incoming>,
    upgrading: Option<OnUpgrade>,
) -> Result<Response<Answer>, Told> {
    let shared = &door.shared;
    let (scheme, to) = match target(door, &parts) {
        Ok(target) => target,
        Err(fault) => {
            let said = parts.uri.authority().map(|authority| authority.as_str().to_owned());
            let said =
                said.or_else(|| parts.headers.get(HOST).map(|host| String::from_utf8_lossy(host.as_bytes()).into()));
            let to = door.to.as_ref().map(|to| to.text.clone()).or(said).unwrap_or_default();
            return Err(shared.refuse(asked(&parts, door.scheme, to), fault).await.into());
        }
    };
    let asked = asked(&parts, scheme, to.text.clone());
    let decided = decide(door, scheme, &to.authority, &parts, body.as_ref());
    let (Allowed { rule, grant, observed }, upgrade) = match decided {
        Ok(allowed) => allowed,
        Err(fault) => return Err(shared.refuse(asked, fault).await.into()),
    };
    let flow = Arc::new(Flow::default());
    let meter = shared.budgets.meter(&rule);
    let mut first = None;
    if let (Some(rules), Some(body)) = (&grant.git, body.as_mut()) {
        match push::check(rules, &parts, body, shared.common.limits.opening).await {
            Ok(read) => first = Some(read),
            Err(refused) => return Err(refused.keep(shared, asked, &rule).await),
        }
    }

    let trailers = wants_trailers(&parts.headers);
    strip(&mut parts.headers);
    parts.headers.remove(EXPECT);
    if trailers && parts.version == Version::HTTP_2 {
        parts.headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if let Some(upgrade) = &upgrade {
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(UPGRADE, upgrade.clone());
        if shared.broker.names(&to.authority) {
            // What is compressed cannot be looked through.
            parts.headers.remove(SEC_WEBSOCKET_EXTENSIONS);
        }
    }
    // What the broker signs is what goes out.
    let host = HeaderValue::try_from(to.host.as_str()).map_err(|_| malformed_host(&to))?;
    parts.headers.insert(HOST, host);
    let wire = match scheme {
        Scheme::Https => broker::Wire::Https,
        Scheme::Http => broker::Wire::Http,
    };
    let injected = match shared.broker.inject(&mut parts, wire, &to.authority).await {
        Ok(injected) => injected,
        Err(misuse) => return Err(shared.refuse(asked, misuse.into()).await.into()),
    };
    let mut references = injected.references;
    let certificate = match scheme {
        Scheme::Https => shared.broker.client_certificate(&to.authority).await,
        Scheme::Http => Ok(None),
    };
    let certificate = match certificate {
        Ok(certificate) => certificate,
        Err(misuse) => return Err(shared.refuse(asked, misuse.into()).await.into()),
    };
    references.extend(certificate.iter().map(|certificate| certificate.reference.clone()));
    let prepared = prepare(door, (&mut parts, body, first), injected.body, (&rule, &grant, &flow, &meter)).await;
    let upload = match prepared {
        Ok((upload, more)) => {
            references.extend(more);
            upload
        }
        Err(fault) => return Err(shared.refuse(asked, fault).await.into()),
    };
    references.sort_unstable();
    references.dedup();

    let entry = asked.allowed(&shared.id, &rule, observed.as_ref(), references);
    let mut open = shared.begin(entry).await?;
    let key = Key {
        scheme,
        authority: to.authority.clone(),
        two: parts.version == Version::HTTP_2,
        identity: certificate.as_ref().map(|certificate| certificate.reference.clone()),
    };
    let request = Request::from_parts(parts, upload);
    let outgoing = Outgoing { key, request, flow: Arc::clone(&flow), certificate };
    let answered = outside::send(shared, outgoing, |address| shared.policy.address(&rule, address)).await;
    let answered = match answered {
        Ok(answered) => answered,
        Err(fault) => {
            open.outcome.sent = flow.sent.load(Relaxed);
            open.outcome.status = Some(fault.status.as_u16());
            open.fail(&fault);
            return Err(fault.into());
        }
    };
    open.outcome.address = Some(answered.address.to_string());
    let status = answered.response.status();
    open.outcome.status = Some(status.as_u16());
    let told = match (upgrade, upgrading, status) {
        (Some(upgrade), Some(down), StatusCode::SWITCHING_PROTOCOLS) => {
            switch(door, answered, (down, upgrade), open, meter)
        }
        _ => respond(door, answered, injected.answer, (open, flow, meter)).await,
    };
    told.map_err(Told::from)
}

fn malformed_host(to: &To) -> Fault {
    Fault::refused(Reason::MalformedName, format!("{} cannot stand in a Host header", to.host))
}

/// What is known of a request before it is decided.
fn asked(parts: &Parts, scheme: Scheme, to: String) -> Asked {
    Asked {
        kind: "request",
        to,
        protocol: scheme.as_str(),
        method: Some(parts.method.as_str().to_owned()),
        path: Some(parts.uri.path().to_owned()),
    }
}

/// Whom a request is for: what it says in all of its places, which must be the same, and the same as the connection is for.
fn target<'a>(door: &'a Door, parts: &Parts) -> Result<(Scheme, Cow<'a, To>), Fault> {
    let malformed = |message: &str| Fault::refused(Reason::MalformedRequest, message);
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(malformed("the request has more than one Host header"));
    }
    let host = match host.map(HeaderValue::to_str) {
        None => None,
        Some(Ok(host)) => Some(host),
        Some(Err(_)) => return Err(malformed("the Host header is not text")),
    };
    let whole = parts.uri.authority().map(|authority| authority.as_str());
    if host.is_none() && (parts.version != Version::HTTP_2 || whole.is_none()) {
        return Err(malformed("the request has no Host header, so it is for nobody"));
    }
    let scheme = match (parts.uri.scheme_str(), &door.to) {
        (None, Some(_)) => door.scheme,
        (None, None) => {
            return Err(malformed(
                "this is a proxy: it takes CONNECT, and requests with a whole URL. Set HTTP_PROXY and HTTPS_PROXY, and do not \
                 send requests to it as to a server",
            ));
        }
        (Some("http"), None) => Scheme::Http,
        (Some("https"), None) => Scheme::Https,
        (Some(scheme), Some(_)) if scheme == door.scheme.as_str() => door.scheme,
        (Some(_), _) => return Err(malformed("the request has another scheme than its connection")),
    };
    // The usual case, without reading any name again.
    if let Some(to) = &door.to
        && whole.is_none_or(|whole| whole == to.host)
        && host.is_none_or(|host| host == to.host)
    {
        return Ok((scheme, Cow::Borrowed(to)));
    }
    let parse = |text: &str| {
        Authority::parse(text, Some(scheme.default_port())).map_err(|error| {
            let fault = format!("the request does not say well whom it is for: {error}");
            Fault::refused(Reason::MalformedName, fault)
        })
    };
    let said = host.or(whole).map(parse).transpose()?;
    let Some(said) = said else { return Err(malformed("the request has no Host header, so it is for nobody")) };
    if let Some(whole) = whole {
        let whole = parse(whole)?;
        if whole != said {
            let message =
                format!("refused: the request is for {whole}, but its Host header says {said}. They must be the same");
            return Err(Fault::refused(Reason::NameMismatch, message));
        }
    }
    match &door.to {
        None => {
            let host = super::connection::named(&door.shared, said.host);
            Ok((scheme, Cow::Owned(To::new(scheme, Authority { host, port: said.port }))))
        }
        Some(to) if to.authority == said => Ok((scheme, Cow::Borrowed(to))),
        Some(to) => {
            let message = format!(
                "refused: the request is for {said}, but its connection was opened to {}. They must be the same; open another \
                 connection",
                to.authority
            );
            Err(Fault::refused(Reason::NameMismatch, message))
        }
    }
}

/// Asks the policy. Also says what the connection is to become, if the request wants that.
fn decide(
    door: &Door,
    scheme: Scheme,
    authority: &Authority,
    parts: &Parts,
    body: Option<&Incoming>,
) -> Result<(Allowed, Option<HeaderValue>), Fault> {
    let upgrade = upgrade_of(parts)?;
    let body_bytes = body.and_then(|body| if body.is_end_stream() { Some(0) } else { body.size_hint().exact() });
    if upgrade.is_some() && body_bytes != Some(0) {
        return Err(Fault::refused(Reason::MalformedRequest, "a request that changes the protocol has no body"));
    }
    let request = policy::Request {
        scheme,
        authority,
        method: parts.method.as_str(),
        path: parts.uri.path_and_query().map_or("/", |path| path.as_str()),
        upgrade: upgrade.as_ref().and_then(|upgrade| upgrade.to_str().ok()),
        body_bytes,
    };
    match door.shared.policy.request(&request) {
        Verdict::Refused(refusal) => Err(refusal.into()),
        Verdict::Allowed { rule, grant, observed } => {
            if grant.compared
                && let Some(header) =
                    policy::OVERRIDING_HEADERS.iter().find(|header| parts.headers.contains_key(**header))
            {
                let message = format!(
                    "refused by the egress policy: the request has the header {header}, by which some servers take another method \
                     or path than rule `{rule}` compared. Send the method and path that are meant"
                );
                return Err(Refusal::new(Reason::MalformedRequest, Some(rule), message).into());
            }
            door.shared.budgets.request(&rule, Instant::now())?;
            if let (Some(most), Some(bytes)) = (grant.max_request_bytes, body_bytes)
                && bytes > most
            {
                return Err(too_large(most, &rule).into());
            }
            Ok((Allowed { rule, grant, observed }, upgrade))
        }
    }
}

/// What the connection is to become after this request.
fn upgrade_of(parts: &Parts) -> Result<Option<HeaderValue>, Fault> {
    let mut upgrades = parts.headers.get_all(UPGRADE).iter();
    let Some(upgrade) = upgrades.next() else { return Ok(None) };
    if parts.version != Version::HTTP_11 || !names(&parts.headers, "upgrade") {
        // It asks for nothing then, and is not sent on.
        return Ok(None);
    }
    if upgrades.next().is_some() || upgrade.as_bytes().contains(&b',') {
        return Err(Fault::refused(
            Reason::UpgradeNotAllowed,
            "the request offers more than one protocol to change to",
        ));
    }
    if upgrade.to_str().is_err() {
        // The policy is asked by name.
        return Err(Fault::refused(
            Reason::MalformedRequest,
            "the protocol to change to is named by other than ASCII text",
        ));
    }
    if upgrade.as_bytes().eq_ignore_ascii_case(b"h2c") {
        let message =
            "refused: HTTP/2 by way of Upgrade (h2c) is not supported. Begin with HTTP/2, or stay with HTTP/1.1";
        return Err(Fault::refused(Reason::UpgradeNotAllowed, message));
    }
    Ok(Some(upgrade.clone()))
}

/// Whether the Connection header names this.
fn names(headers: &HeaderMap, token: &str) -> bool {
    tokens(headers).any(|named| named.eq_ignore_ascii_case(token))
}

fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// Takes out what is meant for this connection only (RFC 9110, section 7.6.1).
fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = tokens(headers).filter_map(|token| HeaderName::try_from(token).ok()).collect();
        for name in named {
            // These frame the message, whatever anybody says.
            if name != CONTENT_LENGTH && name != HOST {
                headers.remove(name);
            }
        }
        headers.remove(CONNECTION);
    }
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
        HTTP2_SETTINGS,
    ] {
        headers.remove(name);
    }
}

fn wants_trailers(headers: &HeaderMap) -> bool {
    let values = headers.get_all(TE).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case("trailers"))
}

/// Makes the body that goes out, with the references of what was already put into it.
async fn prepare(
    door: &Door,
    (parts, body, first): (&mut Parts, &mut Option<Incoming>, Option<Bytes>),
    plan: BodyPlan,
    (rule, grant, flow, meter): (&RuleName, &Grant, &Arc<Flow>, &Meter),
) -> Result<(Upload, Vec<String>), Fault> {
    let limits = &door.shared.common.limits;
    let Some(inner) = body.take() else { return Ok((Upload::empty(), Vec::new())) };
    let empty = first.is_none() && inner.is_end_stream();
    let replacer = match plan {
        BodyPlan::Replace(replacer) => replacer,
        BodyPlan::Whole(whole) => {
            let most = grant.max_request_bytes.unwrap_or(u64::MAX).min(whole.limit() as u64);
            let read = if empty { Ok(Bytes::new()) } else { collect(inner, first, most, limits.body_idle).await };
            let read = match read {
                Ok(read) => read,
                Err(Short::Large) => {
                    return Err(match grant.max_request_bytes {
                        Some(granted) if granted <= whole.limit() as u64 => too_large(granted, rule).into(),
                        _ => whole.too_large().into(),
                    });
                }
                Err(Short::Broken(message)) => {
                    return Err(Fault::failed(StatusCode::BAD_REQUEST, "request_broken", message));
                }
            };
            let (bytes, references) = whole.finish(parts, read).await?;
            meter.bytes(bytes.len() as u64)?;
            flow.sent.store(bytes.len() as u64, Relaxed);
            flow.ended.store(true, Relaxed);
            let upload = if bytes.is_empty() { Upload::empty() } else { Upload::whole(bytes) };
            return Ok((upload, references));
        }
    };
    if empty {
        flow.ended.store(true, Relaxed);
        return Ok((Upload::empty(), Vec::new()));
    }
    let mut uploading = Uploading::new(inner, Arc::clone(flow), meter.clone(), limits.body_idle);
    uploading.first = first;
    uploading.replacer = Some(replacer);
    uploading.most = grant.max_request_bytes.map(|most| (most, rule.clone()));
    Ok((Upload::stream(uploading), Vec::new()))
}

/// Why a body is not there as a whole.
enum Short {
    Large,
    Broken(String),
}

async fn collect(mut body: Incoming, first: Option<Bytes>, most: u64, idle: Duration) -> Result<Bytes, Short> {
    let mut read = first.map(Vec::from).unwrap_or_default();
    loop {
        if read.len() as u64 > most {
            return Err(Short::Large);
        }
        match tokio::time::timeout(idle, body.frame()).await {
            Ok(None) => return Ok(read.into()),
            Ok(Some(Ok(frame))) => read.extend_from_slice(frame.data_ref().map_or(&[], |data| &data[..])),
            Ok(Some(Err(error))) => return Err(Short::Broken(format!("the request was broken off: {error}"))),
            Err(_) => return Err(Short::Broken("the request did not come in time".to_owned())),
        }
    }
}

/// Passes an answer on.
async fn respond(
    door: &Door,
    answered: Answered,
    expected: broker::Expected,
    (mut open, flow, meter): (Open, Arc<Flow>, Meter),
) -> Result<Response<Answer>, Fault> {
    let shared = &door.shared;
    let Answered { response, lease, .. } = answered;
    let (mut parts, body) = response.into_parts();
    let fail = |open: &mut Open, fault: Fault| {
        open.outcome.sent = flow.sent.load(Relaxed);
        open.fail(&fault);
        fault
    };
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        let message = "the upstream changed the protocol, which nobody asked for";
        return Err(fail(&mut open, Fault::failed(StatusCode::BAD_GATEWAY, "upstream_malformed", message)));
    }
    strip(&mut parts.headers);
    // It leads to QUIC, on which nothing goes out.
    parts.headers.remove(ALT_SVC);
    // Text of the upstream's that nobody needs and nobody would look into.
    parts.extensions.remove::<ReasonPhrase>();
    let (plan, found) = match shared.broker.answer(&expected, &mut parts) {
        Ok(planned) => planned,
        Err(misuse) => return Err(fail(&mut open, misuse.into())),
    };
    open.outcome.redacted += found;
    let scan = match plan {
        AnswerPlan::Stream => None,
        AnswerPlan::Scan(scan) => Some(scan),
        AnswerPlan::Seal(mut seal) => {
            let mut body = body;
            let sealing = async {
                loop {
                    match tokio::time::timeout(shared.common.limits.body_idle, body.frame()).await {
                        Ok(None) => return seal.finish(&mut parts).map_err(Fault::from),
                        Ok(Some(Ok(frame))) => {
                            let data = frame.into_data().unwrap_or_default();
                            open.outcome.received += data.len() as u64;
                            meter.bytes(data.len() as u64)?;
                            seal.feed(data)?;
                        }
                        Ok(Some(Err(error))) => {
                            let message = format!("the upstream broke its answer off: {error}");
                            return Err(Fault::failed(StatusCode::BAD_GATEWAY, "upstream_reset", message));
                        }
                        Err(_) => {
                            let message = "the upstream did not finish its answer in time";
                            return Err(Fault::failed(StatusCode::GATEWAY_TIMEOUT, "upstream_timeout", message));
                        }
                    }
                }
            };
            let (bytes, found) = match sealing.await {
                Ok(sealed) => sealed,
                Err(fault) => return Err(fail(&mut open, fault)),
            };
            open.outcome.sent = flow.sent.load(Relaxed);
            open.outcome.redacted += found;
            open.outcome.error = None;
            return Ok(Response::from_parts(parts, Answer::whole(bytes)));
        }
    };
    let patience = shared.common.limits.tunnel_idle;
    let passing = Passing::new(body, (open, flow, meter), scan, lease, patience);
    let mut response = Response::from_parts(parts, Answer::passing(passing));
    *response.version_mut() = Version::HTTP_11;
    Ok(response)
}

/// Passes on that the protocol changes, and carries what is spoken then.
fn switch(
    door: &Door,
    answered: Answered,
    (down, asked): (OnUpgrade, HeaderValue),
    mut open: Open,
    meter: Meter,
) -> Result<Response<Answer>, Fault> {
    let mut response = answered.response;
    let same = response
        .headers()
        .get(UPGRADE)
        .is_some_and(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(asked.as_bytes()));
    if !same {
        let fault = Fault::failed(
            StatusCode::BAD_GATEWAY,
            "upstream_malformed",
            "the upstream changes to another protocol than was asked for",
        );
        open.fail(&fault);
        return Err(fault);
    }
    let up = hyper::upgrade::on(&mut response);
    let (mut parts, _) = response.into_parts();
    strip(&mut parts.headers);
    parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    parts.headers.insert(UPGRADE, asked);
    let shared = &door.shared;
    let redactor = shared.broker.redactor();
    upgrade::carry(shared, Upgrade { down, up, open, meter, redactor, slot: door.slot.clone() });
    Ok(Response::from_parts(parts, Answer::empty()))
}
