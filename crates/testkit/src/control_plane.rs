//! A control plane in memory, for testing workers: it keeps the protocol's rules, shows the hosted service's quirks, and
//! fails on demand.
//!
//! Quirks that are always on: a work item's id equals its session's id; the heartbeat value is an opaque text that must
//! come back byte for byte; a result without visible text is refused with 400; a result for an unconfirmed `ask` call is
//! refused with 400; a late or second result is accepted and changes nothing; stopping a stopped item is a 409. Everything
//! else is asked for with [`FakeControlPlane::fault`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::Response;
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

/// The only environment.
pub const ENVIRONMENT: &str = "env_fake";
/// Its key.
pub const KEY: &str = "sk-ant-oat01-fake-environment-key";
/// How long [`FakeControlPlane::wait`] waits before it fails the test.
const PATIENCE: Duration = Duration::from_secs(20);
/// Frames that a stream's reader may be behind; one that is further behind is cut off, as a server does.
const STREAM: usize = 4096;

/// The routes that a worker uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Route {
    /// `GET …/work/poll`
    Poll,
    /// `POST …/ack`
    Ack,
    /// `POST …/heartbeat`
    Heartbeat,
    /// `POST …/stop`
    Stop,
    /// `GET /v1/sessions/{id}`
    Session,
    /// `GET …/events`
    Events,
    /// `GET …/events/stream`
    Stream,
    /// `POST …/events`
    Send,
    /// `GET /v1/skills/{id}/versions/{version}`
    SkillVersion,
    /// `GET …/content`
    SkillContent,
}

/// A canned answer.
#[derive(Debug, Clone)]
pub enum Reply {
    /// Status, content type and body.
    Raw(u16, &'static str, String),
    /// No answer at all.
    Hang,
    /// The regular answer; for faults that begin later.
    Regular,
}

impl Reply {
    /// An error envelope with this status.
    pub fn error(status: u16) -> Self {
        let body = json!({"type": "error", "error": {"type": "api_error", "message": "asked for by the test"}});
        Self::Raw(status, "application/json", body.to_string())
    }

    /// A body as it is, with status 200.
    pub fn body(text: &str) -> Self {
        Self::Raw(200, "application/json", text.to_owned())
    }
}

/// A request that arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The route.
    pub route: Route,
    /// The path without the query.
    pub path: String,
    /// The raw query.
    pub query: String,
    /// What came after `Bearer `.
    pub bearer: String,
    /// `Anthropic-Worker-ID`.
    pub worker_id: Option<String>,
    /// The body, `null` when there was none.
    pub body: Value,
}

/// A work item.
#[derive(Debug, Clone)]
pub struct Item {
    /// The session, and the item's id.
    pub id: String,
    /// `session` or `healthcheck`.
    pub kind: String,
    /// `queued`, `claimed`, `starting`, `active`, `stopping`, `stopped`.
    pub state: String,
    /// The `secret` to hand out.
    pub secret: Option<String>,
    claimed_at: Option<Instant>,
    beats: u64,
}

#[derive(Debug, Default)]
struct SessionState {
    object: Value,
    events: Vec<Value>,
    streams: Vec<mpsc::Sender<Result<Bytes, std::io::Error>>>,
    streams_opened: usize,
}

#[derive(Debug, Default)]
struct World {
    items: Vec<Item>,
    sessions: BTreeMap<String, SessionState>,
    seen: Vec<Seen>,
    faults: BTreeMap<Route, VecDeque<Reply>>,
    skills: BTreeMap<String, Vec<u8>>,
    ttl_seconds: u64,
    hold_polls: bool,
    skills_refuse_tokens: bool,
    next_id: u64,
}

#[derive(Debug)]
struct Shared {
    world: Mutex<World>,
    changed: watch::Sender<u64>,
}

/// The running fake. Dropping it closes its socket and every stream.
#[derive(Debug)]
pub struct FakeControlPlane {
    shared: Arc<Shared>,
    url: String,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for FakeControlPlane {
    fn drop(&mut self) {
        self.server.abort();
        for session in self.shared.world().sessions.values_mut() {
            session.streams.clear();
        }
    }
}

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, act: impl FnOnce(&mut World) -> T) -> T {
        let value = act(&mut self.world());
        self.changed.send_modify(|version| *version += 1);
        value
    }
}

impl World {
    fn id(&mut self, prefix: &str) -> String {
        self.next_id += 1;
        format!("{prefix}{:06}", self.next_id)
    }

