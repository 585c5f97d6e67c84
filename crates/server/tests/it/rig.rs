//! A server on loopback, and a client that speaks to it over a real socket.

use std::sync::Arc;
use std::time::Duration;

use palisade_core::session::{Price, Rules};
use palisade_core::work::Leases;
use palisade_engine::model::{Models, Script, Scripted};
use palisade_engine::{Engine, SystemClock};
use palisade_server::keys::{self, KeyKind};
use palisade_server::{Options, Server};
use palisade_store::{Memory, Store};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The model that has a price.
pub(crate) const PRICED: &str = "model-priced";

pub(crate) struct Rig {
    pub(crate) engine: Arc<Engine>,
    pub(crate) base: String,
    pub(crate) api: String,
    pub(crate) http: reqwest::Client,
    _dir: TempDir,
    stop: CancellationToken,
    running: Option<JoinHandle<()>>,
}

pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Value,
}

impl Reply {
    /// The body of a success.
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.body
    }

    /// The message of an error with this status and type; checks the envelope.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, kind: &str) -> String {
        assert_eq!(self.status, status, "{}", self.body);
        assert_eq!(self.body["type"], "error", "{}", self.body);
        assert_eq!(self.body["error"]["type"], kind, "{}", self.body);
        let id = self.headers["request-id"].to_str().unwrap();
        assert!(id.starts_with("req_"));
        assert_eq!(self.body["request_id"], id);
        self.body["error"]["message"].as_str().unwrap().to_owned()
    }

    pub(crate) fn code(&self) -> &str {
        self.body["error"]["details"]["error_code"].as_str().unwrap_or("")
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

pub(crate) fn engine_options(store: Arc<dyn Store>, script: &str) -> palisade_engine::Options {
    let model = Scripted::new(Script::parse(script).unwrap());
    let mut rules = Rules { backoff: 10_000, ..Rules::default() };
    rules.prices.insert(PRICED.to_owned(), Price { input: 300, output: 1500, cache_read: 30, cache_write: 375 });
    palisade_engine::Options {
        store,
        models: Models::new().with_default(Arc::new(model)),
        clock: Arc::new(SystemClock::default()),
        rules,
        leases: Leases::default(),
        max_tokens: 4096,
    }
}

impl Rig {
    /// A server whose model follows `script`.
    pub(crate) async fn start(script: &str) -> Rig {
        Rig::start_with(script, Arc::new(Memory::new()), |_| {}).await
    }

    pub(crate) async fn start_with(script: &str, store: Arc<dyn Store>, change: impl FnOnce(&mut Options)) -> Rig {
        // Two clients of one process may install it twice; any one is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::start(engine_options(store.clone(), script)).await.unwrap();
        let mut options = Options::new("127.0.0.1:0".parse().unwrap(), dir.path().to_owned());
        change(&mut options);
        let scheme = if options.tls.is_some() { "https" } else { "http" };
        let server = Server::bind(options, engine.clone()).await.unwrap();
        let base = format!("{scheme}://{}", server.local_addr());
        let stop = CancellationToken::new();
        let (engine_too, token) = (engine.clone(), stop.clone());
        let running = tokio::spawn(async move {
            server.run(token).await.unwrap();
            engine_too.shutdown().await;
        });
        let now = engine.clock().now();
        let (_, api) = keys::create(&*store, KeyKind::Api, "test", now).await.unwrap();
        let http = reqwest::Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
        Rig { engine, base, api: api.expose().to_owned(), http, _dir: dir, stop, running: Some(running) }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// A request with this credential.
    pub(crate) async fn ask(&self, key: &str, method: Method, path: &str, body: Option<&str>) -> Reply {
        let mut request = self.http.request(method, self.url(path)).bearer_auth(key);
        if let Some(body) = body {
            request = request.body(body.to_owned());
        }
        read(request.send().await.unwrap()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.ask(&self.api, Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Reply {
        self.ask(&self.api, Method::POST, path, Some(&body.to_string())).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Reply {
        self.ask(&self.api, Method::DELETE, path, None).await
    }

    /// An agent with the built-in tools and these others.
    pub(crate) async fn agent(&self, tools: Value) -> String {
        let body = json!({"name": "tester", "model": "model-a", "tools": tools});
        id(&self.post("/v1/agents", body).await.ok())
    }

    pub(crate) async fn environment(&self) -> String {
        let body = json!({"name": "here", "config": {"type": "self_hosted"}});
        id(&self.post("/v1/environments", body).await.ok())
    }

    pub(crate) async fn environment_key(&self, environment: &str) -> String {
        let kind = KeyKind::Environment { environment_id: environment.into() };
        let (_, key) = keys::create(&**self.engine.store(), kind, "worker", self.engine.clock().now()).await.unwrap();
        key.expose().to_owned()
    }

    /// A session that begins with a message.
    pub(crate) async fn session(&self, agent: &str, environment: &str, text: &str) -> String {
        let body = json!({"agent": agent, "environment_id": environment, "initial_events": [message(text)]});
        let session = self.post("/v1/sessions", body).await.ok();
        assert_eq!(session["status"], "running");
        id(&session)
    }

    pub(crate) async fn send(&self, session: &str, events: Value) -> Reply {
        self.post(&format!("/v1/sessions/{session}/events"), json!({"events": events})).await
    }

    pub(crate) async fn events(&self, session: &str) -> Vec<Value> {
        let list = self.get(&format!("/v1/sessions/{session}/events")).await.ok();
        list["data"].as_array().unwrap().clone()
    }

    /// The events once there are `count` of this type.
    pub(crate) async fn until(&self, session: &str, kind: &str, count: usize) -> Vec<Value> {
        for _ in 0..1000 {
            let events = self.events(session).await;
            if events.iter().filter(|event| event["type"] == kind).count() >= count {
                return events;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{kind} did not come: {:#?}", self.events(session).await);
    }

    /// Waits until the newest event is of this type.
    pub(crate) async fn until_last(&self, session: &str, kind: &str) {
        for _ in 0..1000 {
            let newest = self.get(&format!("/v1/sessions/{session}/events?order=desc&limit=1")).await.ok();
            if newest["data"][0]["type"] == kind {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{kind} did not come");
    }

    pub(crate) async fn stream(&self, key: &str, session: &str, query: &str) -> Stream {
        let path = format!("/v1/sessions/{session}/events/stream{query}");
        let request = self.http.get(self.url(&path)).timeout(Duration::from_secs(60)).bearer_auth(key);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
        Stream { response, buffer: String::new() }
    }

    /// Stops the server and waits until it has stopped.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        self.running.take().unwrap().await.unwrap();
    }

    pub(crate) fn begin_stop(&self) {
        self.stop.cancel();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(crate) async fn read(response: reqwest::Response) -> Reply {
    let (status, headers) = (response.status(), response.headers().clone());
    let bytes = response.bytes().await.unwrap();
    let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| {
        panic!("{status}: not JSON: {}", String::from_utf8_lossy(&bytes));
    });
    Reply { status, headers, body }
}

pub(crate) struct Stream {
    response: reqwest::Response,
    buffer: String,
}

impl Stream {
    /// The next message's name and data; none at the end.
    pub(crate) async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some(end) = self.buffer.find("\n\n") {
                let message: String = self.buffer.drain(..end + 2).collect();
                let part = |name: &str| message.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
                return Some((part("event:").to_owned(), serde_json::from_str(part("data:")).unwrap()));
            }
            let chunk = self.response.chunk().await.unwrap()?;
            self.buffer.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// Everything up to the first message with this name, pings left out.
    pub(crate) async fn until(&mut self, name: &str) -> Vec<Value> {
        let mut all = Vec::new();
        loop {
            let (event, data) = self.next().await.unwrap_or_else(|| panic!("ended before {name}: {all:#?}"));
            if event != "ping" {
                assert_eq!(event, data["type"]);
                all.push(data);
            }
            if event == name {
                return all;
            }
        }
    }
}

pub(crate) fn id(object: &Value) -> String {
    object["id"].as_str().unwrap().to_owned()
}

pub(crate) fn message(text: &str) -> Value {
    json!({"type": "user.message", "content": [{"type": "text", "text": text}]})
}

pub(crate) fn toolset() -> Value {
    json!({"type": "agent_toolset_20260401"})
}

pub(crate) fn types(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap()).collect()
}
