//! The server as a process: limits, TLS, health, a full disk, the end.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use palisade_engine::Engine;
use palisade_server::{Error, Options, RateLimit, Server, Tls};
use palisade_store::{Memory, Sqlite};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::rig::{Rig, engine_options, id, message, read, toolset};

const DONE: &str = "otherwise: {reply: [{text: Done.}]}";

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixture").join(name)
}

#[tokio::test]
async fn bodies_have_a_bound() {
    let rig = Rig::start_with(DONE, Arc::new(Memory::new()), |options| options.max_body = 100_000).await;
    let body = json!({"name": "a", "model": "m", "system": "x".repeat(150_000)}).to_string();
    let refused = rig.ask(&rig.api, Method::POST, "/v1/agents", Some(&body)).await;
    refused.refused(413, "request_too_large");
    // Without a length the bound is met while reading.
    let chunks = futures::stream::iter((0..20).map(|_| Ok::<_, std::io::Error>("y".repeat(10_000))));
    let request = rig.http.post(rig.url("/v1/agents")).bearer_auth(&rig.api).body(reqwest::Body::wrap_stream(chunks));
    read(request.send().await.unwrap()).await.refused(413, "request_too_large");
    let packed =
        rig.http.post(rig.url("/v1/agents")).bearer_auth(&rig.api).header("content-encoding", "gzip").body("x");
    let packed = read(packed.send().await.unwrap()).await;
    packed.refused(400, "invalid_request_error");
    assert_eq!(packed.code(), "request_body_encoding_unsupported");
    // Content types are of no interest, and nothing at all is an empty object.
    let form = rig.http.post(rig.url("/v1/agents")).bearer_auth(&rig.api).header("content-type", "text/plain");
    let made = read(form.body("{\"name\":\"a\",\"model\":\"m\"}").send().await.unwrap()).await.ok();
    let empty = rig.http.post(rig.url(&format!("/v1/agents/{}", id(&made)))).bearer_auth(&rig.api);
    let same = read(empty.header("content-type", "application/json").send().await.unwrap()).await.ok();
    assert_eq!(same, made);
    // A head that does not fit.
    let long = rig.http.get(rig.url("/v1/agents")).bearer_auth(&rig.api).header("x-long", "z".repeat(60_000));
    assert_eq!(long.send().await.unwrap().status(), 431);
    rig.stop().await;
}

#[tokio::test]
async fn one_credential_may_call_only_so_often() {
    let rig = Rig::start_with(DONE, Arc::new(Memory::new()), |options| {
        options.rate_limit = RateLimit { create_per_minute: 2, read_per_minute: 3, off: false };
    })
    .await;
    let body = json!({"name": "a", "model": "m"});
    for _ in 0..2 {
        rig.post("/v1/agents", body.clone()).await.ok();
    }
    let refused = rig.post("/v1/agents", body).await;
    refused.refused(429, "rate_limit_error");
    assert!((1..=60).contains(&refused.header("retry-after").parse::<u32>().unwrap()));
    for _ in 0..3 {
        rig.get("/v1/agents").await.ok();
    }
    rig.get("/v1/agents").await.refused(429, "rate_limit_error");
    // Others are not concerned.
    let now = rig.engine.clock().now();
    let (_, other) =
        palisade_server::keys::create(&**rig.engine.store(), palisade_server::keys::KeyKind::Api, "other", now)
            .await
            .unwrap();
    rig.ask(other.expose(), Method::GET, "/v1/agents", None).await.ok();
    rig.stop().await;
}