    /// Appends an event and streams it; gives its id.
    fn emit(&mut self, session: &str, mut event: Value) -> String {
        let id = event.get("id").and_then(Value::as_str).map_or_else(|| self.id("sevt_"), str::to_owned);
        event["id"] = json!(id);
        if event.get("processed_at").is_none() {
            event["processed_at"] = json!("2026-11-21T10:00:00Z");
        }
        let frame = format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap_or("message"));
        let state = self.sessions.entry(session.to_owned()).or_default();
        match state.events.iter_mut().find(|known| known["id"] == event["id"]) {
            Some(known) => *known = event,
            None => state.events.push(event),
        }
        state.streams.retain(|stream| stream.try_send(Ok(Bytes::from(frame.clone()))).is_ok());
        id
    }

    fn queue(&mut self, item: Item) {
        self.items.retain(|known| known.id != item.id || known.state != "stopped");
        self.items.push(item);
    }

    fn claim(&mut self, reclaim: Duration) -> Option<Value> {
        let now = Instant::now();
        let item = self.items.iter_mut().find(|item| {
            item.state == "queued" || (item.state == "claimed" && item.claimed_at.is_some_and(|at| now - at > reclaim))
        })?;
        item.state = "claimed".into();
        item.claimed_at = Some(now);
        Some(json!({
            "id": item.id, "type": "work", "environment_id": ENVIRONMENT, "state": "queued",
            "data": {"type": item.kind, "id": item.id}, "secret": item.secret, "metadata": {},
            "created_at": "2026-11-21T10:00:00Z", "acknowledged_at": null, "started_at": null,
            "latest_heartbeat_at": null, "stop_requested_at": null, "stopped_at": null,
        }))
    }

    fn item(&mut self, id: &str) -> Option<&mut Item> {
        self.items.iter_mut().rev().find(|item| item.id == id)
    }
}

/// The sessions token of a session.
pub fn token(session: &str) -> String {
    format!("sk-ant-req-{session}")
}

fn secret(session: &str) -> String {
    let bundle = json!({"sessions_token": token(session), "api_base_url": "http://192.0.2.1:1"});
    URL_SAFE_NO_PAD.encode(bundle.to_string())
}

impl FakeControlPlane {
    /// Starts one on a free loopback port.
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let url = format!("http://{}", listener.local_addr().expect("a bound address"));
        let world = World { ttl_seconds: 60, hold_polls: true, ..World::default() };
        let shared = Arc::new(Shared { world: Mutex::new(world), changed: watch::Sender::new(0) });
        let work = "/v1/environments/{environment}/work";
        let router = Router::new()
            .route(&format!("{work}/poll"), get(poll))
            .route(&format!("{work}/{{item}}/ack"), post(ack))
            .route(&format!("{work}/{{item}}/heartbeat"), post(heartbeat))
            .route(&format!("{work}/{{item}}/stop"), post(stop))
            .route("/v1/sessions/{session}", get(session))
            .route("/v1/sessions/{session}/events", get(events).post(send))
            .route("/v1/sessions/{session}/events/stream", get(stream))
            .route("/v1/skills/{skill}/versions/{version}", get(skill_version))
            .route("/v1/skills/{skill}/versions/{version}/content", get(skill_content))
            .layer(axum::extract::DefaultBodyLimit::max(32 * 1024 * 1024))
            .with_state(shared.clone());
        let server = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Self { shared, url, server }
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Answers the next requests of a route with these, one each.
    pub fn fault(&self, route: Route, replies: impl IntoIterator<Item = Reply>) {
        self.shared.change(|world| world.faults.entry(route).or_default().extend(replies));
    }

    /// The lease's time to live that heartbeats are told.
    pub fn ttl_seconds(&self, seconds: u64) {
        self.shared.change(|world| world.ttl_seconds = seconds);
    }

    /// Whether polls are held for `block_ms` (the default) or answered at once.
    pub fn hold_polls(&self, hold: bool) {
        self.shared.change(|world| world.hold_polls = hold);
    }

    /// Makes a skill downloadable; tokens are refused on skill routes with `refuse_tokens`.
    pub fn skill(&self, skill: &str, archive: Vec<u8>, refuse_tokens: bool) {
        self.shared.change(|world| {
            world.skills.insert(skill.to_owned(), archive);
            world.skills_refuse_tokens = refuse_tokens;
        });
    }

