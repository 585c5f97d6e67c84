//! One connection of a sandbox: what it is, whom it is for, and whether it is carried or opened.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::agent::Watch;
use super::copy::{self, Meter, Stop};
use super::dial;
use super::evidence::{Asked, Open, count};
use super::fault::Fault;
use super::hello::{self, Hello, Progress};
use super::requests::{self, Door};
use super::session::{Shared, Slot};
use super::stream::Rewound;
use super::tls::TlsError;
use crate::name::{Authority, Host};
use crate::policy::{Protocol, Reason, Refusal, RuleName, Scheme, Treatment, Verdict};

/// One read while looking at what a connection is.
const LOOK: usize = 4096;
/// Most bytes that are looked at.
const MAX_LOOK: usize = 48 * 1024;
/// What HTTP/2 begins with when nothing was negotiated.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A TLS record with the fatal alert `access_denied`.
const ACCESS_DENIED: &[u8] = &[21, 3, 3, 0, 2, 2, 49];
/// The same with `internal_error`: the upstream is at fault.
const INTERNAL_ERROR: &[u8] = &[21, 3, 3, 0, 2, 2, 80];

/// What the first bytes are.
enum First {
    Tls(Hello),
    /// TLS, but malformed.
    Broken(String),
    Http1,
    Http2,
    /// Something else, or nothing.
    Other,
}

/// Serves a connection that was redirected here.
pub(super) async fn transparent(shared: Arc<Shared>, stream: TcpStream, local: Option<SocketAddr>, slot: Slot) {
    let to = match (shared.common.destination)(&stream) {
        Ok(to) if Some(to) != local => to,
        Ok(_) | Err(_) => {
            let message = "a connection was opened to the proxy itself. Connect to the host that is meant";
            let fault = Fault::refused(Reason::DirectAddress, message);
            shared.refuse(Asked::connect("unknown", "tcp"), fault).await;
            copy::reset(stream);
            return;
        }
    };
    let host = named(&shared, to.ip().into());
    carry(shared, stream, Bytes::new(), Authority { host, port: to.port() }, slot).await;
}

/// The name that the session's resolver gave this address for, or else the address.
pub(super) fn named(shared: &Shared, host: Host) -> Host {
    match host {
        Host::Address(std::net::IpAddr::V4(address)) => shared.names.host(address).unwrap_or(host),
        other => other,
    }
}

/// Serves a connection to `to`, whose first bytes may have been read already.
pub(super) async fn carry(shared: Arc<Shared>, mut stream: TcpStream, first: Bytes, to: Authority, slot: Slot) {
    let tcp = shared.policy.connection(&to, Protocol::Tcp);
    // A rule for plain TCP carries whatever is spoken. Nothing is waited for: in many protocols the server speaks first.
    if let Verdict::Allowed { rule, observed, .. } = &tcp
        && shared.policy.is_opaque(&to)
    {
        pass(&shared, stream, first, &to, (rule, observed.as_ref()), "tcp").await;
        return;
    }
    let mut read = BytesMut::from(&first[..]);
    let what = match look(&mut stream, &mut read, shared.common.limits.opening).await {
        Ok(what) => what,
        Err(error) => {
            tracing::debug!(%error, session = shared.id, %to, "a connection ended before it said anything");
            First::Other
        }
    };
    let read = read.freeze();
    match what {
        First::Tls(hello) => secure(shared, stream, read, to, hello, slot).await,
        First::Broken(message) => {
            let fault = Fault::refused(Reason::MalformedName, message);
            refuse(&shared, stream, &to, "tls", fault).await;
        }
        First::Http1 | First::Http2 => {
            // A rule for plain TCP carries HTTP, too. All else is decided by request, where it can be told why.
            if let Verdict::Allowed { rule, grant: Treatment::PassThrough, observed } =
                shared.policy.connection(&to, Protocol::Http)
            {
                return pass(&shared, stream, read, &to, (&rule, observed.as_ref()), "tcp").await;
            }
            let door = Door::new(Arc::clone(&shared), Scheme::Http, Some(to), slot);
            requests::serve(door, Rewound::new(read, stream), matches!(what, First::Http2)).await;
        }
        First::Other => match tcp {
            Verdict::Allowed { rule, observed, .. } => {
                pass(&shared, stream, read, &to, (&rule, observed.as_ref()), "tcp").await;
            }
            Verdict::Refused(refusal) => refuse(&shared, stream, &to, "tcp", refusal.into()).await,
        },
    }
}

