//! The egress service, in a process of its own as a worker's is; and how this process finds it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use palisade_api::Secret;
use palisade_egress::broker::{Broker, Credential, Hosts, Mint};
use palisade_egress::policy::Policy;
use palisade_egress::proxy::{Listeners, Options, Resolver, Service, SessionSpec};
use palisade_egress::{Entry, Outcome as Ended, Supply, SupplyError, Trail, TrailError};
use palisade_engine::{Clock as _, SystemClock};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use super::outside::{Outside, Way};
use crate::commands::bench::rig::{Process, palisade};
use crate::commands::egress::now;
use crate::output::{Context as _, Failure, Outcome, Output};

/// Opened; no credential may go there.
pub(super) const READ: &str = "read.test";
/// Opened, and the credential's host.
pub(super) const CREDENTIAL: &str = "credential.test";
/// Carried unread.
pub(super) const PASS: &str = "pass.test";

/// The line that the process says when all sessions are served, before them.
const READY: &str = "ready ";

/// What the process is started with.
#[derive(Debug, Args)]
pub(in super::super) struct ServiceArgs {
    /// So many sessions.
    sessions: usize,
    /// The port of the upstream.
    port: u16,
    /// The certificate of its authority, in base64.
    root: String,
    /// Where the trail is; without one nothing is kept.
    trail: Option<PathBuf>,
}

/// A session, as the process says it.
#[derive(Debug, Serialize, Deserialize)]
struct Served {
    proxy: SocketAddr,
    ca: String,
    placeholder: Option<String>,
}

/// Keeps nothing.
#[derive(Debug, Default)]
pub(super) struct Nowhere(AtomicU64);

#[async_trait]
impl Trail for Nowhere {
    async fn begin(&self, _: &Entry) -> Result<u64, TrailError> {
        Ok(self.0.fetch_add(1, Relaxed))
    }

    async fn end(&self, _: &str, _: u64, _: &Ended) -> Result<(), TrailError> {
        Ok(())
    }
}

/// Every name is this machine.
#[derive(Debug)]
struct Here;

#[async_trait]
impl Resolver for Here {
    async fn resolve(&self, _: &str) -> io::Result<Vec<IpAddr>> {
        Ok(vec![Ipv4Addr::LOCALHOST.into()])
    }
}

/// A value that is at hand.
#[derive(Debug)]
struct Value(Arc<Secret>);

#[async_trait]
impl Supply for Value {
    async fn value(&self) -> Result<Arc<Secret>, SupplyError> {
        Ok(Arc::clone(&self.0))
    }
}

/// The process: serves sessions until it is told to end. Every other session has a credential.
pub(in super::super) async fn serve(args: &ServiceArgs, out: Output) -> Outcome {
    let what = "the egress service of the bench cannot be set up";
    // Whatever becomes of the bench, this goes with it.
    set_parent_process_death_signal(Some(Signal::TERM)).context(what)?;
    let mut terminated = signal(SignalKind::terminate()).context(what)?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(STANDARD.decode(&args.root).context(what)?)).context(what)?;
    let (trail, kept): (Arc<dyn Trail>, _) = match &args.trail {
        Some(directory) => {
            let clock = SystemClock::default();
            let options = palisade_audit::Options::new(Arc::new(move || clock.now()));
            let trail = palisade_audit::Trail::open(directory, options).context(what)?;
            (palisade_worker::egress_trail(trail.clone(), now()), Some(trail))
        }
        None => (Arc::new(Nowhere::default()), None),
    };
    let mut options = Options::new(trail, Arc::new(roots));
    options.resolver = Arc::new(Here);
    let service = Service::new(options).context(what)?;
    let port = args.port;
    let policy = Policy::parse(&format!(
        "rules:\n\
         - {{name: read, host: {READ}, address: 127.0.0.1, ports: {port}, methods: [GET, POST], paths: [/v1/]}}\n\
         - {{name: credential, host: {CREDENTIAL}, address: 127.0.0.1, ports: {port}, methods: [GET], paths: [/v1/]}}\n\
         - {{name: pass, host: {PASS}, address: 127.0.0.1, ports: {port}}}\n"
    ));
    let policy = Arc::new(policy.context(what)?);
    let mint = Mint::new().context(what)?;
    let (mut kept_up, mut told) = (Vec::new(), Vec::new());
    for number in 0..args.sessions {
        let session = format!("sesn_{number}");
        let credentials = if number % 2 == 1 { vec![credential().context(what)?] } else { Vec::new() };
        let broker = Arc::new(Broker::new(&mint, &session, credentials).context(what)?);
        let placeholder = broker.environment().pop().map(|(_, placeholder)| placeholder);
        let spec = SessionSpec { session, policy: Arc::clone(&policy), broker, ssh_keys: Vec::new(), now: now() };
        let prepared = service.prepare(spec).context(what)?;
        let tcp = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let listeners = Listeners {
            proxy: tcp().context(what)?,
            transparent: tcp().context(what)?,
            dns_tcp: tcp().context(what)?,
            dns_udp: UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context(what)?,
            ssh_agent: None,
        };
        let proxy = listeners.proxy.local_addr().context(what)?;
        told.push(Served { proxy, ca: prepared.ca_pem().to_owned(), placeholder });
        kept_up.push(prepared.serve(listeners).context(what)?);
    }
    out.line(format!("{READY}{}", serde_json::to_string(&told).context(what)?));
    drop(told);
    terminated.recv().await;
    for session in kept_up {
        session.close().await;
    }
    if let Some(trail) = kept {
        trail.close().await;
    }
    Ok(ExitCode::SUCCESS)
}

fn credential() -> Result<Credential, palisade_egress::broker::BrokerError> {
    let value = Arc::new(Value(Arc::new(Secret::new("bench-value-2f6d1c0a9b8e7f65"))));
    Ok(Credential::new("cred_bench", "BENCH_TOKEN", Hosts::limited(&[CREDENTIAL])?, value))
}

/// The process as the bench sees it.
pub(super) struct Running {
    pub(super) process: Process,
    sessions: Vec<Served>,
    port: u16,
}

impl Running {
    /// Starts it with so many sessions, and with a trail when there is a directory for one.
    pub(super) async fn start(outside: &Outside, sessions: usize, trail: Option<&Path>) -> Outcome<Running> {
        let port = outside.address().port();
        let mut command = palisade()?;
        command.args(["bench", "egress-service", &sessions.to_string(), &port.to_string()]);
        command.arg(STANDARD.encode(outside.root())).args(trail);
        let (process, told) = Process::start(command, READY).await?;
        let sessions = serde_json::from_str(&told).context("the egress service says what cannot be understood")?;
        Ok(Running { process, sessions, port })
    }

    /// A way through it for a session's client.
    pub(super) fn way(&self, session: usize, host: &'static str, outside: &Outside) -> Outcome<Way> {
        let nothing = || Failure::new("a session of the egress service is not there");
        let served = self.sessions.get(session).ok_or_else(nothing)?;
        let way = Way::new(served.proxy, host, self.port).through(format!("{host}:{}", self.port));
        match host {
            PASS => Ok(way.trusting(outside.root().clone())?),
            _ => Ok(way.trusting_pem(&served.ca)?),
        }
    }

    /// The placeholder of a session's credential.
    pub(super) fn placeholder(&self, session: usize) -> Outcome<&str> {
        let found = self.sessions.get(session).and_then(|served| served.placeholder.as_deref());
        found.ok_or_else(|| Failure::new("a session of the egress service has no credential"))
    }
}