    /// A running session, not queued yet.
    pub fn session(&self) -> FakeSession {
        let id = self.shared.change(|world| {
            let id = world.id("sesn_");
            let object =
                json!({"id": id, "type": "session", "status": "running", "agent": {"skills": []}, "resources": []});
            world.sessions.insert(id.clone(), SessionState { object, ..SessionState::default() });
            world.emit(&id, json!({"type": "session.status_running"}));
            world.emit(&id, json!({"type": "session.thread_status_running", "session_thread_id": "sthr_primary"}));
            id
        });
        FakeSession { shared: self.shared.clone(), id }
    }

    /// Queues an item that is no session's.
    pub fn queue_other(&self, id: &str, kind: &str) {
        self.shared.change(|world| {
            let (id, kind) = (id.to_owned(), kind.to_owned());
            world.queue(Item { id, kind, state: "queued".into(), secret: None, claimed_at: None, beats: 0 });
        });
    }

    /// Everything that arrived, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.world().seen.clone()
    }

    /// What arrived on one route.
    pub fn seen_on(&self, route: Route) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.route == route).collect()
    }

    /// The state of an item.
    pub fn item_state(&self, id: &str) -> Option<String> {
        self.shared.world().item(id).map(|item| item.state.clone())
    }

    /// Waits until the condition gives something; fails the test after a while.
    pub async fn wait<T>(&self, what: &str, condition: impl FnMut(&Self) -> Option<T>) -> T {
        let mut condition = condition;
        let mut changed = self.shared.changed.subscribe();
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(value) = condition(self) {
                    return value;
                }
                let _ = tokio::time::timeout(Duration::from_millis(100), changed.changed()).await;
            }
        });
        match waited.await {
            Ok(value) => value,
            Err(_) => {
                let seen = self.seen().into_iter().filter(|seen| !matches!(seen.route, Route::Poll | Route::Heartbeat));
                let seen: Vec<String> =
                    seen.map(|seen| format!("{:?} {} {}", seen.route, seen.path, seen.body)).collect();
                panic!("waited in vain for {what}; requests:\n{}", seen.join("\n"))
            }
        }
    }

    /// Waits until the item is stopped.
    pub async fn stopped(&self, id: &str) {
        self.wait("the item to be stopped", |fake| (fake.item_state(id)? == "stopped").then_some(())).await;
    }
}

/// One session of the fake.
#[derive(Debug, Clone)]
pub struct FakeSession {
    shared: Arc<Shared>,
    /// The session's id, and its items'.
    pub id: String,
}

impl FakeSession {
    /// Queues a work item for the session, with its sessions token.
    pub fn queue(&self) {
        self.queue_with_secret(Some(secret(&self.id)));
    }

    /// Queues a work item with this `secret`.
    pub fn queue_with_secret(&self, secret: Option<String>) {
        self.shared.change(|world| {
            let (id, kind) = (self.id.clone(), "session".to_owned());
            world.queue(Item { id, kind, state: "queued".into(), secret, claimed_at: None, beats: 0 });
        });
    }

    /// Changes the session object.
    pub fn edit(&self, act: impl FnOnce(&mut Value)) {
        self.shared.change(|world| act(&mut world.sessions.get_mut(&self.id).expect("the session exists").object));
    }

    /// Asks the worker to stop, as an operator does.
    pub fn ask_to_stop(&self) {
        self.item_state("stopping");
    }

    /// Makes the next heartbeat a 412, as if another worker had beaten.
    pub fn steal_lease(&self) {
        self.shared.change(|world| {
            if let Some(item) = world.item(&self.id) {
                item.beats += 1000;
            }
        });
    }

    fn item_state(&self, state: &str) {
        self.shared.change(|world| {
            if let Some(item) = world.item(&self.id) {
                item.state = state.to_owned();
            }
        });
    }

    /// Appends an event and streams it; gives its id.
    pub fn emit(&self, event: Value) -> String {
        self.shared.change(|world| world.emit(&self.id, event))
    }

    /// An allowed tool call; gives its id.
    pub fn call(&self, name: &str, input: Value) -> String {
        self.emit(json!({"type": "agent.tool_use", "name": name, "input": input, "evaluated_permission": "allow"}))
    }

    /// `bash` with this command.
    pub fn bash(&self, command: &str) -> String {
        self.call("bash", json!({"command": command}))
    }

    /// A call that waits for a confirmation.
    pub fn ask(&self, name: &str, input: Value) -> String {
        self.emit(json!({"type": "agent.tool_use", "name": name, "input": input, "evaluated_permission": "ask"}))
    }

