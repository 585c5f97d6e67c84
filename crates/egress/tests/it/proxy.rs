//! What is allowed goes through, whatever is spoken, and is kept.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use palisade_egress::broker::Kind;

use crate::broker_keys::{KEYS, in_pieces, signed};
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

#[tokio::test]
async fn a_program_that_knows_of_no_proxy_is_served_alike() {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.serve(&["api.test"], 9, BOTH))).await;
    let port = upstream.address.port();
    let world = Setup::new(ca, intercepting(port)).serve();
    assert_eq!(world.lookup("api.test").await, world.lookup_tcp("api.test").await);
    let stream = handshake(world.dial("api.test", port).await, "api.test", world.client(ONE)).await.unwrap();
    let mut sender = one(stream).await;
    let (parts, _) = ask(&mut sender, Request::get("/").header("host", format!("api.test:{port}")), full("")).await;
    assert_eq!(parts.status, 200);
    // In the clear, too, where the rule does not want TLS; and on the same port only if somebody listens there.
    let plain = Upstream::start(None).await;
    drop(sender);
    world.close().await;
    let world = Setup::new(TestCa::new(), intercepting(plain.address.port())).serve();
    let mut sender = one(world.dial("api.test", plain.address.port()).await).await;
    let host = format!("api.test:{}", plain.address.port());
    let (parts, body) = ask(&mut sender, Request::put("/x").header("host", &host), full("plain")).await;
    assert_eq!((parts.status.as_u16(), &body[..]), (200, &b"plain"[..]));
    // And with a whole URL, to the proxy.
    let mut sender = one(world.dial_proxy().await).await;
    let request =
        Request::get(format!("http://{host}/y?z")).header("host", &host).header("proxy-authorization", "Basic eDp5");
    let (parts, _) = ask(&mut sender, request.header("connection", "x-hop").header("x-hop", "1"), full("")).await;
    assert_eq!(parts.status, 200);
    let (target, headers, _) = plain.requests().pop().unwrap();
    assert_eq!(target, "GET /y?z");
    assert!(
        ["proxy-authorization", "connection", "x-hop"].iter().all(|name| !headers.contains_key(*name)),
        "{headers:?}"
    );
    let protocols: Vec<_> = world.trail.all().iter().map(|(entry, _)| entry.protocol).collect();
    assert_eq!(protocols, ["http", "http"]);
    drop(sender);
    world.close().await;
}

#[tokio::test]
async fn http_2_goes_end_to_end_with_trailers_and_many_at_a_time() {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.serve(&["api.test"], 9, BOTH))).await;
    let port = upstream.address.port();
    let world = Setup::new(ca, intercepting(port)).serve();
    let stream = world.secure("api.test", port, BOTH).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let mut sender = two(stream).await;
    let url = |path: &str| format!("https://api.test:{port}{path}");
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sent", "yes".parse().unwrap());
    let frames = [Ok(Frame::data(Bytes::from_static(b"ask"))), Ok(Frame::trailers(trailers))];
    let body = BodyExt::boxed(StreamBody::new(futures::stream::iter(frames)));
    let request = Request::post(url("/trailers")).header("te", "trailers").body(body).unwrap();
    let response = in_time(sender.send_request(request)).await.unwrap();
    let read = in_time(response.into_body().collect()).await.unwrap();
    let trailers = read.trailers().unwrap().clone();
    assert_eq!((&trailers["grpc-status"], &trailers["x-sent"]), (&"0".parse().unwrap(), &"yes".parse().unwrap()));
    assert_eq!(read.to_bytes(), "message");
    // An event stream that waits, and another request that does not.
    let waiting = sender.send_request(Request::get(url("/events")).body(full("")).unwrap());
    let mut waiting = in_time(waiting).await.unwrap().into_body();
    assert_eq!(in_time(waiting.frame()).await.unwrap().unwrap().into_data().unwrap(), "data: 0\n\n");
    let response = in_time(sender.send_request(Request::put(url("/x")).body(full("y")).unwrap())).await.unwrap();
    assert_eq!(in_time(response.into_body().collect()).await.unwrap().to_bytes(), "y");
    drop(waiting);
    let requests = upstream.requests();
    assert_eq!(
        (requests[0].2.clone(), &requests[0].1["te"]),
        (Bytes::from_static(b"ask"), &"trailers".parse().unwrap())
    );
    assert_eq!(upstream.seen.connections.load(Ordering::Relaxed), 1);
    drop(sender);
    world.close().await;
}

