//! One session: its listeners, its connections, and how it ends.

use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ca::{Ca, CaError, Constraints};
use super::evidence::{Asked, Counters, Record, Tally, count};
use super::fault::Fault;
use super::pool::Pool;
use super::{Common, agent, connection, copy, explicit, resolver, tls};
use crate::broker::Broker;
use crate::dns::Names;
use crate::policy::{Budgets, Policy, Reason};
use crate::ssh::{Live, SshKey};

/// Records that a listener of the live tail may be behind before it loses the oldest.
const TAIL: usize = 256;
/// How often connections to the outside that nobody uses are looked for.
const SWEEP: Duration = Duration::from_secs(15);

/// What one session is.
#[derive(Debug)]
pub struct SessionSpec {
    /// Its id, for the trail.
    pub session: String,
    /// What may leave.
    pub policy: Arc<Policy>,
    /// Its credentials.
    pub broker: Arc<Broker>,
    /// Its keys for SSH.
    pub ssh_keys: Vec<SshKey>,
    /// The time, for its certificates.
    pub now: SystemTime,
}

/// The sockets of a session, made in its own network namespace: who calls is known by them.
#[derive(Debug)]
pub struct Listeners {
    /// An HTTP proxy, for programs that know of one.
    pub proxy: StdTcpListener,
    /// Connections that were redirected here.
    pub transparent: StdTcpListener,
    /// DNS over TCP.
    pub dns_tcp: StdTcpListener,
    /// DNS over UDP.
    pub dns_udp: StdUdpSocket,
    /// The SSH agent, at a place that only this session's sandbox reaches; none where there are no keys.
    pub ssh_agent: Option<StdUnixListener>,
}

/// A session that has its certificate authority, which must be in the sandbox before anything runs there.
#[derive(Debug)]
pub struct Prepared {
    shared: Arc<Shared>,
}

/// A session that is served. Its tasks end when it is closed; when it is dropped they end too, but nobody waits for it.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
}

/// What all tasks of a session share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) id: String,
    pub(super) policy: Arc<Policy>,
    pub(super) broker: Arc<Broker>,
    pub(super) ssh_keys: Vec<SshKey>,
    /// Hosts that have shown who they are.
    pub(super) hosts: Live,
    pub(super) budgets: Budgets,
    pub(super) names: Names,
    pub(super) ca: Ca,
    pub(super) client: tls::Client,
    pub(super) pool: Pool,
    pub(super) tally: Tally,
    pub(super) live: broadcast::Sender<Arc<Record>>,
    pub(super) common: Arc<Common>,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
    slots: Arc<Semaphore>,
}

/// A session could not begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// It has no certificate authority.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// It cannot speak TLS to the outside.
    #[error("TLS to the outside cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// A place among the connections of a session, for as long as it is kept.
#[derive(Debug, Clone)]
pub(super) struct Slot(#[expect(dead_code, reason = "held, not read")] Arc<Held>);

#[derive(Debug)]
struct Held {
    shared: Arc<Shared>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.tally.open.fetch_sub(1, Relaxed);
    }
}

impl Prepared {
    pub(super) fn new(common: Arc<Common>, spec: SessionSpec) -> Result<Prepared, PrepareError> {
        let constraints = Constraints::new(&spec.policy, &spec.broker);
        let shared = Shared {
            ca: Ca::new(&constraints, spec.now, &common.provider)?,
            client: tls::Client::new(&common.verifier, &common.provider)?,
            budgets: Budgets::new(&spec.policy, Instant::now()),
            id: spec.session,
            policy: spec.policy,
            broker: spec.broker,
            ssh_keys: spec.ssh_keys,
            hosts: Live::default(),
            names: Names::new(),
            pool: Pool::new(common.limits.upstream_idle),
            tally: Tally::default(),
            live: broadcast::channel(TAIL).0,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            slots: Arc::new(Semaphore::new(common.limits.connections)),
            common,
        };
        Ok(Prepared { shared: Arc::new(shared) })
    }

    /// The certificate of the session's authority, for the trust stores of the sandbox.
    pub fn ca_pem(&self) -> &str {
        self.shared.ca.pem()
    }