    /// A person's answer to an `ask` call.
    pub fn confirm(&self, call: &str, result: &str) {
        self.emit(json!({"type": "user.tool_confirmation", "tool_use_id": call, "result": result}));
    }

    /// The turn is over.
    pub fn idle(&self) {
        self.emit(json!({"type": "session.status_idle", "stop_reason": {"type": "end_turn"}, "stop_details": null}));
    }

    /// Ends every open stream; `clean` or in the middle of a message.
    pub fn cut(&self, clean: bool) {
        self.shared.change(|world| {
            let session = world.sessions.get_mut(&self.id).expect("the session exists");
            for stream in session.streams.drain(..) {
                if !clean {
                    let _ = stream.try_send(Ok(Bytes::from_static(b"event: agent.tool_use\ndata: {\"type\":\"ag")));
                    let _ = stream.try_send(Err(std::io::Error::other("cut")));
                }
            }
        });
    }

    /// Sends bytes on the open streams as they are.
    pub fn raw_frame(&self, frame: &'static str) {
        self.shared.change(|world| {
            let session = world.sessions.get_mut(&self.id).expect("the session exists");
            session.streams.retain(|stream| stream.try_send(Ok(Bytes::from_static(frame.as_bytes()))).is_ok());
        });
    }

    /// How many streams have been opened so far.
    pub fn streams_opened(&self) -> usize {
        self.shared.world().sessions.get(&self.id).map_or(0, |session| session.streams_opened)
    }

    /// All results that were accepted, in order.
    pub fn results(&self) -> Vec<Value> {
        let world = self.shared.world();
        let events = world.sessions.get(&self.id).map(|session| session.events.clone()).unwrap_or_default();
        events.into_iter().filter(|event| event["type"] == "user.tool_result").collect()
    }

    /// The accepted result of a call, if there is one.
    pub fn result_of(&self, call: &str) -> Option<Value> {
        self.results().into_iter().find(|result| result["tool_use_id"] == call)
    }
}

/// The text of a result's first block.
pub fn text(result: &Value) -> &str {
    result["content"][0]["text"].as_str().unwrap_or_default()
}

type Q = Query<BTreeMap<String, String>>;

fn answer(status: u16, content_type: &str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Ok(value) = content_type.parse() {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    response
}

fn object(status: u16, body: Value) -> Response {
    answer(status, "application/json", body.to_string())
}

fn refusal(status: u16, kind: &str, message: &str) -> Response {
    let body = json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"});
    let mut response = object(status, body);
    response.headers_mut().insert("request-id", header::HeaderValue::from_static("req_1"));
    if status == 409 {
        response.headers_mut().insert("x-should-retry", header::HeaderValue::from_static("false"));
    }
    response
}

/// Notes the request, checks its credential, and plays the next fault of its route.
async fn admit(
    shared: &Shared,
    route: Route,
    uri: &Uri,
    headers: &HeaderMap,
    body: &Bytes,
    allowed: &[String],
) -> Option<Response> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let bearer = bearer.strip_prefix("Bearer ").unwrap_or_default().to_owned();
    let worker_id = headers.get("anthropic-worker-id").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let fault = shared.change(|world| {
        world.seen.push(Seen {
            route,
            path: uri.path().to_owned(),
            query: uri.query().unwrap_or_default().to_owned(),
            bearer: bearer.clone(),
            worker_id,
            body: serde_json::from_slice(body).unwrap_or(Value::Null),
        });
        world.faults.get_mut(&route).and_then(VecDeque::pop_front)
    });
    match fault {
        Some(Reply::Raw(status, content_type, body)) => return Some(answer(status, content_type, body)),
        Some(Reply::Hang) => std::future::pending::<()>().await,
        Some(Reply::Regular) | None => {}
    }
    let known = allowed.contains(&bearer);
    (!known).then(|| refusal(401, "authentication_error", "invalid credential"))
}

async fn poll(State(shared): State<Arc<Shared>>, uri: Uri, headers: HeaderMap, Query(query): Q) -> Response {
    if let Some(response) = admit(&shared, Route::Poll, &uri, &headers, &Bytes::new(), &[KEY.into()]).await {
        return response;
    }
    let number = |name: &str| query.get(name).and_then(|value| value.parse::<u64>().ok());
    let reclaim = Duration::from_millis(number("reclaim_older_than_ms").unwrap_or(5000));
    let hold = if shared.world().hold_polls { number("block_ms").unwrap_or(0) } else { 0 };
    let until = tokio::time::Instant::now() + Duration::from_millis(hold);
    let mut changed = shared.changed.subscribe();
    loop {
        let claimed = shared.world().claim(reclaim);
        if let Some(item) = claimed {
            shared.change(|_| ());
            return object(200, item);
        }
        if tokio::time::timeout_at(until, changed.changed()).await.is_err() {
            return object(200, Value::Null);
        }
    }
}

