//! What is not allowed does not go through, and is told and kept.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt as _;
use palisade_egress::proxy::Limits;
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

use crate::proxy_world::*;

const BOTH: &[&str] = &["h2", "http/1.1"];
const ONE: &[&str] = &["http/1.1"];

fn policy(port: u16) -> String {
    format!(
        "rules:\n- name: api\n  host: api.test\n  address: 127.0.0.1\n  ports: {port}\n  methods: [GET, POST]\n  paths: [/v1/]\n  \
         max_request_bytes: 1000\n- name: through\n  host: through.test\n  address: 127.0.0.1\n  ports: {port}\n- name: inside\n  \
         host: inside.test\n  ports: {port}\n  intercept: true\n"
    )
}

/// A world around an upstream that speaks TLS as `api.test` and others.
async fn world() -> (World, Upstream, u16) {
    let ca = TestCa::new();
    let names = ["api.test", "through.test", "inside.test", "other.test"];
    let upstream = Upstream::start(Some(ca.serve(&names, 9, BOTH))).await;
    let port = upstream.address.port();
    (Setup::new(ca, policy(port)).serve(), upstream, port)
}

/// The reason in an answer as it came.
fn told(answer: &str) -> String {
    let status = answer.split(' ').nth(1).unwrap_or("none");
    let reason = answer.lines().find_map(|line| line.strip_prefix("x-palisade-reason: ")).unwrap_or("-");
    format!("{status} {reason}")
}

