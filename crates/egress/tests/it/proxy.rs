//! What is allowed goes through, whatever is spoken, and is kept.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::proxy_world::*;

const BOTH: &[&str] = &["h2", "http/1.1"];
const ONE: &[&str] = &["http/1.1"];

fn intercepting(port: u16) -> String {
    format!(
        "rules:\n- name: api\n  host: [api.test, other.test]\n  address: 127.0.0.1\n  ports: {port}\n  intercept: true\n  \
         websocket: true\n  tls: optional\n"
    )
}

#[tokio::test]
async fn an_intercepted_request_goes_out_and_is_kept() {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.serve(&["api.test"], 9, BOTH))).await;
    let port = upstream.address.port();
    let world = Setup::new(ca, intercepting(port)).serve();
    let mut tail = world.session.as_ref().unwrap().tail();
    let mut sender = one(world.secure("api.test", port, ONE).await).await;
    let request = || Request::post("/v1/messages?key=secret").header("host", format!("api.test:{port}"));
    let (parts, body) = ask(&mut sender, request().header("x-give-etag", "\"1\""), full("hello")).await;
    assert_eq!((parts.status.as_u16(), &body[..]), (200, &b"hello"[..]));
    assert_eq!(parts.headers["etag"], "\"1\"");
    let (entry, outcome) = world.trail.only().await;
    assert_eq!((entry.kind, entry.protocol, entry.allowed), ("request", "https", true));
    assert_eq!((entry.to.as_str(), entry.rule.as_deref()), (format!("api.test:{port}").as_str(), Some("api")));
    assert_eq!((entry.method.as_deref(), entry.path.as_deref()), (Some("POST"), Some("/v1/messages")));
    assert_eq!((outcome.status, outcome.sent, outcome.received, outcome.error), (Some(200), 5, 5, None));
    assert_eq!(outcome.address, Some(upstream.address.to_string()));
    let record = in_time(tail.recv()).await.unwrap();
    assert_eq!((record.number, &record.entry, &record.outcome), (0, &entry, &outcome));
    // The next one uses the same connections.
    ask(&mut sender, request(), full("")).await;
    assert_eq!(upstream.seen.connections.load(Ordering::Relaxed), 1);
    let requests = upstream.requests();
    assert_eq!(requests[0].0, "POST /v1/messages?key=secret");
    assert_eq!(requests[0].1["host"], format!("api.test:{port}").as_str());
    let counters = world.counters();
    assert_eq!((counters.requests, counters.sent, counters.received, counters.refused), (3, 5, 5, 0));
    drop(sender);
    world.close().await;
}