async fn ack(
    State(shared): State<Arc<Shared>>,
    Path((_, item)): Path<(String, String)>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    if let Some(response) = admit(&shared, Route::Ack, &uri, &headers, &Bytes::new(), &[KEY.into()]).await {
        return response;
    }
    shared.change(|world| match world.item(&item) {
        Some(item) if item.state == "claimed" => {
            item.state = "starting".into();
            object(200, json!({"id": item.id, "type": "work", "state": "starting"}))
        }
        _ => refusal(404, "not_found_error", "no such work item"),
    })
}

async fn heartbeat(
    State(shared): State<Arc<Shared>>,
    Path((_, item)): Path<(String, String)>,
    uri: Uri,
    headers: HeaderMap,
    Query(query): Q,
) -> Response {
    let allowed = [KEY.into(), token(&item)];
    if let Some(response) = admit(&shared, Route::Heartbeat, &uri, &headers, &Bytes::new(), &allowed).await {
        return response;
    }
    // Characters that a careless client would not carry back unchanged.
    let value = |beats: u64| if beats == 0 { "NO_HEARTBEAT".to_owned() } else { format!("beat+{beats} %2F/&=#é") };
    shared.change(|world| {
        let ttl = world.ttl_seconds;
        let Some(item) = world.item(&item) else { return refusal(404, "not_found_error", "no such work item") };
        let ended = matches!(item.state.as_str(), "stopping" | "stopped");
        if !ended && query.get("expected_last_heartbeat") != Some(&value(item.beats)) {
            return object(
                412,
                json!({"type": "error", "error": {"type": "invalid_request_error", "message": "heartbeat precondition failed",
                    "details": {"error_code": "heartbeat_precondition_failed", "current_state": {
                        "last_heartbeat": value(item.beats), "lease_extended": false, "state": item.state, "ttl_seconds": ttl}}}}),
            );
        }
        item.beats += 1;
        if item.state == "starting" {
            item.state = "active".into();
        }
        object(
            200,
            json!({"type": "work_heartbeat", "last_heartbeat": value(item.beats), "lease_extended": !ended,
                "state": item.state, "ttl_seconds": ttl}),
        )
    })
}

async fn stop(
    State(shared): State<Arc<Shared>>,
    Path((_, item)): Path<(String, String)>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let allowed = [KEY.into(), token(&item)];
    if let Some(response) = admit(&shared, Route::Stop, &uri, &headers, &body, &allowed).await {
        return response;
    }
    let force = serde_json::from_slice::<Value>(&body).is_ok_and(|body| body["force"] == true);
    shared.change(|world| match world.item(&item) {
        Some(item) if item.state == "stopped" => refusal(409, "conflict_error", "already stopped"),
        Some(item) => {
            item.state = if force { "stopped" } else { "stopping" }.into();
            object(200, json!({"id": item.id, "type": "work", "state": item.state}))
        }
        None => refusal(404, "not_found_error", "no such work item"),
    })
}

async fn session(
    State(shared): State<Arc<Shared>>,
    Path(session): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let allowed = [KEY.into(), token(&session)];
    if let Some(response) = admit(&shared, Route::Session, &uri, &headers, &Bytes::new(), &allowed).await {
        return response;
    }
    match shared.world().sessions.get(&session) {
        Some(session) => object(200, session.object.clone()),
        None => refusal(404, "not_found_error", "no such session"),
    }
}

async fn events(
    State(shared): State<Arc<Shared>>,
    Path(session): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    Query(query): Q,
) -> Response {
    let allowed = [KEY.into(), token(&session)];
    if let Some(response) = admit(&shared, Route::Events, &uri, &headers, &Bytes::new(), &allowed).await {
        return response;
    }
    let world = shared.world();
    let Some(session) = world.sessions.get(&session) else { return refusal(404, "not_found_error", "no such session") };
    // Pages are far smaller than asked for, so that cursors are always exercised.
    let from = query.get("page").and_then(|page| page.strip_prefix("page/")?.parse().ok()).unwrap_or(0);
    let to = (from + 3).min(session.events.len());
    let next = (to < session.events.len()).then(|| format!("page/{to}"));
    object(200, json!({"data": session.events[from.min(to)..to], "next_page": next}))
}