#[tokio::test]
async fn http_2_inside_meets_http_1_outside() {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.serve(&["api.test"], 9, ONE))).await;
    let port = upstream.address.port();
    let world = Setup::new(ca, intercepting(port)).serve();
    let mut sender = two(world.secure("api.test", port, BOTH).await).await;
    let request = Request::post(format!("https://api.test:{port}/x?y")).header("cookie", "a=1").header("cookie", "b=2");
    let request = request.body(full("body")).unwrap();
    let response = in_time(sender.send_request(request)).await.unwrap();
    assert_eq!(in_time(response.into_body().collect()).await.unwrap().to_bytes(), "body");
    let (target, headers, _) = upstream.requests().pop().unwrap();
    assert_eq!((target.as_str(), &headers["host"]), ("POST /x?y", &format!("api.test:{port}").parse().unwrap()));
    assert_eq!(headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    drop(sender);
    world.close().await;
}

#[tokio::test]
async fn events_arrive_one_by_one_and_heads_without_bodies_whole() {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.serve(&["api.test"], 9, ONE))).await;
    let port = upstream.address.port();
    let host = format!("api.test:{port}");
    let world = Setup::new(ca, intercepting(port)).serve();
    let mut sender = one(world.secure("api.test", port, ONE).await).await;
    let response = sender.send_request(Request::get("/events").header("host", &host).body(full("")).unwrap());
    let mut events = in_time(response).await.unwrap().into_body();
    for number in 0..3 {
        let event = in_time(events.frame()).await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(event, format!("data: {number}\n\n"));
        upstream.seen.go_on.notify_one();
    }
    assert!(in_time(events.frame()).await.is_none());
    for (method, path, status) in
        [("GET", "/nothing", 204), ("GET", "/unmodified", 304), ("HEAD", "/x", 200), ("OPTIONS", "/x", 200)]
    {
        let request =
            Request::builder().method(method).uri(path).header("host", &host).header("x-give-content-length", "77");
        let request =
            if method == "HEAD" { request } else { Request::builder().method(method).uri(path).header("host", &host) };
        let (parts, body) = ask(&mut sender, request, full("")).await;
        assert_eq!((parts.status.as_u16(), body.len()), (status, 0), "{path}");
        assert_eq!(parts.headers.contains_key("content-length"), method != "GET", "{path}: {:?}", parts.headers);
    }
    let (parts, _) = ask(&mut sender, Request::get("/alternative").header("host", &host), full("")).await;
    assert!(!parts.headers.contains_key("alt-svc") && !parts.headers.contains_key("x-hop"), "{:?}", parts.headers);
    drop(sender);
    // It is asked to go on before it sends its body.
    let mut stream = world.secure("api.test", port, ONE).await;
    let request = format!("PUT /late HTTP/1.1\r\nHost: {host}\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 100 "));
    stream.write_all(b"late").await.unwrap();
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(upstream.requests().pop().unwrap().2, "late");
    drop(stream);
    world.close().await;
}

#[tokio::test]
async fn a_web_socket_is_carried_after_its_request() {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.serve(&["api.test"], 9, ONE))).await;
    let port = upstream.address.port();
    let world = Setup::new(ca, intercepting(port)).serve();
    let mut sender = one(world.secure("api.test", port, BOTH[1..].as_ref()).await).await;
    let request = Request::get("/socket")
        .header("host", format!("api.test:{port}"))
        .header("connection", "Upgrade, keep-alive")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13");
    let response = in_time(sender.send_request(request.body(full("")).unwrap())).await.unwrap();
    assert_eq!(response.status(), 101);
    let mut socket = TokioIo::new(in_time(hyper::upgrade::on(response)).await.unwrap());
    for word in ["one", "three"] {
        socket.write_all(word.as_bytes()).await.unwrap();
        let mut back = vec![0; word.len()];
        in_time(socket.read_exact(&mut back)).await.unwrap();
        assert_eq!(back, word.as_bytes());
    }
    socket.shutdown().await.unwrap();
    assert_eq!(in_time(socket.read(&mut [0; 9])).await.unwrap(), 0);
    let (_, outcome) = world.trail.only().await;
    assert_eq!((outcome.status, outcome.sent, outcome.received, outcome.error), (Some(101), 8, 8, None));
    world.close().await;
}