/// Reads until it is plain what the connection is.
async fn look(stream: &mut TcpStream, read: &mut BytesMut, limit: Duration) -> io::Result<First> {
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        if let Some(what) = recognise(read) {
            return Ok(what);
        }
        if read.len() >= MAX_LOOK {
            return Ok(First::Other);
        }
        read.reserve(LOOK);
        match tokio::time::timeout_at(deadline, stream.read_buf(read)).await {
            Ok(Ok(0)) | Err(_) => return Ok(First::Other),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
        }
    }
}

fn recognise(read: &[u8]) -> Option<First> {
    let first = *read.first()?;
    if first == 22 {
        return match hello::read(read) {
            Ok(Progress::More) => None,
            Ok(Progress::Whole(hello)) => Some(First::Tls(hello)),
            Err(error) => Some(First::Broken(error.to_string())),
        };
    }
    if read.starts_with(PREFACE) {
        return Some(First::Http2);
    }
    if PREFACE.starts_with(read) {
        return None;
    }
    // The longest method that is registered has 17 letters.
    let end = read.iter().take(24).position(|byte| !is_token(*byte));
    match end {
        Some(end) if end > 0 && read[end] == b' ' => match read.get(end + 1) {
            Some(b'/' | b'*' | b'h' | b'H') => Some(First::Http1),
            Some(_) if read.starts_with(b"CONNECT ") => Some(First::Http1),
            Some(_) => Some(First::Other),
            None => None,
        },
        None if read.len() < 24 => None,
        _ => Some(First::Other),
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Serves a connection that began with a ClientHello.
async fn secure(shared: Arc<Shared>, stream: TcpStream, read: Bytes, to: Authority, hello: Hello, slot: Slot) {
    if let Err(fault) = same_name(&to, &hello) {
        return refuse(&shared, stream, &to, "tls", fault).await;
    }
    let (rule, treatment, observed) = match shared.policy.connection(&to, Protocol::Tls) {
        Verdict::Allowed { rule, grant, observed } => (rule, grant, observed),
        Verdict::Refused(refusal) => return refuse(&shared, stream, &to, "tls", refusal.into()).await,
    };
    // An encrypted hello may ask for another name. Browsers send something that looks like one to everybody; if the connection
    // is opened here, it asks for nothing. What is never opened needs no opening for a credential either: a placeholder is worth
    // nothing where it arrives.
    let opened = treatment == Treatment::Intercept
        || ((hello.encrypted || shared.broker.names(&to)) && !shared.policy.stays_closed(&to));
    if opened {
        return intercept(shared, stream, read, to, (&rule, observed.as_ref()), slot).await;
    }
    if hello.encrypted {
        let message = format!(
            "refused: the ClientHello to {} holds an encrypted one, which may ask for another name. Turn Encrypted Client Hello off \
             in the client, or allow the host by a rule for https, under which such connections are opened",
            to.host
        );
        return refuse(&shared, stream, &to, "tls", Fault::refused(Reason::NameMismatch, message)).await;
    }
    pass(&shared, stream, read, &to, (&rule, observed.as_ref()), "tls").await;
}

/// Whether TLS asks for the name that was resolved or given to CONNECT.
fn same_name(to: &Authority, hello: &Hello) -> Result<(), Fault> {
    let message = match (&to.host, &hello.name) {
        (host, Some(name)) if host == name => return Ok(()),
        (Host::Address(_), None) => return Ok(()),
        (host, Some(name)) => {
            format!("refused: the connection was opened to {host}, but TLS asks for {name}. They must be the same")
        }
        (host, None) => format!(
            "refused: the connection was opened to {host}, but TLS does not say so. Use a client that sends SNI"
        ),
    };
    Err(Fault::refused(Reason::NameMismatch, message))
}

/// Opens TLS with a certificate of the session's authority, and serves the requests in it.
async fn intercept(
    shared: Arc<Shared>,
    stream: TcpStream,
    read: Bytes,
    to: Authority,
    (rule, observed): (&RuleName, Option<&Refusal>),
    slot: Slot,
) {
    let config = match shared.ca.serve(&to.host) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(%error, session = shared.id, %to, "a connection is refused");
            let fault = Fault::refused(Reason::PolicyUnavailable, error.to_string());
            return refuse(&shared, stream, &to, "tls", fault).await;
        }
    };
    let accept = TlsAcceptor::from(config).accept(Rewound::new(read, stream));
    let failure = match tokio::time::timeout(shared.common.limits.opening, accept).await {
        Ok(Ok(stream)) => {
            let two = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let door = Door::new(Arc::clone(&shared), Scheme::Https, Some(to.clone()), slot);
            requests::serve(Arc::clone(&door), stream, two).await;
            if door.requests.load(Relaxed) > 0 {
                // Each request has its own entry.
                return;
            }
            Failure { code: "no_request", message: "it was closed before a request was sent".to_owned(), pinned: false }
        }
        Ok(Err(error)) => Failure::of(&error),
        Err(_) => {
            let message = "the handshake was not finished in time".to_owned();
            Failure { code: "handshake_timeout", message, pinned: false }
        }
    };
    tracing::info!(session = shared.id, %to, reason = failure.code, "an intercepted connection had no request: {}", failure.message);
    if failure.pinned {
        count(&shared.tally.pinned);
    }
    let entry = Asked::connect(&to, "tls").allowed(&shared.id, rule, observed, Vec::new());
    if let Ok(mut open) = shared.begin(entry).await {
        open.outcome.error = Some(failure.code);
    }
}