#[tokio::test]
async fn requests_with_two_readings_and_requests_that_no_rule_allows() {
    let (world, upstream, port) = world().await;
    let host = format!("Host: api.test:{port}\r\n");
    let long = format!("X: {}\r\n", "x".repeat(100_000));
    let many = "X: y\r\n".repeat(500);
    let request = |line: &str, rest: &str| format!("{line} HTTP/1.1\r\nConnection: close\r\n{rest}\r\n");
    let with = |line: &str, rest: &str| request(line, &format!("{host}{rest}"));
    let table = [
        // Whom it is for.
        (request("GET /v1/", ""), "400 malformed_request"),
        (with("GET /v1/", &host), "400 malformed_request"),
        (with("GET /v1/", "Host: other.test\r\n"), "400 malformed_request"),
        (request("GET /v1/", "Host: other.test\r\n"), "421 name_mismatch"),
        (request("GET /v1/", "Host: api.test:1\r\n"), "421 name_mismatch"),
        (request("GET /v1/", &format!("Host: api.test.other.test:{port}\r\n")), "421 name_mismatch"),
        (request("GET /v1/", &format!("Host: user@api.test:{port}\r\n")), "400 malformed_name"),
        (request("GET /v1/", &format!("Host: api.test:{port}@other.test\r\n")), "400 malformed_name"),
        (request("GET /v1/", &format!("Host: api.test%00:{port}\r\n")), "400 malformed_name"),
        (request("GET /v1/", &format!("Host: api.test:{port}, other.test\r\n")), "400 malformed_name"),
        (request("GET /v1/", "Host: 2130706433\r\n"), "400 malformed_name"),
        (request("GET /v1/", "Host: 127.0.0.1\r\n"), "421 name_mismatch"),
        (request("GET /v1/", "Host: \r\n"), "400 malformed_name"),
        (request("GET https://other.test/v1/", &host), "421 name_mismatch"),
        (
            request(&format!("GET https://other.test:{port}/v1/"), &format!("Host: other.test:{port}\r\n")),
            "421 name_mismatch",
        ),
        (request(&format!("GET https://api.test:{port}/v1/"), "Host: other.test\r\n"), "421 name_mismatch"),
        (request(&format!("GET https://u:p@api.test:{port}/v1/"), &host), "400 malformed_name"),
        (request(&format!("GET http://api.test:{port}/v1/"), &host), "400 malformed_request"),
        (with(&format!("CONNECT api.test:{port}"), ""), "403 method_not_allowed"),
        // What it asks.
        (with("DELETE /v1/", ""), "403 method_not_allowed"),
        (with("TRACE /v1/", ""), "403 method_not_allowed"),
        (with("GeT /v1/", ""), "403 method_not_allowed"),
        (with("GET /admin", ""), "403 path_not_allowed"),
        (with("GET /v1/../admin", ""), "403 path_not_allowed"),
        (with("GET /v1/%2e%2e/admin", ""), "403 path_not_allowed"),
        (with("GET /v1/..%2fadmin", ""), "403 path_not_allowed"),
        (with("GET /v1\\..\\admin", ""), "403 path_not_allowed"),
        (with("GET //v1/x", ""), "403 path_not_allowed"),
        (with("GET /V1/", ""), "403 path_not_allowed"),
        (with("POST /v1/", "Content-Length: 1001\r\n"), "413 too_large"),
        (
            with("GET /v1/", "Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n"),
            "403 upgrade_not_allowed",
        ),
        (with("GET /v1/", "Connection: upgrade\r\nUpgrade: websocket\r\n"), "403 upgrade_not_allowed"),
        (with("GET /v1/", "Connection: upgrade\r\nUpgrade: websocket, h2c\r\n"), "403 upgrade_not_allowed"),
        (with("GET /v1/", "Connection: upgrade\r\nUpgrade: w\u{e9}bsocket\r\n"), "400 malformed_request"),
        (with("GET /v1/", "X-HTTP-Method-Override: DELETE\r\n"), "400 malformed_request"),
        (with("GET /v1/", "X-Original-URL: /admin\r\n"), "400 malformed_request"),
        // How it is written.
        (with("GET /v1/", "X : y\r\n"), "400 -"),
        (with("GET /v1/", "X: y\r\n folded\r\n"), "400 -"),
        (with("GET /v1/", "X: y\rHost: other.test\r\n"), "400 -"),
        (with("GET /v1/", "X: y\0\r\n"), "400 -"),
        (with("GET  /v1/", ""), "400 -"),
        (with("GET /v1/ x", ""), "400 -"),
        (with("GET /v1/\u{1}", ""), "400 -"),
        (with("POST /v1/", "Content-Length: 1\r\nContent-Length: 2\r\n"), "400 -"),
        (with("POST /v1/", "Content-Length: 1, 2\r\n"), "400 -"),
        (with("POST /v1/", "Content-Length: +1\r\n"), "400 -"),
        (with("POST /v1/", "Content-Length: -1\r\n"), "400 -"),
        (with("POST /v1/", "Transfer-Encoding: xchunked\r\n"), "400 -"),
        (with("POST /v1/", "Transfer-Encoding: chunked, identity\r\n"), "400 -"),
        (with("GET /v1/", &many), "431 -"),
        (with("GET /v1/", &long), "431 -"),
    ];
    for (number, (bytes, expected)) in table.iter().enumerate() {
        let mut stream = world.secure("api.test", port, ONE).await;
        let answer = say(&mut stream, bytes.as_bytes()).await;
        assert_eq!(told(&answer), *expected, "{bytes:?}: {answer}");
        // Each is kept, with its reason.
        until(|| world.trail.all().len() == number + 1).await;
        let (entry, _) = world.trail.all().pop().unwrap();
        let reason = expected.split(' ').nth(1).filter(|reason| *reason != "-").unwrap_or("malformed_request");
        assert_eq!((entry.allowed, entry.reason), (false, Some(reason)), "{bytes:?}: {entry:?}");
    }
    assert_eq!(upstream.seen.connections.load(Ordering::Relaxed), 0);
    world.close().await;
}