#[tokio::test]
async fn what_need_not_be_read_is_passed_through_with_its_own_certificate() {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.serve(&["api.test"], 9, BOTH))).await;
    let port = upstream.address.port();
    let policy =
        format!("rules:\n- name: through\n  host: [api.test, wrong.test]\n  address: 127.0.0.1\n  ports: {port}\n");
    let world = Setup::new(ca, policy).serve();
    for transparent in [true, false] {
        let stream = match transparent {
            true => world.dial("api.test", port).await,
            false => world.tunnel(&format!("api.test:{port}")).await.unwrap(),
        };
        let mut sender = one(handshake(stream, "api.test", world.stranger()).await.unwrap()).await;
        let (_, body) = ask(&mut sender, Request::put("/x").header("host", "anything"), full("y")).await;
        assert_eq!(&body[..], b"y");
    }
    until(|| world.trail.all().iter().filter(|(_, outcome)| outcome.is_some()).count() == 2).await;
    for (entry, outcome) in world.trail.all() {
        let outcome = outcome.unwrap();
        assert_eq!(
            (entry.kind, entry.protocol, entry.allowed, entry.rule.as_deref()),
            ("connect", "tls", true, Some("through"))
        );
        assert!(outcome.sent > 200 && outcome.received > 500 && outcome.status.is_none(), "{outcome:?}");
    }
    // Two of the client's, and one of the proxy's own, to see the certificate. It is remembered.
    assert_eq!(upstream.seen.connections.load(Ordering::Relaxed), 3);
    // Whoever answers must have a certificate for the name.
    let refused = handshake(world.dial("wrong.test", port).await, "wrong.test", world.stranger()).await;
    assert!(refused.unwrap_err().to_string().contains("InternalError"));
    let last = world.close().await.all().pop().unwrap();
    assert_eq!(last.1.unwrap().error, Some("upstream_certificate_name"));
}

#[tokio::test]
async fn plain_tcp_is_carried_without_waiting_and_closes_by_halves() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // It speaks first, and answers after it was told that nothing more comes.
        stream.write_all(b"220 ready\r\n").await.unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).await.unwrap();
        stream.write_all(&heard).await.unwrap();
    });
    let policy = format!("rules:\n- name: mail\n  address: 127.0.0.1\n  ports: {}\n  protocol: tcp\n", address.port());
    let world = Setup::new(TestCa::new(), policy).serve();
    let mut stream = world.redirected(address).await;
    let mut greeting = [0; 11];
    in_time(stream.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
    let much = vec![b'x'; 3_000_000];
    let (mut read, mut write) = stream.split();
    let sending = async {
        write.write_all(&much).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let (_, received) = in_time(async { tokio::join!(sending, read.read_to_end(&mut back)) }).await;
    assert_eq!(received.unwrap(), much.len());
    in_time(server).await.unwrap();
    let (entry, outcome) = world.trail.only().await;
    assert_eq!((entry.to, entry.protocol), (address.to_string(), "tcp"));
    assert_eq!((outcome.sent, outcome.received, outcome.error), (3_000_000, 3_000_011, None));
    world.close().await;
}

#[tokio::test]
async fn credentials_go_in_and_do_not_come_back() {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.serve(&["api.test", "other.test"], 9, BOTH))).await;
    let port = upstream.address.port();
    // Only the other host is opened by its rule.
    let other = "- name: other\n  host: other.test\n";
    let rules = intercepting(port);
    let rules = rules.replace("[api.test, other.test]", "api.test").replace("  intercept: true\n", "")
        + &rules.replace("rules:\n- name: api\n  host: [api.test, other.test]\n", other);
    let mut setup = Setup::new(ca, rules);
    setup.credentials = vec![credential("vcrd_1", "API_KEY", &["api.test"], "sk-real-value-0123456789")];
    let world = setup.serve();
    let placeholder = world.environment["API_KEY"].clone();
    // The credential alone makes that the connection is opened.
    let mut sender = one(world.secure("api.test", port, ONE).await).await;
    let request = Request::post("/x")
        .header("host", format!("api.test:{port}"))
        .header("authorization", format!("Bearer {placeholder}"))
        .header("x-give-x-echo", &placeholder);
    let (parts, body) = ask(&mut sender, request, full("the key is sk-real-value-0123456789, says somebody")).await;
    assert_eq!(upstream.requests()[0].1["authorization"], "Bearer sk-real-value-0123456789");
    assert_eq!(parts.headers["x-echo"], placeholder.as_str());
    assert_eq!(&body[..], format!("the key is {placeholder}, says somebody").as_bytes());
    let (entry, outcome) = world.trail.only().await;
    assert_eq!((entry.credentials, outcome.redacted), (vec!["vcrd_1".to_owned()], 2));
    // To a host that it does not name, it goes nowhere, and somebody is told.
    let mut sender = one(world.secure("api.test", port, ONE).await).await;
    let request = Request::get("/x").header("host", format!("api.test:{port}")).header("x-key", "nothing");
    ask(&mut sender, request, full("")).await;
    let plain = Request::get(format!("http://other.test:{port}/")).header("host", format!("other.test:{port}"));
    let mut sender = one(world.dial_proxy().await).await;
    let (parts, body) = ask(&mut sender, plain.header("x-key", &placeholder), full("")).await;
    assert_eq!((parts.status.as_u16(), reason(&parts, &body).as_str()), (403, "credential_misused"));
    let alerts: Vec<bool> = world.trail.all().iter().map(|(entry, _)| entry.alert).collect();
    assert_eq!((alerts, world.counters().alerts), (vec![false, false, true], 1));
    assert_eq!(upstream.requests().len(), 2);
    drop(sender);
    // In a body that is already on its way, too: the upstream does not get the whole, and it is raised then.
    let mut sender = one(world.secure("other.test", port, ONE).await).await;
    let request = Request::post("/x").header("host", format!("other.test:{port}"));
    let body = format!("{}{placeholder}", "x".repeat(100_000));
    let frames = [Ok(Frame::data(Bytes::from(body)))];
    let body = BodyExt::boxed(StreamBody::new(futures::stream::iter(frames)));
    let (parts, body) = ask(&mut sender, request, body).await;
    assert_eq!((parts.status.as_u16(), reason(&parts, &body).as_str()), (403, "credential_misused"));
    assert_eq!(upstream.requests().len(), 2);
    drop(sender);
    let last = world.close().await.all().pop().unwrap().0;
    assert_eq!((last.alert, last.allowed, last.reason), (true, false, Some("credential_misused")));
}

