//! The one way out that the demo's policy allows: to a service that knows its callers by a credential, which no sandbox has.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, HOST};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use palisade_audit::Filter;
use palisade_egress::policy::Policies;
use palisade_egress::proxy::Resolver;
use palisade_vault::{Surroundings, SystemClock};
use palisade_worker::{Credentials, Egress, EgressOptions};
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::evidence::Check;
use crate::commands::egress;
use crate::output::{Context as _, Outcome};

/// How the vault knows the credential.
const CREDENTIAL: &str = "DEMO_CREDENTIAL";

/// A service on the host's loopback. It answers whoever asks, and repeats what it was shown, as careless ones do. It ends when
/// this is dropped.
pub(super) struct Service {
    pub(super) port: u16,
    seen: Arc<Seen>,
    _tasks: JoinSet<()>,
}

/// What came to the service.
#[derive(Default)]
struct Seen {
    /// Requests with the credential.
    known: AtomicU64,
    /// Requests that no rule allows, or without the credential.
    others: AtomicU64,
}

impl Service {
    /// Starts one that knows its callers by this credential.
    pub(super) async fn start(credential: &str) -> Outcome<Service> {
        let what = "the service that the sandbox may reach cannot be started";
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context(what)?;
        let port = listener.local_addr().context(what)?.port();
        let seen = Arc::new(Seen::default());
        let (counts, shown) = (seen.clone(), format!("Bearer {credential}"));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, counts.clone(), shown.clone()));
            }
        });
        Ok(Service { port, seen, _tasks: tasks })
    }

    /// What must hold of what came.
    pub(super) fn checks(&self) -> [Check; 2] {
        let (known, others) = (self.seen.known.load(Ordering::SeqCst), self.seen.others.load(Ordering::SeqCst));
        [
            Check::nothing(
                "the service outside was shown the credential, which no sandbox has",
                (known == 0).then(|| "no request came with it".to_owned()),
            ),
            Check::nothing(
                "nothing else came to it",
                (others > 0).then(|| format!("{others} requests that no rule allows")),
            ),
        ]
    }
}

async fn serve(stream: TcpStream, seen: Arc<Seen>, shown: String) {
    let answer = |request: Request<Incoming>| {
        let authorization = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let authorization = authorization.unwrap_or_default().to_owned();
        let host = request.headers().get(HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let named = host.split(':').next() == Some("api.demo.test");
        let known = named && authorization == shown && request.method() == Method::GET;
        if known { &seen.known } else { &seen.others }.fetch_add(1, Ordering::SeqCst);
        let whom = if known { "the owner of the credential" } else { "a stranger" };
        let body = format!("demo-service: hello, {whom}; your header was `{authorization}`\n");
        async move { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(body)))) }
    };
    let server = hyper::server::conn::http1::Builder::new();
    // A connection that breaks off is its caller's affair.
    let _ = server.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
}

/// Finds the names of the demo, on this machine.
#[derive(Debug)]
struct Names;

#[async_trait]
impl Resolver for Names {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        match name {
            "api.demo.test" | "files.demo.test" => Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]),
            _ => Err(io::Error::new(io::ErrorKind::NotFound, "no such name")),
        }
    }
}

/// The egress service: two names of the service may be asked, the credential belongs to one of them.
pub(super) async fn egress(port: u16, environment: &str, credential: &str, dir: &Path) -> Outcome<Arc<Egress>> {
    let what = "the egress service cannot be started";
    let policy = format!(
        "environments:\n  {environment}:\n    rules:\n      - {{name: demo, host: [api.demo.test, files.demo.test], address: \
         127.0.0.0/8, ports: {port}, tls: optional, methods: [GET]}}\n"
    );
    // Without TLS only so that the demo needs no client for it: a credential goes out in the clear nowhere else.
    let list = format!(
        "sources: {{env: {{variables: [{CREDENTIAL}]}}}}\ncredentials:\n  - display_name: demo\n    auth: {{type: \
         environment_variable, secret_name: DEMO_TOKEN, secret_value: {{from: 'env:{CREDENTIAL}'}}, networking: {{type: limited, \
         allowed_hosts: [api.demo.test]}}}}\n    use: {{cleartext: true}}\n"
    );
    let credential = credential.to_owned();
    let surroundings = Surroundings::new(move |name| (name == CREDENTIAL).then(|| credential.clone().into()));
    let options = EgressOptions {
        policies: Policies::parse(&policy).context(what)?,
        credentials: Credentials::parse(&list, &surroundings, Arc::new(SystemClock::new())).context(what)?,
        identity: None,
        upstream_ca: None,
        resolver: Some(Arc::new(Names)),
        state: dir.to_owned(),
        trail: trail(dir),
        now: egress::now,
    };
    tokio::task::spawn_blocking(move || Egress::open(options)).await.context(what)?.context(what)
}

fn trail(dir: &Path) -> std::path::PathBuf {
    dir.join("audit")
}

/// What the audit trail has of the session's way out.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub(super) struct Audited {
    /// Connections, requests and names that were allowed.
    pub(super) allowed: u64,
    /// Those that were refused.
    pub(super) refused: u64,
    /// Refused ones that had a placeholder where it does not belong.
    pub(super) alerts: u64,
}

/// Whether the trail is whole, and has what was tried. The worker must have ended.
pub(super) fn audited(dir: &Path) -> (Audited, Check) {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Begin {
        kind: String,
        to: String,
        method: String,
        allowed: bool,
        credentials: Vec<String>,
        alert: bool,
    }
    let mut audited = Audited::default();
    // The request with the credential, the host that no rule names, the method, and the placeholder at another host.
    let mut seen = [false; 4];
    let mut read = || -> Result<(), String> {
        let report = palisade_audit::verify(&trail(dir)).map_err(|why| why.to_string())?;
        if !report.intact() {
            return Err("it does not verify".to_owned());
        }
        let records = palisade_audit::read(&trail(dir), Filter::default()).map_err(|why| why.to_string())?;
        for record in records {
            let record = record.map_err(|why| why.to_string())?;
            if record.kind != "egress.begin" {
                continue;
            }
            let begin: Begin = serde_json::from_str(record.body.get()).map_err(|why| why.to_string())?;
            *if begin.allowed { &mut audited.allowed } else { &mut audited.refused } += 1;
            audited.alerts += u64::from(begin.alert);
            let refused = begin.kind == "request" && !begin.allowed;
            seen[0] |= begin.kind == "request" && begin.allowed && !begin.credentials.is_empty();
            seen[1] |= refused && begin.method == "GET" && !begin.alert;
            seen[2] |= refused && begin.method == "DELETE";
            seen[3] |= refused && begin.alert && begin.to.starts_with("files.demo.test:");
        }
        Ok(())
    };
    let mut found = read().err();
    if found.is_none() && !seen.iter().all(|seen| *seen) {
        found = Some(format!("something is missing: {seen:?}"));
    }
    (
        audited,
        Check::nothing("the audit trail verifies, and has what was allowed, refused and raised as an alert", found),
    )
}