#[tokio::test]
async fn one_request_is_one_request_for_everybody() {
    let (world, upstream, port) = world().await;
    let head = format!("POST /v1/x HTTP/1.1\r\nConnection: close\r\nHost: API.Test.:{port}\r\n");
    let smuggled = format!("GET /admin HTTP/1.1\r\nHost: api.test:{port}\r\n\r\n");
    // Where two lengths are stated, the chunks count here, and only one length goes out.
    let length = smuggled.len() + 5;
    let both = format!("{head}Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}");
    let mut stream = world.secure("api.test", port, ONE).await;
    let answer = say(&mut stream, both.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let mut stream = world.secure("api.test", port, ONE).await;
    let inner = format!("{head}Content-Length: {}\r\n\r\n{smuggled}", smuggled.len());
    assert!(say(&mut stream, inner.as_bytes()).await.ends_with(&smuggled));
    let seen = upstream.requests();
    assert_eq!(seen.len(), 2, "{seen:?}");
    for (target, headers, _) in &seen {
        assert_eq!((target.as_str(), &headers["host"]), ("POST /v1/x", &format!("api.test:{port}").parse().unwrap()));
        assert_ne!(headers.contains_key("content-length"), headers.contains_key("transfer-encoding"));
    }
    assert_eq!((seen[0].2.len(), seen[1].2.len()), (0, smuggled.len()));
    // A body that breaks off, that is malformed, or that grows beyond what is allowed, is not a request.
    for (rest, expected) in [
        ("Content-Length: 10\r\n\r\nhalf", ""),
        ("Transfer-Encoding: chunked\r\n\r\nzz\r\n", ""),
        ("Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n", ""),
        (&*format!("Transfer-Encoding: chunked\r\n\r\n7d0\r\n{}\r\n0\r\n\r\n", "x".repeat(2000)), "413 too_large"),
    ] {
        let mut stream = world.secure("api.test", port, ONE).await;
        stream.write_all(format!("{head}{rest}").as_bytes()).await.unwrap();
        if expected.is_empty() {
            stream.shutdown().await.unwrap();
        }
        let answer = super::proxy_world::rest(&mut stream).await;
        assert!(!answer.contains(" 200 "), "{rest}: {answer}");
        if !expected.is_empty() {
            assert_eq!(told(&answer), expected, "{rest}");
        }
    }
    assert_eq!(upstream.requests().len(), 2);
    let trail = world.close().await;
    assert!(
        trail.all().iter().skip(2).all(|(_, outcome)| outcome.as_ref().unwrap().error.is_some()),
        "{:#?}",
        trail.all()
    );
}

#[tokio::test]
async fn the_proxy_opens_no_other_way() {
    let (world, upstream, port) = world().await;
    let connect = |to: &str, rest: &str| format!("CONNECT {to} HTTP/1.1\r\nConnection: close\r\n{rest}\r\n");
    let get = |url: &str, rest: &str| format!("GET {url} HTTP/1.1\r\nConnection: close\r\n{rest}\r\n");
    let table = [
        (connect("unknown.test:443", ""), "403 not_allowed"),
        (connect("api.test:1", ""), "403 port_not_allowed"),
        (connect(&format!("sub.api.test:{port}"), ""), "403 not_allowed"),
        (connect(&format!("127.0.0.2:{port}"), ""), "403 direct_address"),
        (connect(&format!("[::1]:{port}"), ""), "403 direct_address"),
        (connect(&format!("[::ffff:127.0.0.2]:{port}"), ""), "403 direct_address"),
        (connect("169.254.169.254:80", ""), "403 direct_address"),
        (connect("198.18.7.7:443", ""), "403 direct_address"),
        (connect(&format!("2130706433:{port}"), ""), "400 malformed_name"),
        (connect(&format!("0x7f.1:{port}"), ""), "400 malformed_name"),
        (connect(&format!("user@api.test:{port}"), ""), "400 malformed_name"),
        (connect("api.test", ""), "400 malformed_name"),
        (connect(&format!("api.test:{port}"), "Host: other.test\r\n"), "421 name_mismatch"),
        (
            connect(&format!("api.test:{port}"), &format!("Host: api.test:{port}\r\nHost: api.test:{port}\r\n")),
            "421 name_mismatch",
        ),
        (get("/v1/", "Host: api.test\r\n"), "400 malformed_request"),
        (get("ftp://api.test/v1/", "Host: api.test\r\n"), "400 malformed_request"),
        (get("http://unknown.test/", "Host: unknown.test\r\n"), "403 not_allowed"),
        (get(&format!("http://api.test:{port}/v1/"), &format!("Host: api.test:{port}\r\n")), "403 tls_required"),
        (get(&format!("http://127.0.0.2:{port}/"), &format!("Host: 127.0.0.2:{port}\r\n")), "403 direct_address"),
        (get("http://unknown.test/", &format!("Host: api.test:{port}\r\n")), "421 name_mismatch"),
        (get("http://api.test@unknown.test/", "Host: unknown.test\r\n"), "400 malformed_name"),
        ("\u{16}\u{3}\u{1}".to_owned(), "400 malformed_request"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), "400 malformed_request"),
        ("\u{5}\u{1}\0".to_owned(), "400 malformed_request"),
        ("nonsense\r\n\r\n".to_owned(), "400 -"),
    ];
    for (number, (bytes, expected)) in table.iter().enumerate() {
        let answer = say(&mut world.dial_proxy().await, bytes.as_bytes()).await;
        assert_eq!(told(&answer), *expected, "{bytes:?}: {answer}");
        until(|| world.trail.all().len() == number + 1).await;
        assert!(!world.trail.all()[number].0.allowed);
    }
    assert_eq!(upstream.seen.connections.load(Ordering::Relaxed), 0);
    world.close().await;
}

