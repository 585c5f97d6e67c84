//! A fake of the Messages API: it answers from a list of canned replies and keeps what it was asked.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use axum::routing::post;
use futures::{Stream, StreamExt};
use serde_json::{Value, json};
use tokio::sync::watch;

/// How long [`MessagesServer::until_closed`] waits before it fails the test.
const PATIENCE: Duration = Duration::from_secs(20);

/// A canned reply.
#[derive(Debug, Clone)]
pub struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    /// Whole messages of the stream, or the one body.
    parts: Vec<String>,
    /// How many bytes go out at once.
    piece: usize,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Regular,
    /// The connection breaks.
    Cut,
    /// Nothing more comes, and the connection stays.
    Hang,
}

impl Reply {
    /// An error envelope.
    pub fn error(status: u16, kind: &str, message: &str) -> Reply {
        let body = json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_fake"});
        Reply::raw(status, "application/json", body.to_string())
    }

    /// Any body.
    pub fn raw(status: u16, content_type: &str, body: impl Into<String>) -> Reply {
        let headers = vec![("content-type", content_type.to_owned())];
        Reply { status, headers, parts: vec![body.into()], piece: usize::MAX, end: End::Regular }
    }

    /// A stream of these events; each one's `event` field is its `type`.
    pub fn events(events: impl IntoIterator<Item = Value>) -> Reply {
        let frame = |event: Value| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap_or_default());
        Reply { parts: events.into_iter().map(frame).collect(), ..Reply::raw(200, "text/event-stream", "") }
    }

    /// A reply made of these blocks, streamed as the API does it: texts, thinking and inputs in deltas.
    pub fn blocks(blocks: impl IntoIterator<Item = Value>, stop_reason: &str) -> Reply {
        let mut events = vec![start(), json!({"type": "ping"})];
        for (index, block) in blocks.into_iter().enumerate() {
            events.extend(block_events(index, block));
        }
        events.push(json!({"type": "message_delta", "delta": {"stop_reason": stop_reason, "stop_sequence": null},
            "usage": {"output_tokens": 7}}));
        events.push(json!({"type": "message_stop"}));
        Reply::events(events)
    }

    /// One text, and the end of the turn.
    pub fn text(text: &str) -> Reply {
        Reply::blocks([json!({"type": "text", "text": text})], "end_turn")
    }

    /// One call of a tool.
    pub fn tool_use(id: &str, name: &str, input: Value) -> Reply {
        Reply::blocks([json!({"type": "tool_use", "id": id, "name": name, "input": input})], "tool_use")
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }

    /// Adds a message to the stream, as it is.
    #[must_use]
    pub fn frame(mut self, frame: impl Into<String>) -> Reply {
        self.parts.push(frame.into());
        self
    }

    /// Breaks the connection after this many messages of the stream.
    #[must_use]
    pub fn cut_after(mut self, messages: usize) -> Reply {
        self.parts.truncate(messages);
        Reply { end: End::Cut, ..self }
    }

    /// Ends the response properly, but after this many messages.
    #[must_use]
    pub fn end_after(mut self, messages: usize) -> Reply {
        self.parts.truncate(messages);
        self
    }

    /// Falls silent after this many messages of the stream.
    #[must_use]
    pub fn hang_after(mut self, messages: usize) -> Reply {
        self.parts.truncate(messages);
        Reply { end: End::Hang, ..self }
    }

    /// Sends the stream in pieces of this many bytes, wherever they cut.
    #[must_use]
    pub fn in_pieces(self, bytes: usize) -> Reply {
        Reply { piece: bytes.max(1), ..self }
    }

    fn response(self, open: Open) -> Response {
        let all = self.parts.concat().into_bytes();
        let mut pieces: Vec<Result<Bytes, std::io::Error>> =
            all.chunks(self.piece).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        if self.end == End::Cut {
            pieces.push(Err(std::io::Error::other("cut")));
        }
        // Each piece leaves by itself, and a cut does not overtake what was sent before it.
        let pieces = futures::stream::iter(pieces).then(|piece| async {
            tokio::task::yield_now().await;
            piece
        });
        let stream = match self.end {
            End::Hang => pieces.chain(futures::stream::pending()).boxed(),
            End::Regular | End::Cut => pieces.boxed(),
        };
        let mut response = Response::new(Body::from_stream(Counted { stream, _open: open }));
        *response.status_mut() = StatusCode::from_u16(self.status).expect("the test names a real status");
        for (name, value) in self.headers {
            response.headers_mut().insert(name, value.parse().expect("the test names a real header"));
        }
        response
    }
}