/// Why an intercepted connection came to nothing, on the sandbox's side.
struct Failure {
    code: &'static str,
    message: String,
    pinned: bool,
}

impl Failure {
    fn of(error: &io::Error) -> Failure {
        use rustls::AlertDescription as Alert;
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::AlertReceived(
                alert @ (Alert::UnknownCA
                | Alert::BadCertificate
                | Alert::CertificateUnknown
                | Alert::UnsupportedCertificate),
            )) => Failure {
                code: "certificate_not_trusted",
                message: format!(
                    "the client does not take the session's certificate authority (alert {alert:?}). It may keep a trust store of its \
                     own, which has to be told of the authority, or it pins the certificate of the host: then let a rule pass \
                     the host through without paths, methods and credentials"
                ),
                pinned: true,
            },
            _ => Failure { code: "handshake_failed", message: error.to_string(), pinned: false },
        }
    }
}

/// Tells a client as much as can be told where no HTTP is spoken, and keeps that it was refused.
async fn refuse(shared: &Arc<Shared>, stream: TcpStream, to: &Authority, protocol: &'static str, fault: Fault) {
    shared.refuse(Asked::connect(to, protocol), fault).await;
    if protocol == "tls" {
        alert(stream, ACCESS_DENIED).await;
    } else {
        copy::reset(stream);
    }
}

/// Ends a connection on which TLS was begun.
async fn alert(mut stream: TcpStream, record: &[u8]) {
    // A client that is gone has nothing to be told.
    let _ = stream.write_all(record).await;
    let _ = stream.shutdown().await;
    // With bytes unread, closing would be a reset that overtakes the alert.
    let mut rest = [0; 1024];
    let _ = tokio::time::timeout(Duration::from_secs(1), async {
        while stream.read(&mut rest).await.is_ok_and(|length| length > 0) {}
    })
    .await;
}