#[tokio::test]
async fn health_and_figures_are_open() {
    let rig = Rig::start(DONE).await;
    let (agent, environment) = (rig.agent(json!([toolset()])).await, rig.environment().await);
    let session = rig.session(&agent, &environment, "Hi.").await;
    rig.until(&session, "session.status_idle", 1).await;
    let open = |path: &str| rig.http.get(rig.url(path)).send();
    for path in ["/healthz", "/readyz"] {
        let response = open(path).await.unwrap();
        assert!(response.headers().contains_key("request-id"));
        read(response).await.ok();
    }
    let text = open("/metrics").await.unwrap().text().await.unwrap();
    for line in [
        "palisade_http_requests_total{method=\"POST\",route=\"/v1/sessions\",status=\"200\"} 1",
        "palisade_http_request_seconds_count{route=\"/v1/agents\"} 1",
        "palisade_sessions_live 1",
        "palisade_work_queued ",
        "palisade_events_total ",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1);
    assert!(!text.contains(&session));
    rig.stop().await;
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let options = palisade_store::Options { max_bytes: Some(700_000), ..palisade_store::Options::default() };
    let store = Arc::new(Sqlite::open_with(&dir.path().join("palisade.db"), options).unwrap());
    let rig = Rig::start_with(DONE, store, |_| {}).await;
    let (agent, environment) = (rig.agent(json!([])).await, rig.environment().await);
    let body = json!({"agent": agent, "environment_id": environment});
    let session = id(&rig.post("/v1/sessions", body).await.ok());
    let mut kept = Vec::new();
    let refused = loop {
        let agent = json!({"name": "a", "model": "m", "system": "x".repeat(20_000)});
        let reply = rig.post("/v1/agents", agent).await;
        if reply.status != 200 {
            break reply;
        }
        kept.push(id(&reply.ok()));
        assert!(kept.len() < 1000);
    };
    assert!(refused.refused(503, "api_error").contains("full"));
    assert_eq!(refused.header("x-should-retry"), "true");
    assert!(!refused.header("retry-after").is_empty());
    let big = json!([{"type": "user.message", "content": [{"type": "text", "text": "z".repeat(60_000)}]}]);
    rig.send(&session, big).await.refused(503, "api_error");
    for agent in &kept {
        rig.get(&format!("/v1/agents/{agent}")).await.ok();
    }
    assert_eq!(rig.events(&session).await, Vec::<Value>::new());
    rig.stop().await;
}

#[tokio::test]
async fn tls_serves_both_versions_of_http() {
    let tls = Tls { cert: fixture("localhost.pem"), key: fixture("localhost.key") };
    let rig = Rig::start_with(DONE, Arc::new(Memory::new()), |options| options.tls = Some(tls)).await;
    let pem = std::fs::read(fixture("localhost.pem")).unwrap();
    let client = || {
        let certificate = reqwest::Certificate::from_pem(&pem).unwrap();
        reqwest::Client::builder().timeout(Duration::from_secs(20)).tls_certs_only([certificate])
    };
    let url = rig.url("/v1/agents");
    for (client, version) in [
        (client().http1_only().build().unwrap(), reqwest::Version::HTTP_11),
        (client().build().unwrap(), reqwest::Version::HTTP_2),
    ] {
        let response = client.get(&url).bearer_auth(&rig.api).send().await.unwrap();
        assert_eq!(response.version(), version);
        read(response).await.ok();
    }
    let plain = reqwest::Client::new().get(url.replace("https", "http")).send().await;
    assert!(plain.is_err());
    rig.stop().await;
}

#[tokio::test]
async fn an_open_address_needs_tls_or_a_word() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::start(engine_options(Arc::new(Memory::new()), DONE)).await.unwrap();
    for open in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80", "[::ffff:192.0.2.1]:80"] {
        let options = Options::new(open.parse().unwrap(), dir.path().to_owned());
        let refused = Server::bind(options, engine.clone()).await.err().unwrap();
        assert!(matches!(refused, Error::Plaintext(_)), "{refused}");
    }
    // Before anything was written.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let mut options = Options::new("0.0.0.0:0".parse().unwrap(), dir.path().to_owned());
    options.allow_plaintext = true;
    let server = Server::bind(options, engine.clone()).await.unwrap();
    let taken = Options::new(SocketAddr::from(([127, 0, 0, 1], server.local_addr().port())), dir.path().to_owned());
    assert!(matches!(Server::bind(taken, engine.clone()).await.err().unwrap(), Error::Bind { .. }));
    let bad = Tls { cert: fixture("localhost.key"), key: fixture("localhost.pem") };
    let mut options = Options::new("127.0.0.1:0".parse().unwrap(), dir.path().to_owned());
    options.tls = Some(bad);
    assert!(matches!(Server::bind(options, engine.clone()).await.err().unwrap(), Error::Tls { .. }));
    engine.shutdown().await;
}

#[tokio::test]
async fn stopping_lets_a_request_finish() {
    let rig = Rig::start(DONE).await;
    let address = rig.base.trim_start_matches("http://").to_owned();
    let mut socket = tokio::net::TcpStream::connect(&address).await.unwrap();
    let body = json!({"name": "a", "model": "m"}).to_string();
    let head = format!(
        "POST /v1/agents HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n",
        rig.api,
        body.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    // Another request shows that the first one's head has been taken in by now, or will be before the server looks up.
    rig.get("/v1/agents").await.ok();
    tokio::time::sleep(Duration::from_millis(50)).await;
    rig.begin_stop();
    tokio::time::sleep(Duration::from_millis(50)).await;
    socket.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let engine = rig.engine.clone();
    rig.stop().await;
    assert!(tokio::net::TcpStream::connect(&address).await.is_err());
    assert!(engine.send(&"sesn_x".into(), serde_json::from_value(json!([message("x")])).unwrap()).await.is_err());
}
