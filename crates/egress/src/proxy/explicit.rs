//! The HTTP proxy for programs that know of one: CONNECT, and requests with a whole URL.

use std::convert::Infallible;
use std::sync::Arc;

use http::header::HOST;
use http::{Method, Request, Response, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::body::Answer;
use super::connection;
use super::evidence::{Asked, count};
use super::fault::Fault;
use super::requests::{self, Door};
use super::session::{Shared, Slot};
use crate::name::Authority;
use crate::policy::{Protocol, Reason, Scheme, Verdict};

/// Serves one connection to the proxy.
pub(super) async fn serve(shared: Arc<Shared>, stream: TcpStream, slot: Slot) {
    let limits = &shared.common.limits;
    let mut first = [0; 4];
    let seen = match tokio::time::timeout(limits.opening, stream.peek(&mut first)).await {
        Ok(Ok(length)) => &first[..length],
        // It says nothing, or is gone.
        Ok(Err(_)) | Err(_) => return,
    };
    let wrong = match seen {
        [22, ..] => Some("TLS was spoken to the proxy, which speaks plain HTTP/1.1: write http:// in HTTPS_PROXY, too"),
        [b'P', b'R', b'I', ..] => {
            Some("HTTP/2 was spoken to the proxy, which speaks HTTP/1.1. HTTP/2 works inside CONNECT")
        }
        [4 | 5, ..] => Some("SOCKS was spoken to the proxy, which speaks HTTP/1.1: write http:// in ALL_PROXY, too"),
        _ => None,
    };
    if let Some(message) = wrong {
        let fault = Fault::refused(Reason::MalformedRequest, message);
        let fault = shared.refuse(Asked::connect("proxy", "tcp"), fault).await;
        say(&stream, &fault);
        return;
    }
    let door = Door::new(Arc::clone(&shared), Scheme::Http, None, slot);
    let service = service_fn(|request: Request<Incoming>| {
        let door = Arc::clone(&door);
        async move {
            let response = if request.method() == Method::CONNECT {
                connect(&door, request).await
            } else {
                requests::answer(&door, request).await
            };
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .header_read_timeout(limits.head)
        .max_headers(limits.headers)
        .max_header_size(limits.header_bytes);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).with_upgrades().await {
        requests::unread(&door, "proxy".to_owned(), &error).await;
    }
}

/// Says why, to somebody who may or may not read it.
pub(super) fn say(stream: &TcpStream, fault: &Fault) {
    let text = format!(
        "HTTP/1.1 {} {}\r\nContent-Type: text/plain; charset=utf-8\r\nx-palisade-reason: {}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{}\n",
        fault.status.as_u16(),
        fault.status.canonical_reason().unwrap_or_default(),
        fault.code,
        fault.message.len() + 1,
        fault.message
    );
    // A new connection has room for so little; if not, it is closed without a word.
    let _ = stream.try_write(text.as_bytes());
}

/// Opens a tunnel, in which what is spoken is then looked at like on any other connection.
async fn connect(door: &Arc<Door>, mut request: Request<Incoming>) -> Response<Answer> {
    let shared = &door.shared;
    count(&shared.tally.requests);
    let said = request.uri().authority().map_or_else(String::new, |authority| authority.as_str().to_owned());
    let to = match target(shared, &request) {
        Ok(to) => to,
        Err(fault) => return shared.refuse(Asked::connect(said, "connect"), fault).await.answer(),
    };
    // What is spoken in it is not known yet. If nothing could be, it is refused here, where it can be told why.
    let refusals =
        [Protocol::Tls, Protocol::Http, Protocol::Tcp].map(|protocol| shared.policy.connection(&to, protocol));
    if let [Verdict::Refused(refusal), Verdict::Refused(_), Verdict::Refused(_)] = refusals {
        return shared.refuse(Asked::connect(&to, "connect"), refusal.into()).await.answer();
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let (shared, slot) = (Arc::clone(shared), door.slot.clone());
    let task = Arc::clone(&shared);
    shared.spawn(async move {
        let parts = match upgrade.await {
            Ok(upgraded) => match upgraded.downcast::<TokioIo<TcpStream>>() {
                Ok(parts) => parts,
                Err(_) => {
                    tracing::error!("a tunnel is not on the kind of connection that the proxy serves");
                    return;
                }
            },
            Err(error) => {
                tracing::debug!(%error, "a tunnel was not begun");
                return;
            }
        };
        connection::carry(task, parts.io.into_inner(), parts.read_buf, to, slot).await;
    });
    Response::new(Answer::empty())
}

/// Where CONNECT leads.
fn target(shared: &Shared, request: &Request<Incoming>) -> Result<Authority, Fault> {
    let malformed = |message: String| Fault::refused(Reason::MalformedRequest, message);
    if request.version() == Version::HTTP_2 {
        return Err(malformed("CONNECT over HTTP/2 is not supported".to_owned()));
    }
    let written = request.uri().authority().map_or("", |authority| authority.as_str());
    let mut to = Authority::parse(written, None).map_err(|error| {
        Fault::refused(Reason::MalformedName, format!("CONNECT does not name a host and a port: {error}"))
    })?;
    let mut hosts = request.headers().get_all(HOST).iter();
    if let Some(host) = hosts.next() {
        let same = host.to_str().ok().and_then(|host| Authority::parse(host, Some(to.port)).ok());
        // Some clients leave the port out, and some put the default one in.
        if hosts.next().is_some() || same.is_none_or(|host| host.host != to.host) {
            let message = format!("CONNECT is for {to}, but its Host header says something else");
            return Err(Fault::refused(Reason::NameMismatch, message));
        }
    }
    to.host = connection::named(shared, to.host);
    Ok(to)
}