/// Carries a connection as it is.
async fn pass(
    shared: &Arc<Shared>,
    stream: TcpStream,
    first: Bytes,
    to: &Authority,
    (rule, observed): (&RuleName, Option<&Refusal>),
    protocol: &'static str,
) {
    let asked = Asked::connect(to, protocol);
    if let Err(refusal) = shared.budgets.request(rule, std::time::Instant::now()) {
        return refuse(shared, stream, to, protocol, refusal.into()).await;
    }
    let mut open = match shared.begin(asked.allowed(&shared.id, rule, observed, Vec::new())).await {
        Ok(open) => open,
        Err(_) => return turn_away(stream, protocol, ACCESS_DENIED).await,
    };
    let up = match reach(shared, to, rule, protocol, &mut open).await {
        Ok(up) => up,
        Err(fault) => {
            tracing::info!(session = shared.id, %to, reason = fault.code, "a connection is not carried: {}", fault.message);
            open.fail(&fault);
            drop(open);
            return turn_away(stream, protocol, if fault.refused { ACCESS_DENIED } else { INTERNAL_ERROR }).await;
        }
    };
    let meter = Meter::default();
    let budget = shared.budgets.meter(rule);
    let watch = Watch::of(shared, to, rule).filter(|_| protocol == "tcp");
    let both = async {
        let idle = shared.common.limits.tunnel_idle;
        copy::pass(&first, &up, (&meter.sent, &meter), idle, &|bytes| budget.bytes(bytes)).await?;
        let hear = |bytes: &[u8]| {
            if let Some(watch) = &watch {
                watch.hear(bytes);
            }
        };
        copy::both((&stream, &up), &shared.common.buffers, &meter, idle, |bytes| budget.bytes(bytes), hear).await
    };
    // Kept also when the session ends and this is dropped at the next line.
    let mut counted = Counted { open, meter: &meter };
    let stopped = both.await;
    counted.open.outcome.error = None;
    match stopped {
        Ok(()) => {}
        Err(stop) => {
            match stop {
                Stop::Idle => counted.open.outcome.error = Some("idle"),
                Stop::Refused(refusal) => counted.open.fail(&refusal.into()),
                Stop::Broken(error) if copy::gone(error.kind()) => counted.open.outcome.error = Some("reset"),
                Stop::Broken(_) => counted.open.outcome.error = Some("broken"),
            }
            copy::reset(stream);
            copy::reset(up);
        }
    }
}

/// An open entry whose bytes are counted elsewhere.
struct Counted<'a> {
    open: Open,
    meter: &'a Meter,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.open.outcome.sent = self.meter.sent.load(Relaxed);
        self.open.outcome.received = self.meter.received.load(Relaxed);
    }
}

async fn turn_away(stream: TcpStream, protocol: &'static str, record: &[u8]) {
    if protocol == "tls" { alert(stream, record).await } else { copy::reset(stream) }
}

/// Dials for a connection that is carried as it is, and looks at the certificate of who answers.
async fn reach(
    shared: &Arc<Shared>,
    to: &Authority,
    rule: &RuleName,
    protocol: &'static str,
    open: &mut Open,
) -> Result<TcpStream, Fault> {
    let common = &shared.common;
    let check = |address| shared.policy.address(rule, address);
    let (stream, address) = dial::dial(to, &*common.resolver, common.limits.dial, check).await?;
    open.outcome.address = Some(address.to_string());
    if protocol == "tls" && !common.seen.has(address, &to.host) {
        let own = tokio::time::timeout(common.limits.dial, TcpStream::connect(address)).await;
        let seconds = common.limits.dial.as_secs();
        let own = own.map_err(|_| TlsError::TimedOut { host: to.host.clone(), seconds })?;
        let own = own.map_err(|error| TlsError::Handshake { host: to.host.clone(), why: error.to_string() })?;
        let trust = (&common.verifier, &common.provider);
        common.seen.look((own, address), &to.host, trust, common.limits.dial).await?;
    }
    Ok(stream)
}