/// The first event of a stream.
pub fn start() -> Value {
    json!({"type": "message_start", "message": {"id": "msg_fake", "type": "message", "role": "assistant", "model": "m",
        "content": [], "stop_reason": null, "usage": {"input_tokens": 11, "output_tokens": 1,
            "cache_read_input_tokens": 3, "cache_creation_input_tokens": 5,
            "cache_creation": {"ephemeral_5m_input_tokens": 5, "ephemeral_1h_input_tokens": 0}}}})
}

/// The events of one block.
pub fn block_events(index: usize, mut block: Value) -> Vec<Value> {
    let delta = |delta: Value| json!({"type": "content_block_delta", "index": index, "delta": delta});
    let mut deltas = Vec::new();
    match block["type"].as_str().unwrap_or_default() {
        "text" => {
            for piece in halves(block["text"].take()) {
                deltas.push(delta(json!({"type": "text_delta", "text": piece})));
            }
            block["text"] = "".into();
        }
        "thinking" => {
            for piece in halves(block["thinking"].take()) {
                deltas.push(delta(json!({"type": "thinking_delta", "thinking": piece})));
            }
            deltas.push(delta(json!({"type": "signature_delta", "signature": block["signature"].take()})));
            block["thinking"] = "".into();
            block["signature"] = "".into();
        }
        "tool_use" => {
            let input = std::mem::replace(&mut block["input"], json!({}));
            // A call without arguments comes with one empty delta.
            let input = if input == json!({}) { Value::from("") } else { Value::from(input.to_string()) };
            for piece in halves(input) {
                deltas.push(delta(json!({"type": "input_json_delta", "partial_json": piece})));
            }
        }
        _ => {}
    }
    let mut events = vec![json!({"type": "content_block_start", "index": index, "content_block": block})];
    events.extend(deltas);
    events.push(json!({"type": "content_block_stop", "index": index}));
    events
}

fn halves(text: Value) -> [String; 2] {
    let text: Vec<char> = text.as_str().unwrap_or_default().chars().collect();
    let (first, second) = text.split_at(text.len() / 2);
    [first.iter().collect(), second.iter().collect()]
}

/// A request that arrived.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Its headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Its body.
    pub body: Value,
}

#[derive(Debug)]
struct Shared {
    replies: Mutex<VecDeque<Reply>>,
    asked: Mutex<Vec<Asked>>,
    open: watch::Sender<usize>,
}

/// The running fake. Dropping it closes its socket.
#[derive(Debug)]
pub struct MessagesServer {
    base_url: String,
    shared: Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for MessagesServer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl MessagesServer {
    /// Starts a fake that gives these replies in order, and 400 after the last.
    pub async fn start(replies: impl IntoIterator<Item = Reply>) -> MessagesServer {
        let shared = Arc::new(Shared {
            replies: Mutex::new(replies.into_iter().collect()),
            asked: Mutex::default(),
            open: watch::Sender::new(0),
        });
        let app = Router::new().route("/v1/messages", post(answer)).with_state(shared.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback can be listened on");
        let address = listener.local_addr().expect("a bound socket has an address");
        let server = tokio::spawn(async move {
            // It only ends with an error of the socket, which the test sees as a refused connection.
            let _ = axum::serve(listener, app).await;
        });
        MessagesServer { base_url: format!("http://{address}"), shared, server }
    }

    /// Where it is.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Adds a reply behind the others.
    pub fn push(&self, reply: Reply) {
        self.shared.replies.lock().unwrap_or_else(PoisonError::into_inner).push_back(reply);
    }

    /// What it was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until no response is being sent any more.
    pub async fn until_closed(&self) {
        let mut open = self.shared.open.subscribe();
        let closed = tokio::time::timeout(PATIENCE, open.wait_for(|open| *open == 0)).await;
        closed.expect("a response is still open").expect("the fake is alive");
    }
}

async fn answer(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let open = Open::new(shared.clone());
    let text = |value: &header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let asked = Asked {
        headers: headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
    };
    shared.asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
    let reply = shared.replies.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    reply.unwrap_or_else(|| Reply::error(400, "invalid_request_error", "the fake has no reply left")).response(open)
}

/// Counts a response for as long as it is being sent.
struct Open(Arc<Shared>);

impl Open {
    fn new(shared: Arc<Shared>) -> Open {
        shared.open.send_modify(|open| *open += 1);
        Open(shared)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open -= 1);
    }
}

struct Counted<S> {
    stream: S,
    _open: Open,
}

impl<S: Stream + Unpin> Stream for Counted<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        self.stream.poll_next_unpin(context)
    }
}