#[tokio::test]
async fn a_name_is_one_name_down_to_the_certificate() {
    let (world, upstream, port) = world().await;
    let refused = |result: std::io::Result<Tls>| result.err().map(|error| error.to_string()).unwrap_or_default();
    // The tunnel is for one name, TLS asks for another, or for none.
    let stream = world.tunnel(&format!("api.test:{port}")).await.unwrap();
    assert!(refused(handshake(stream, "other.test", world.client(ONE)).await).contains("AccessDenied"));
    let stream = world.tunnel(&format!("through.test:{port}")).await.unwrap();
    assert!(refused(handshake(stream, "api.test", world.stranger()).await).contains("AccessDenied"));
    let mut nameless = ClientConfig::clone(&world.stranger());
    nameless.enable_sni = false;
    let stream = world.dial("through.test", port).await;
    assert!(refused(handshake(stream, "through.test", Arc::new(nameless)).await).contains("AccessDenied"));
    // An address that no rule names, with an allowed name in TLS; and one that was never given out.
    let stream = world.redirected(upstream.address).await;
    assert!(refused(handshake(stream, "through.test", world.stranger()).await).contains("AccessDenied"));
    let stream = world.redirected((Ipv4Addr::new(198, 19, 3, 3), port).into()).await;
    assert!(refused(handshake(stream, "through.test", world.stranger()).await).contains("AccessDenied"));
    let reasons = ["name_mismatch"; 5];
    until(|| world.trail.reasons().len() == reasons.len()).await;
    assert_eq!(world.trail.reasons(), reasons);
    // Neither TLS nor HTTP, where only TLS is allowed.
    let mut stream = world.dial("api.test", port).await;
    assert_eq!(say(&mut stream, b"\x00\x01\x02 hello\n").await, "");
    // Names that nobody allowed have no address, and are kept.
    assert_eq!(world.lookup("data.in.a.name.evil.test").await, None);
    assert_eq!(world.lookup_tcp("unknown.test").await, None);
    until(|| world.trail.reasons().len() == 8).await;
    assert_eq!(world.trail.reasons()[5..], ["protocol_not_allowed", "not_allowed", "not_allowed"]);
    // HTTP/2 on a connection for one name, with requests for others.
    let mut sender = two(world.secure("api.test", port, BOTH).await).await;
    for (authority, host, expected) in [
        (format!("other.test:{port}"), None, "421 name_mismatch"),
        (format!("through.test:{port}"), None, "421 name_mismatch"),
        (format!("api.test:{port}"), Some("other.test"), "421 name_mismatch"),
        (format!("user@api.test:{port}"), None, "400 malformed_name"),
    ] {
        let mut request = Request::get(format!("https://{authority}/v1/"));
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let response = in_time(sender.send_request(request.body(full("")).unwrap())).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = in_time(body.collect()).await.unwrap().to_bytes();
        assert_eq!(format!("{} {}", parts.status.as_u16(), reason(&parts, &body)), expected, "{authority}");
    }
    drop(sender);
    assert_eq!(upstream.seen.connections.load(Ordering::Relaxed), 0);
    // A client that pins, or was not told of the authority, is explained in the trail.
    let stream = world.tunnel(&format!("api.test:{port}")).await.unwrap();
    assert!(handshake(stream, "api.test", world.stranger()).await.is_err());
    until(|| world.counters().pinned == 1).await;
    let trail = world.close().await;
    assert_eq!(trail.all().pop().unwrap().1.unwrap().error, Some("certificate_not_trusted"));
}