    /// Serves the sockets. Called within a Tokio runtime, on which all of the session's tasks run.
    pub fn serve(self, listeners: Listeners) -> io::Result<Session> {
        let shared = self.shared;
        let tcp = |listener: StdTcpListener| {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        };
        let (proxy, transparent) = (tcp(listeners.proxy)?, tcp(listeners.transparent)?);
        let dns_tcp = tcp(listeners.dns_tcp)?;
        listeners.dns_udp.set_nonblocking(true)?;
        let dns_udp = UdpSocket::from_std(listeners.dns_udp)?;
        shared.spawn(accept(Arc::clone(&shared), transparent, Kind::Transparent));
        shared.spawn(accept(Arc::clone(&shared), proxy, Kind::Proxy));
        shared.spawn(accept(Arc::clone(&shared), dns_tcp, Kind::Dns));
        shared.spawn(resolver::datagrams(Arc::clone(&shared), dns_udp));
        if let Some(agent) = listeners.ssh_agent {
            agent.set_nonblocking(true)?;
            shared.spawn(agent::serve(Arc::clone(&shared), UnixListener::from_std(agent)?));
        }
        shared.spawn(sweep(Arc::clone(&shared)));
        Ok(Session { shared })
    }
}

impl Session {
    /// What it has done so far.
    pub fn counters(&self) -> Counters {
        self.shared.tally.counters()
    }

    /// What ends from now on. A listener that is more than 256 records behind loses the oldest and is told how many
    /// ([`broadcast::error::RecvError::Lagged`]): the trail is what keeps everything.
    pub fn tail(&self) -> broadcast::Receiver<Arc<Record>> {
        self.shared.live.subscribe()
    }

    /// The certificate of the session's authority.
    pub fn ca_pem(&self) -> &str {
        self.shared.ca.pem()
    }

    /// Closes all of its connections and waits until its tasks have ended and their outcomes are with the trail.
    pub async fn close(self) {
        self.shared.stop.cancel();
        self.shared.pool.clear();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        self.shared.pool.clear();
        self.shared.tasks.close();
    }
}

impl Shared {
    /// Runs a task of the session until it ends or the session does.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }

    fn slot(self: &Arc<Self>) -> Option<Slot> {
        let permit = Arc::clone(&self.slots).try_acquire_owned().ok()?;
        count(&self.tally.connections);
        count(&self.tally.open);
        Some(Slot(Arc::new(Held { shared: Arc::clone(self), _permit: permit })))
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Transparent,
    Proxy,
    Dns,
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, kind: Kind) {
    let local = listener.local_addr().ok();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Of one connection (it is gone already), or of the process (it has no more descriptors): both pass.
                tracing::warn!(%error, session = shared.id, "a connection could not be taken");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection was gone before it was served");
            continue;
        }
        let Some(slot) = shared.slot() else {
            // Waited for, so that whoever floods is slowed down.
            too_many(&shared, stream, kind).await;
            continue;
        };
        let task = Arc::clone(&shared);
        match kind {
            Kind::Transparent => shared.spawn(connection::transparent(task, stream, local, slot)),
            Kind::Proxy => shared.spawn(explicit::serve(task, stream, slot)),
            Kind::Dns => shared.spawn(resolver::stream(task, stream, slot)),
        }
    }
}

async fn too_many(shared: &Arc<Shared>, stream: TcpStream, kind: Kind) {
    let to = match kind {
        Kind::Transparent => (shared.common.destination)(&stream).ok(),
        Kind::Proxy | Kind::Dns => None,
    };
    let to = to.map_or_else(|| "unknown".to_owned(), |to: SocketAddr| to.to_string());
    let most = shared.common.limits.connections;
    let message = format!("the session has {most} open connections, the most that it may have. Close some of them");
    let fault = shared.refuse(Asked::connect(to, "tcp"), Fault::refused(Reason::TooManyConnections, message)).await;
    if matches!(kind, Kind::Proxy) {
        explicit::say(&stream, &fault);
    } else {
        copy::reset(stream);
    }
}

async fn sweep(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        shared.pool.sweep();
    }
}
