//! A registry of one process: the pulling half of the distribution API, with tokens, and with faults on demand.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE, WWW_AUTHENTICATE};
use hyper::{Request, Response, StatusCode};
use palisade_image::Digest;

use crate::make::Image;

type Body = BoxBody<Bytes, std::io::Error>;

/// What a registry asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Access {
    #[default]
    Open,
    /// A token for anybody.
    Token,
    /// A token for `user` and `secret`.
    TokenForUser,
    Basic,
}

#[derive(Default)]
pub(crate) struct State {
    /// By `repository:tag` and `repository@digest`.
    pub(crate) manifests: HashMap<String, Vec<u8>>,
    pub(crate) blobs: HashMap<String, Vec<u8>>,
    pub(crate) access: Access,
    /// The address of the token service, if it is not the registry's own.
    pub(crate) realm: Option<String>,
    /// How many answers to a large blob are cut in the middle.
    pub(crate) cuts: usize,
    /// Whether parts of blobs are sent.
    pub(crate) ranges: bool,
    /// How many requests are answered with 503.
    pub(crate) failures: usize,
    /// Whether tokens end after one use.
    pub(crate) short_tokens: bool,
    /// Whether blobs are elsewhere: there, or at this address.
    pub(crate) redirect: Option<String>,
    /// Methods, paths, and ranges, of every request.
    pub(crate) requests: Vec<String>,
    /// Authorizations that came to what blobs are redirected to.
    pub(crate) elsewhere: Vec<bool>,
    tokens: usize,
}

pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    pub(crate) state: Arc<Mutex<State>>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Registry {
    pub(crate) async fn start() -> Registry {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { ranges: true, ..State::default() }));
        let shared = state.clone();
        let server = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let state = shared.clone();
                connections.spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        let answer = answer(&mut state.lock().unwrap(), address, &request);
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    let io = hyper_util::rt::TokioIo::new(stream);
                    // A connection that is cut on purpose ends with an error.
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
                });
            }
        });
        Registry { address, state, server }
    }

    /// Has an image under a tag and its digest.
    pub(crate) fn push(&self, name: &str, image: &Image) {
        let bytes = image.manifest_bytes();
        let mut state = self.state.lock().unwrap();
        let (repository, _) = name.split_once(':').unwrap();
        state.manifests.insert(name.to_owned(), bytes.clone());
        state.manifests.insert(format!("{repository}@{}", Digest::of(&bytes)), bytes);
        for blob in image.blobs() {
            state.blobs.insert(Digest::of(&blob).to_string(), blob);
        }
    }

    pub(crate) fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }
}

fn plain(status: StatusCode, bytes: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(bytes.into()).map_err(|never| match never {}).boxed();
    Response::builder().status(status).body(body).unwrap()
}

fn answer(state: &mut State, address: SocketAddr, request: &Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (authorization, range) = (header(AUTHORIZATION), header(RANGE));
    state.requests.push(
        [Some(format!("{} {path}", request.method())), range.clone()]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(" "),
    );
    if let Some(digest) = path.strip_prefix("/elsewhere/") {
        state.elsewhere.push(authorization.is_some());
        let blob = state.blobs.get(digest).cloned();
        return blob.map_or_else(|| plain(StatusCode::NOT_FOUND, ""), |blob| plain(StatusCode::OK, blob));
    }
    if state.failures > 0 {
        state.failures -= 1;
        return plain(StatusCode::SERVICE_UNAVAILABLE, "");
    }
    // What base64 makes of `user:secret`.
    let basic = authorization.as_deref() == Some("Basic dXNlcjpzZWNyZXQ=");
    if path == "/token" {
        let query = request.uri().query().unwrap_or_default();
        if state.access == Access::TokenForUser && !basic {
            return plain(StatusCode::UNAUTHORIZED, "");
        }
        assert!(query.contains("%3Apull") && !query.contains("push"), "{query}");
        state.tokens += 1;
        return plain(StatusCode::OK, format!("{{\"token\":\"t{}\"}}", state.tokens));
    }
    let realm = state.realm.clone().unwrap_or_else(|| format!("http://{address}/token"));
    let (open, challenge) = match state.access {
        Access::Open => (true, String::new()),
        Access::Basic => (basic, "Basic realm=\"registry\"".to_owned()),
        Access::Token | Access::TokenForUser => (
            authorization.as_deref() == Some(&format!("Bearer t{}", state.tokens)),
            // The registry asks for more than a pull needs.
            format!("Bearer realm=\"{realm}\",service=\"registry\",scope=\"repository:x:pull,push\""),
        ),
    };
    if !open {
        let mut answer = plain(StatusCode::UNAUTHORIZED, "{}");
        answer.headers_mut().insert(WWW_AUTHENTICATE, challenge.parse().unwrap());
        return answer;
    }
    if state.short_tokens {
        state.tokens += 1;
    }
    let rest = path.strip_prefix("/v2/").unwrap_or_default();
    if let Some((repository, selector)) = rest.split_once("/manifests/") {
        let separator = if selector.contains(':') { '@' } else { ':' };
        let Some(bytes) = state.manifests.get(&format!("{repository}{separator}{selector}")) else {
            return plain(StatusCode::NOT_FOUND, "{}");
        };
        let mut answer = plain(StatusCode::OK, bytes.clone());
        answer.headers_mut().insert(CONTENT_TYPE, crate::make::MANIFEST.parse().unwrap());
        return answer;
    }
    let Some((_, digest)) = rest.split_once("/blobs/") else { return plain(StatusCode::NOT_FOUND, "") };
    if let Some(to) = &state.redirect {
        let mut answer = plain(StatusCode::TEMPORARY_REDIRECT, "");
        answer.headers_mut().insert(LOCATION, format!("{to}/elsewhere/{digest}").parse().unwrap());
        return answer;
    }
    let Some(blob) = state.blobs.get(digest).cloned() else { return plain(StatusCode::NOT_FOUND, "") };
    let from = range.filter(|_| state.ranges);
    let from = from.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let (status, from) = from.map_or((StatusCode::OK, 0), |from| (StatusCode::PARTIAL_CONTENT, from));
    let mut answer = if state.cuts > 0 && blob.len() > 10_000 {
        state.cuts -= 1;
        let half = Bytes::copy_from_slice(&blob[from..from + (blob.len() - from) / 2]);
        let broken = async {
            // What came before is sent while there is nothing more to send.
            tokio::task::yield_now().await;
            Err(std::io::Error::other("cut"))
        };
        let body = StreamBody::new(stream::iter([Ok(Frame::data(half))]).chain(stream::once(broken)));
        let answer = Response::builder().status(status).header(CONTENT_LENGTH, blob.len() - from);
        answer.body(BodyExt::boxed(body)).unwrap()
    } else {
        plain(status, blob[from..].to_vec())
    };
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {from}-{}/{}", blob.len() - 1, blob.len());
        answer.headers_mut().insert(CONTENT_RANGE, range.parse().unwrap());
    }
    answer
}