/// A ClientHello for `host` that also holds something like an encrypted one.
fn hello_with_another_inside(config: Arc<ClientConfig>, host: &str) -> Vec<u8> {
    let name = rustls_pki_types::ServerName::try_from(host.to_owned()).unwrap();
    let mut client = rustls::ClientConnection::new(config, name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let inside = [&[0xfe, 0x0d, 0, 12][..], &[0, 0, 1, 0, 1, 7, 0, 1, 9, 0, 1, 9]].concat();
    // Lengths: of the record, of the message, and of the extensions, which stand last.
    let session = 5 + 4 + 2 + 32;
    let ciphers = session + 1 + usize::from(hello[session]);
    let compressions = ciphers + 2 + usize::from(u16::from_be_bytes([hello[ciphers], hello[ciphers + 1]]));
    let extensions = compressions + 1 + usize::from(hello[compressions]);
    hello.extend_from_slice(&inside);
    for at in [3, 7, extensions] {
        let length = u16::from_be_bytes([hello[at], hello[at + 1]]) + u16::try_from(inside.len()).unwrap();
        hello[at..at + 2].copy_from_slice(&length.to_be_bytes());
    }
    hello
}

#[tokio::test]
async fn a_hello_inside_a_hello_asks_for_nothing() {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.serve(&["opaque.test", "through.test"], 9, ONE))).await;
    let port = upstream.address.port();
    let opaque =
        format!("- name: opaque\n  host: opaque.test\n  address: 127.0.0.1\n  ports: {port}\n  protocol: tls\n");
    let world = Setup::new(ca, policy(port) + &opaque).serve();
    // Where the connection may be opened, it is: what answers is the session's authority, not the upstream.
    let mut stream = world.dial("through.test", port).await;
    stream.write_all(&hello_with_another_inside(world.client(ONE), "through.test")).await.unwrap();
    let mut answer = [0; 7];
    in_time(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer[0], 22, "{answer:?}");
    drop(stream);
    // Where it may not, it is refused.
    let mut stream = world.dial("opaque.test", port).await;
    let answer = hello_with_another_inside(world.stranger(), "opaque.test");
    stream.write_all(&answer).await.unwrap();
    let mut alert = [0; 7];
    in_time(stream.read_exact(&mut alert)).await.unwrap();
    assert_eq!(alert, [21, 3, 3, 0, 2, 2, 49]);
    assert_eq!(upstream.seen.connections.load(Ordering::Relaxed), 0);
    drop(stream);
    assert_eq!(world.close().await.reasons(), ["name_mismatch"]);
}

#[tokio::test]
async fn addresses_are_checked_when_they_are_dialled() {
    let (world, upstream, port) = world().await;
    let host = format!("inside.test:{port}");
    let known = |addresses: &[[u8; 4]]| {
        let addresses = addresses.iter().map(|octets| IpAddr::from(*octets)).collect();
        world.resolver.0.lock().unwrap().insert("inside.test".to_owned(), addresses);
    };
    let mut sender = one(world.secure("inside.test", port, ONE).await).await;
    for addresses in [
        &[[127, 0, 0, 1]][..],
        &[[10, 0, 0, 1]],
        &[[169, 254, 169, 254]],
        &[[100, 64, 0, 1], [192, 168, 1, 1]],
        &[[0, 0, 0, 0]],
        &[[224, 0, 0, 1]],
        &[[198, 18, 0, 9]],
    ] {
        known(addresses);
        let (parts, body) = ask(&mut sender, Request::get("/").header("host", &host), full("")).await;
        assert_eq!((parts.status.as_u16(), reason(&parts, &body).as_str()), (403, "private_address"), "{addresses:?}");
    }
    known(&[]);
    let (parts, body) = ask(&mut sender, Request::get("/").header("host", &host), full("")).await;
    assert_eq!((parts.status.as_u16(), reason(&parts, &body).as_str()), (502, "unresolved"));
    drop(sender);
    // Of a connection that is only carried, too.
    world.resolver.0.lock().unwrap().insert("through.test".to_owned(), vec![Ipv4Addr::new(10, 0, 0, 1).into()]);
    let stream = world.dial("through.test", port).await;
    let error = handshake(stream, "through.test", world.stranger()).await.unwrap_err();
    assert!(error.to_string().contains("AccessDenied"), "{error}");
    assert_eq!(upstream.seen.connections.load(Ordering::Relaxed), 0);
    let trail = world.close().await;
    let errors: Vec<_> = trail.all().into_iter().map(|(_, outcome)| outcome.unwrap().error.unwrap()).collect();
    assert_eq!(errors.iter().filter(|error| error.contains("address")).count(), 8, "{errors:?}");
}