async fn stream(
    State(shared): State<Arc<Shared>>,
    Path(session): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let allowed = [KEY.into(), token(&session)];
    if let Some(response) = admit(&shared, Route::Stream, &uri, &headers, &Bytes::new(), &allowed).await {
        return response;
    }
    shared.change(|world| {
        let Some(session) = world.sessions.get_mut(&session) else {
            return refusal(404, "not_found_error", "no such session");
        };
        let (sender, receiver) = mpsc::channel(STREAM);
        let _ = sender.try_send(Ok(Bytes::from_static(b": open\n\nevent: ping\ndata: {\"type\":\"ping\"}\n\n")));
        session.streams.push(sender);
        session.streams_opened += 1;
        answer(200, "text/event-stream", Body::from_stream(ReceiverStream::new(receiver)))
    })
}

async fn send(
    State(shared): State<Arc<Shared>>,
    Path(session): Path<String>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    debug_assert_eq!(method, Method::POST);
    let allowed = [KEY.into(), token(&session)];
    if let Some(response) = admit(&shared, Route::Send, &uri, &headers, &body, &allowed).await {
        return response;
    }
    let invalid = |message: &str| refusal(400, "invalid_request_error", message);
    let Ok(body) = serde_json::from_slice::<Value>(&body) else { return invalid("not JSON") };
    let [event] = body["events"].as_array().map(Vec::as_slice).unwrap_or_default() else {
        return invalid("the fake wants exactly one event");
    };
    let Some(call) = event["tool_use_id"].as_str() else { return invalid("tool_use_id is missing") };
    if event["type"] != "user.tool_result" || !event["is_error"].is_boolean() || !event["content"].is_array() {
        return invalid("not a complete result");
    }
    let texts = event["content"].as_array().into_iter().flatten().filter(|block| block["type"] == "text");
    if texts.clone().any(|block| block["text"].as_str().is_none_or(|text| text.trim().is_empty())) {
        return invalid("text must not be empty");
    }
    shared.change(|world| {
        let Some(state) = world.sessions.get(&session) else {
            return refusal(404, "not_found_error", "no such session");
        };
        let has = |kind: &str, verdict: Option<&str>| {
            state.events.iter().any(|known| {
                known["type"] == kind
                    && known["tool_use_id"] == call
                    && verdict.is_none_or(|verdict| known["result"] == verdict)
            })
        };
        let Some(used) = state.events.iter().find(|known| known["id"] == call) else { return invalid("unknown call") };
        if used["evaluated_permission"] == "ask" && !has("user.tool_confirmation", Some("allow")) {
            return invalid("the call has not been confirmed");
        }
        if has("user.tool_result", None) || has("agent.tool_result", None) {
            // Late or second: the first one stays.
            return object(200, json!({"data": []}));
        }
        let id = world.emit(&session, event.clone());
        object(200, json!({"data": [{"id": id}]}))
    })
}

async fn skill_version(
    State(shared): State<Arc<Shared>>,
    Path((skill, version)): Path<(String, String)>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let allowed = skill_credentials(&shared);
    if let Some(response) = admit(&shared, Route::SkillVersion, &uri, &headers, &Bytes::new(), &allowed).await {
        return if response.status() == 401 { refusal(403, "permission_error", "token refused") } else { response };
    }
    let version = if version == "latest" { "1759178010641129".to_owned() } else { version };
    match shared.world().skills.contains_key(&skill) {
        true => object(200, json!({"id": version, "type": "skill_version", "skill_id": skill, "name": skill})),
        false => refusal(404, "not_found_error", "no such skill"),
    }
}

async fn skill_content(
    State(shared): State<Arc<Shared>>,
    Path((skill, _)): Path<(String, String)>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let allowed = skill_credentials(&shared);
    if let Some(response) = admit(&shared, Route::SkillContent, &uri, &headers, &Bytes::new(), &allowed).await {
        return if response.status() == 401 { refusal(403, "permission_error", "token refused") } else { response };
    }
    match shared.world().skills.get(&skill) {
        Some(archive) => answer(200, "application/binary", archive.clone()),
        None => refusal(404, "not_found_error", "no such skill"),
    }
}

fn skill_credentials(shared: &Shared) -> Vec<String> {
    let world = shared.world();
    let mut allowed = vec![KEY.to_owned()];
    if !world.skills_refuse_tokens {
        allowed.extend(world.sessions.keys().map(|session| token(session)));
    }
    allowed
}
