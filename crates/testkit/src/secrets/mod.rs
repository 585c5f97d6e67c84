//! Fakes of the servers that keep secrets. They hold to the documented shapes, check what they are sent as the real ones do, and
//! fail on demand.

mod aws;
mod aws_roles;
mod azure;
mod google;
mod hashicorp;
mod onepassword;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::Response;
use serde_json::Value;

pub use aws::FakeAws;
pub use aws_roles::{FakeAwsRoles, Lends};
pub use azure::FakeAzure;
pub use google::{FakeGoogle, SERVICE_ACCOUNT_KEY};
pub use hashicorp::FakeHashicorp;
pub use onepassword::FakeOnePassword;

/// The time as the fake's own clock has it.
pub type Now = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// A request as a fake sees it.
#[derive(Debug)]
pub struct Asked {
    /// The method.
    pub method: Method,
    /// The path as it was sent.
    pub path: String,
    /// The query as it was sent.
    pub query: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Asked {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    fn bearer(&self) -> &str {
        self.header("authorization").strip_prefix("Bearer ").unwrap_or_default()
    }

    fn fields(text: &str) -> Vec<(String, String)> {
        let decode =
            |text: &str| percent_encoding::percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        let pair = |part: &str| part.split_once('=').map(|(name, value)| (decode(name), decode(value)));
        text.split('&').filter_map(pair).collect()
    }

    fn field(text: &str, name: &str) -> String {
        Self::fields(text).into_iter().find(|(field, _)| field == name).map(|(_, value)| value).unwrap_or_default()
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    status: u16,
    body: String,
}

impl Answer {
    /// A status and a body.
    pub fn new(status: u16, body: impl Into<String>) -> Self {
        Self { status, body: body.into() }
    }

    fn json(status: u16, body: &Value) -> Self {
        Self::new(status, body.to_string())
    }
}

/// What a fake does with a request.
pub trait Service: Send + Sync + 'static {
    /// Answers one request. `now` is the fake's own time.
    fn answer(&self, asked: &Asked, now: SystemTime) -> Answer;
}

struct Control {
    now: Now,
    fault: Mutex<Option<Answer>>,
    asked: Mutex<Vec<String>>,
}

/// A fake that listens on the loopback address, until it is dropped.
pub struct Fake<S> {
    /// The fake itself, for arranging and looking.
    pub service: Arc<S>,
    url: String,
    control: Arc<Control>,
    task: tokio::task::JoinHandle<()>,
}

impl<S> fmt::Debug for Fake<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fake({})", self.url)
    }
}

impl<S> Drop for Fake<S> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: Service> Fake<S> {
    /// Starts one.
    pub async fn start(service: S, now: Now) -> Self {
        let service = Arc::new(service);
        let control = Arc::new(Control { now, fault: Mutex::default(), asked: Mutex::default() });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("the loopback address is there");
        let url = format!("http://{}", listener.local_addr().expect("it listens"));
        let router = Router::new().fallback(handle::<S>).with_state((service.clone(), control.clone()));
        let task = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Self { service, url, control, task }
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Answers everything with this, until told otherwise.
    pub fn fault(&self, answer: Option<Answer>) {
        *lock(&self.control.fault) = answer;
    }

    /// What was asked so far, as `METHOD /path`.
    pub fn asked(&self) -> Vec<String> {
        lock(&self.control.asked).clone()
    }

    /// How often something was asked whose path ends so.
    pub fn count(&self, end: &str) -> usize {
        self.asked().iter().filter(|asked| asked.ends_with(end)).count()
    }
}

async fn handle<S: Service>(
    State((service, control)): State<(Arc<S>, Arc<Control>)>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let now = (control.now)();
    let (path, query) = (uri.path().to_owned(), uri.query().unwrap_or_default().to_owned());
    let asked = Asked { method, path, query, headers, body };
    lock(&control.asked).push(format!("{} {}", asked.method, asked.path));
    let fault = lock(&control.fault).clone();
    let answer = fault.unwrap_or_else(|| service.answer(&asked, now));
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).expect("a status");
    let date =
        jiff::Timestamp::try_from(now).expect("a time in range").strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    response.headers_mut().insert(header::DATE, date.parse().expect("a header"));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