#[tokio::test]
async fn what_is_wrong_with_an_upstream_is_said() {
    let ca = TestCa::new();
    let stranger = TestCa::new();
    for (config, expected) in [
        (ca.serve(&["api.test"], -1, ONE), "502 upstream_certificate_expired"),
        (stranger.serve(&["api.test"], 9, ONE), "502 upstream_certificate_unknown"),
        (ca.serve(&["other.test"], 9, ONE), "502 upstream_certificate_name"),
        (ca.serve(&["api.test"], 9, &["imap"]), "502 upstream_tls_failed"),
    ] {
        let upstream = Upstream::start(Some(config)).await;
        let port = upstream.address.port();
        let trusted = TestCa { der: ca.der.clone(), ..TestCa::new() };
        let world = Setup::new(trusted, policy(port)).serve();
        let mut sender = one(world.secure("api.test", port, ONE).await).await;
        let request = Request::get("/v1/").header("host", format!("api.test:{port}"));
        let (parts, body) = ask(&mut sender, request, full("")).await;
        assert_eq!(format!("{} {}", parts.status.as_u16(), reason(&parts, &body)), expected);
        assert_eq!(world.trail.only().await.1.error, expected.split(' ').nth(1));
        assert!(upstream.requests().is_empty());
        drop(sender);
        world.close().await;
    }
    // Nobody, somebody who says nothing, somebody who speaks something else, and somebody who breaks off.
    for (says, expected) in [
        (None, "502 upstream_unavailable"),
        (Some(&b""[..]), "502 upstream_reset"),
        (Some(b"SSH-2.0-x\r\n"), "502 upstream_malformed"),
        (Some(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"), "502 upstream_malformed"),
    ] {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = socket.local_addr().unwrap().port();
        // Nobody listens, and nobody else can.
        let mut nobody = None;
        match says {
            None => nobody = Some(socket),
            Some(says) => {
                let listener = socket.listen(1).unwrap();
                tokio::spawn(async move {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    head(&mut stream).await;
                    stream.write_all(says).await.unwrap();
                });
            }
        }
        let plain = policy(port).replace("  methods", "  tls: optional\n  methods");
        let world = Setup::new(TestCa::new(), plain).serve();
        let mut sender = one(world.dial("api.test", port).await).await;
        let request = Request::get("/v1/").header("host", format!("api.test:{port}"));
        let (parts, body) = ask(&mut sender, request, full("")).await;
        assert_eq!(format!("{} {}", parts.status.as_u16(), reason(&parts, &body)), expected);
        drop((sender, nobody));
        world.close().await;
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_no_whole_answer() {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.serve(&["inside.test"], 9, ONE))).await;
    let port = upstream.address.port();
    let policy = policy(port).replace("host: inside.test\n", "host: inside.test\n  address: 127.0.0.1\n");
    let world = Setup::new(ca, policy).serve();
    let mut sender = one(world.secure("inside.test", port, ONE).await).await;
    let request = Request::get("/cut").header("host", format!("inside.test:{port}")).body(full("")).unwrap();
    let response = in_time(sender.send_request(request)).await.unwrap();
    let mut body = response.into_body();
    assert_eq!(in_time(body.frame()).await.unwrap().unwrap().into_data().unwrap(), "half");
    upstream.seen.go_on.notify_one();
    assert!(in_time(body.frame()).await.unwrap().is_err());
    assert_eq!(world.trail.only().await.1.error, Some("upstream_reset"));
    let mut sender = one(world.secure("inside.test", port, ONE).await).await;
    let request = Request::get("/reset").header("host", format!("inside.test:{port}"));
    let (parts, body) = ask(&mut sender, request, full("")).await;
    assert_eq!((parts.status.as_u16(), reason(&parts, &body).as_str()), (502, "upstream_reset"));
    drop(sender);
    world.close().await;
}

#[tokio::test]
async fn without_a_trail_nothing_goes_out() {
    let (world, upstream, port) = world().await;
    let mut sender = one(world.secure("api.test", port, ONE).await).await;
    world.trail.broken.store(true, Ordering::Relaxed);
    for (path, expected) in [("/v1/", 503), ("/admin", 503)] {
        let (parts, body) =
            ask(&mut sender, Request::get(path).header("host", format!("api.test:{port}")), full("")).await;
        assert_eq!((parts.status.as_u16(), reason(&parts, &body).as_str()), (expected, "audit_unavailable"));
    }
    let stream = world.dial("through.test", port).await;
    assert!(handshake(stream, "through.test", world.stranger()).await.is_err());
    assert!(world.tunnel("unknown.test:443").await.unwrap_err().starts_with("HTTP/1.1 503 "));
    assert_eq!(upstream.seen.connections.load(Ordering::Relaxed), 0);
    // And when it is back, so is everything else.
    world.trail.broken.store(false, Ordering::Relaxed);
    let (parts, _) = ask(&mut sender, Request::get("/v1/").header("host", format!("api.test:{port}")), full("")).await;
    assert_eq!(parts.status, 200);
    drop(sender);
    world.close().await;
}

#[tokio::test]
async fn who_is_slow_or_wants_too_much_is_cut_off() {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.serve(&["api.test"], 9, ONE))).await;
    let port = upstream.address.port();
    // Short is only what must run out.
    let short = Duration::from_millis(50);
    let begin = |ca: TestCa, change: &dyn Fn(&mut Limits)| {
        let mut setup = Setup::new(ca, policy(port));
        change(&mut setup.limits);
        setup.serve()
    };
    // Nothing, half a ClientHello, half a head.
    let world = begin(TestCa::new(), &|limits| (limits.opening, limits.head) = (short, short));
    for first in ["", "\u{16}\u{3}\u{1}\u{2}", "GET /v1/"] {
        let mut stream = world.dial("api.test", port).await;
        stream.write_all(first.as_bytes()).await.unwrap();
        let _ = rest(&mut stream).await;
    }
    world.close().await;
    // Half a body.
    let world = begin(ca, &|limits| limits.body_idle = short);
    let mut stream = world.secure("api.test", port, ONE).await;
    stream
        .write_all(format!("POST /v1/ HTTP/1.1\r\nHost: api.test:{port}\r\nContent-Length: 9\r\n\r\nhalf").as_bytes())
        .await
        .unwrap();
    assert_eq!(told(&head(&mut stream).await), "408 request_timeout");
    drop(stream);
    world.close().await;
    let world = begin(TestCa::new(), &|limits| limits.connections = 3);
    let _open = [world.dial_proxy().await, world.dial_proxy().await, world.dial_proxy().await];
    let mut stream = world.dial_proxy().await;
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 429 ") && answer.contains("too_many_connections"), "{answer}");
    assert!(upstream.requests().is_empty());
    world.close().await;
}