#[tokio::test]
async fn bodies_in_signed_pieces_keep_their_length_and_break_off_where_they_are_none() {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.serve(&["api.test"], 9, BOTH))).await;
    let port = upstream.address.port();
    let mut keys = credential("vcrd_aws", "", &["api.test"], KEYS);
    keys.kind = Kind::AwsKeys;
    let mut setup = Setup::new(ca, intercepting(port));
    setup.credentials = vec![keys];
    let world = setup.serve();
    let id = world.environment["AWS_ACCESS_KEY_ID"].clone();
    let body = in_pieces(&[&[b'x'; 100_000], b"more", b""], None);
    for whole in [true, false] {
        let before = upstream.requests().len();
        let request = Request::put("/bucket/object")
            .header("authorization", signed(&id, "s3", "content-length;host;x-amz-content-sha256;x-amz-date"))
            .header("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD")
            .header("x-amz-date", "20130524T000000Z")
            .header("content-length", body.len());
        let mut sent = body.clone();
        if !whole {
            // The second piece is no piece.
            let at = memchr::memmem::rfind(&sent, b"4;chunk").unwrap();
            sent[at] = b'g';
        }
        // In pieces that are not those that are signed.
        let frames: Vec<_> = sent.chunks(1000).map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
        let sent = BodyExt::boxed(StreamBody::new(futures::stream::iter(frames)));
        let mut sender = one(world.secure("api.test", port, ONE).await).await;
        let request = request.header("host", format!("api.test:{port}"));
        let (parts, answer) = ask(&mut sender, request, sent).await;
        if !whole {
            assert_eq!((parts.status.as_u16(), reason(&parts, &answer).as_str()), (403, "signature_unsupported"));
            assert_eq!(upstream.requests().len(), before);
            continue;
        }
        assert_eq!(parts.status.as_u16(), 200);
        let (_, headers, arrived) = upstream.requests().pop().unwrap();
        assert_eq!(headers["content-length"], body.len().to_string().as_str());
        assert!(headers["authorization"].to_str().unwrap().contains("Credential=AKIAIOSFODNN7EXAMPLE/"));
        assert_eq!(arrived.len(), body.len());
        let none = "0".repeat(64);
        assert!(memchr::memmem::find(&arrived, none.as_bytes()).is_none());
        assert!(memchr::memmem::find(&arrived, &[b'x'; 100_000]).is_some());
    }
    world.close().await;
}

#[tokio::test]
async fn a_session_that_is_closed_takes_everything_with_it() {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.serve(&["api.test"], 9, ONE))).await;
    let port = upstream.address.port();
    let world = Setup::new(ca, intercepting(port)).serve();
    let mut sender = one(world.secure("api.test", port, ONE).await).await;
    let request = Request::get("/events").header("host", format!("api.test:{port}")).body(full("")).unwrap();
    let mut events = in_time(sender.send_request(request)).await.unwrap().into_body();
    in_time(events.frame()).await.unwrap().unwrap();
    let idle = world.dial_proxy().await;
    let seen = Arc::clone(&upstream.seen);
    let trail = world.close().await;
    assert!(in_time(events.frame()).await.unwrap().is_err());
    assert_eq!(
        in_time(async { idle.readable().await.map(|()| idle.try_read(&mut [0; 9])) }).await.unwrap().unwrap_or(0),
        0
    );
    assert_eq!(trail.only().await.1.error, Some("cut_off"));
    assert_eq!(seen.connections.load(Ordering::Relaxed), 1);
}