#[tokio::test]
async fn a_push_that_is_not_allowed_does_not_begin() {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.serve(&["git.test"], 9, ONE))).await;
    let port = upstream.address.port();
    let policy = format!(
        "rules:\n- name: repo\n  host: git.test\n  address: 127.0.0.1\n  ports: {port}\n  git:\n    push: [refs/heads/agent/*]\n"
    );
    let world = Setup::new(ca, policy).serve();
    let mut sender = one(world.secure("git.test", port, ONE).await).await;
    let host = format!("git.test:{port}");
    let push = |name: &str| {
        let line = format!("{} {} {name}\0report-status side-band-64k", "1".repeat(40), "2".repeat(40));
        format!("{:04x}{line}0000PACK and more", line.len() + 4)
    };
    let request = || Request::post("/a.git/git-receive-pack").header("host", &host);
    let (parts, body) = ask(&mut sender, request(), full(push("refs/heads/main"))).await;
    assert_eq!((parts.status.as_u16(), &parts.headers["x-palisade-reason"]), (200, &"push_refused".parse().unwrap()));
    assert!(String::from_utf8_lossy(&body).contains("ng refs/heads/main"));
    let (parts, body) = ask(&mut sender, request(), full("nonsense")).await;
    assert_eq!((parts.status.as_u16(), reason(&parts, &body).as_str()), (403, "push_refused"));
    assert!(upstream.requests().is_empty());
    let allowed = push("refs/heads/agent/x");
    let (parts, _) = ask(&mut sender, request(), full(allowed.clone())).await;
    assert_eq!(parts.status, 200);
    assert_eq!(upstream.requests()[0].2, allowed.as_bytes());
    assert_eq!(world.trail.reasons(), ["push_refused", "push_refused"]);
    drop(sender);
    world.close().await;
}
