//! The way out of a session's sandbox: its policy, its credentials, and what is kept of what went out.
//!
//! [`Egress`] is the worker's; each session has a [`Way`], with placeholders of its own; each of its sandboxes is led to a
//! service of its own, with a certificate authority of its own.

mod fetch;
mod identity;
mod refused;
mod revoked;
mod ssh;
mod supply;
mod trail;
mod trust;
mod usage;

use std::fmt;
use std::io::{self, Read as _};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use palisade_api::Timestamp;
use palisade_audit::ArchiveError;
use palisade_checkpoint::{Durable, write_whole};
use palisade_egress::broker::{Broker, BrokerError, Fetch, Mint};
use palisade_egress::policy::{Policies, Policy, Subject};
use palisade_egress::proxy::{self, Listeners, PrepareError, Prepared, Resolver, Service, ServiceError, SessionSpec};
use palisade_egress::ssh::SshKey;
use palisade_sandbox::{Given, Sockets};
use palisade_vault::identity::Identity;
use palisade_vault::{LeaseLeft, Reference, Vault};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use zeroize::Zeroizing;

use fetch::Direct;
use identity::Identities;
use revoked::Revoked;
use trail::Kept;
use trust::Trust;

pub use identity::{IdentitiesError, IdentityConfig, TokenConfig};
pub use supply::{Credentials, CredentialsError, Described};

/// How the worker's egress service is set up.
#[derive(Debug)]
pub struct EgressOptions {
    /// What may go out, for which environment and agent.
    pub policies: Policies,
    /// What sessions may use.
    pub credentials: Credentials,
    /// Who signs identities of sessions, and the directory of its keys; nobody when absent.
    pub identity: Option<(IdentityConfig, PathBuf)>,
    /// Certificate authorities (PEM) of upstreams besides the system's.
    pub upstream_ca: Option<PathBuf>,
    /// Finds the addresses of upstreams; the machine's own names and resolvers when absent.
    pub resolver: Option<Arc<dyn Resolver>>,
    /// The directory of what outlives the process: the key by which the placeholders of this worker are known, and what was revoked.
    pub state: PathBuf,
    /// The directory of the audit trail.
    pub trail: PathBuf,
    /// The time, for records and certificates.
    pub now: fn() -> SystemTime,
}

/// The worker's egress service.
pub struct Egress {
    service: Service,
    policies: Policies,
    credentials: Credentials,
    vault: Vault,
    revoked: Revoked,
    /// Keeps leases up while the service lives.
    tending: Mutex<Option<AbortOnDropHandle<()>>>,
    /// Where a credential needs requests of the broker's own.
    fetch: Option<Arc<dyn Fetch>>,
    mint: Mint,
    identities: Option<Arc<Identities>>,
    trail: palisade_audit::Trail,
    trust: Trust,
    now: fn() -> SystemTime,
}

impl fmt::Debug for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Egress").field("trail", &self.trail).finish_non_exhaustive()
    }
}

/// Why the egress service cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file of authorities cannot be used.
    #[error("the certificate authorities in {path} cannot be used: {cause}", path = path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// The trail cannot be opened.
    #[error(transparent)]
    Trail(#[from] palisade_audit::OpenError),
    /// The service cannot be set up.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// Placeholders cannot be made.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// What was revoked is not known.
    #[error("{path}, which says what was revoked, cannot be read: {cause}. Mend it, or remove it to allow everything again", path = path.display())]
    Revoked {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: io::Error,
    },
    /// The key of placeholders cannot be kept.
    #[error("the key of placeholders, {path}, cannot be used: {cause}", path = path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: io::Error,
    },
    /// Identities cannot be signed.
    #[error(transparent)]
    Identities(#[from] IdentitiesError),
    /// A credential's value comes from nowhere.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The broker's own requests cannot be made.
    #[error("GitHub cannot be reached for its apps: {0}")]
    Fetch(String),
}

/// Why a sandbox has no way out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WayError {
    /// Its certificate authority cannot be made.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// What it is given cannot be written.
    #[error("what the sandbox is to trust cannot be written: {0}")]
    Trust(io::Error),
    /// Its sockets cannot be served.
    #[error("the sandbox's sockets cannot be served: {0}")]
    Serve(io::Error),
    /// It has none.
    #[error("the sandbox's network leads nowhere")]
    NoSockets,
}

/// Whose session it is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Whose {
    pub(crate) session: String,
    pub(crate) environment: String,
    pub(crate) agent: Option<String>,
    pub(crate) agent_name: Option<String>,
    pub(crate) agent_version: Option<String>,
    /// The vaults that the session names, in its order.
    pub(crate) vaults: Vec<String>,
}

impl Egress {
    /// Sets the service up, on a runtime that it then keeps leases up with. Blocks while the trail is verified.
    ///
    /// # Errors
    /// When the trail does not verify, or there is nothing to check upstreams by.
    pub fn open(options: EgressOptions) -> Result<Arc<Egress>, OpenError> {
        let EgressOptions { policies, credentials, identity, upstream_ca, resolver, state, trail, now } = options;
        let trust = Trust::open(upstream_ca.as_deref())?;
        let clock = Arc::new(move || Timestamp::from(now()));
        let trail = palisade_audit::Trail::open(&trail, palisade_audit::Options::new(clock))?;
        let mut service = proxy::Options::new(Arc::new(Kept::new(trail.clone(), now())), Arc::new(trust.roots()));
        if let Some(resolver) = resolver {
            service.resolver = resolver;
        }
        if policies.observes() {
            tracing::warn!(
                "a section of the egress policy observes: what it would refuse goes out; this is not for production"
            );
        }
        let identities = identity.map(|(config, directory)| Identities::open(config, &directory, now)).transpose()?;
        let identities = identities.map(Arc::new);
        credentials.check()?;
        let fetch = credentials.fetches().then(|| Direct::new(upstream_ca.as_deref())).transpose();
        let fetch = fetch.map_err(OpenError::Fetch)?.map(|direct| Arc::new(direct) as Arc<dyn Fetch>);
        let vault = credentials.vault();
        let revoked = Revoked::open(&state, &vault)?;
        let tending = tokio::spawn({
            let vault = vault.clone();
            async move { vault.run().await }
        });
        Ok(Arc::new(Egress {
            service: Service::new(service)?,
            policies,
            credentials,
            vault,
            revoked,
            tending: Mutex::new(Some(AbortOnDropHandle::new(tending))),
            fetch,
            mint: mint(&state)?,
            identities,
            trail,
            trust,
            now,
        }))
    }

    /// The trail of what went out.
    pub fn trail(&self) -> &palisade_audit::Trail {
        &self.trail
    }

    /// Moves what is older than this out of the trail.
    pub(crate) async fn archive(&self, older: Duration, to: &Path) -> Result<palisade_audit::Archived, ArchiveError> {
        let before = (self.now)().checked_sub(older).unwrap_or(SystemTime::UNIX_EPOCH);
        self.trail.archive(Timestamp::from(before), to).await
    }

    /// Takes secrets from all sessions, from the next request on. Also says whether that holds when the worker starts anew.
    pub(crate) async fn revoke(&self, references: &[Reference]) -> (Vec<LeaseLeft>, Result<(), String>) {
        self.revoked.revoke(references).await
    }

    /// Undoes it; what was revoked stays in the list.
    pub(crate) async fn allow(&self, references: &mut Vec<Reference>) -> Result<(), String> {
        self.revoked.allow(references).await
    }

    /// The credentials that there are.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The vault behind the credentials.
    pub fn vault(&self) -> &Vault {
        &self.vault
    }

    /// The way out of a session. None when nothing may go out: its sandboxes then have no network at all.
    pub(crate) async fn way(self: &Arc<Egress>, whose: &Whose) -> Result<Option<Way>, String> {
        let subject = Subject {
            environment: &whose.environment,
            agent: whose.agent.as_deref(),
            agent_name: whose.agent_name.as_deref(),
        };
        let policy = self.policies.for_session(&subject);
        if policy.is_none() {
            return Ok(None);
        }
        let (mut credentials, ssh_keys) = self.credentials.of(&self.vault, whose, self.fetch.as_ref())?;
        let mut identity = None;
        if let Some(identities) = &self.identities {
            let (own, tokens) = identities.of(whose).map_err(|why| why.to_string())?;
            credentials.extend(tokens);
            identity = Some(own);
        }
        let broker = Broker::prepare(&self.mint, &whose.session, credentials).await.map_err(|why| why.to_string())?;
        Ok(Some(Way {
            egress: self.clone(),
            session: whose.session.clone(),
            policy: Arc::new(policy),
            broker: Arc::new(broker),
            ssh_keys,
            identity,
        }))
    }

    /// Serves what others need of it, the keys of identities, until it is told to stop.
    ///
    /// # Errors
    /// When the address cannot be listened at.
    pub(crate) async fn serve(
        &self,
        stop: CancellationToken,
    ) -> Result<Option<impl Future<Output = ()> + Send + use<>>, IdentitiesError> {
        let Some(identities) = &self.identities else { return Ok(None) };
        let Some((address, serving)) = identities.serve(stop).await? else { return Ok(None) };
        tracing::info!(%address, "serving the keys of identities");
        Ok(Some(serving))
    }

    /// Ends what the worker still holds of others: leases are revoked, the trail is complete.
    pub async fn close(&self) {
        // Ended before the vault is closed, so that no lease is renewed that has just been given back.
        let tending = self.tending.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(tending) = tending {
            tending.abort();
            let _ = tending.await;
        }
        for left in self.vault.close().await {
            tracing::warn!(?left, "a lease could not be revoked; it ends by itself");
        }
        self.trail.close().await;
    }
}

/// One session's way out.
#[derive(Debug)]
pub(crate) struct Way {
    egress: Arc<Egress>,
    session: String,
    policy: Arc<Policy>,
    broker: Arc<Broker>,
    ssh_keys: Vec<SshKey>,
    identity: Option<Identity>,
}

/// What one sandbox is told of its way out.
pub(crate) struct Told {
    prepared: Prepared,
    session: String,
    trail: palisade_audit::Trail,
    ssh_agent: Option<UnixListener>,
    pub(crate) given: Vec<Given>,
    pub(crate) env: Vec<(String, String)>,
}

impl Way {
    /// For one sandbox: what it is to be given, before it is made. Blocks for a moment.
    pub(crate) fn prepare(&self, directory: &Path) -> Result<Told, WayError> {
        let prepared = self.egress.service.prepare(SessionSpec {
            session: self.session.clone(),
            policy: self.policy.clone(),
            broker: self.broker.clone(),
            ssh_keys: self.ssh_keys.clone(),
            now: (self.egress.now)(),
        })?;
        let mut given = self.egress.trust.write(directory, prepared.ca_pem()).map_err(WayError::Trust)?;
        let mut env = trust::environment();
        let mut ssh_agent = None;
        if !self.ssh_keys.is_empty() {
            let ssh = ssh::prepare(directory, &self.ssh_keys).map_err(WayError::Trust)?;
            given.extend(ssh.given);
            env.extend(ssh.env);
            ssh_agent = Some(ssh.agent);
        }
        env.extend(self.broker.environment());
        let (session, trail) = (self.session.clone(), self.egress.trail.clone());
        Ok(Told { prepared, session, trail, ssh_agent, given, env })
    }

    /// The session has ended: it gets no value any more.
    pub(crate) async fn end(&self) {
        if let Some(identity) = &self.identity {
            identity.end();
        }
        for left in self.egress.vault.end_session(&self.session).await {
            tracing::warn!(session = self.session, ?left, "a lease could not be revoked; it is tried again");
        }
    }
}

/// A sandbox that is led to the service.
pub(crate) struct Led {
    session: proxy::Session,
    refused: JoinHandle<()>,
}

impl Told {
    /// Serves the sandbox's sockets.
    pub(crate) fn serve(self, sockets: Option<Sockets>) -> Result<Led, WayError> {
        let Sockets { proxy, caught, resolver_tcp, resolver_udp, refused } = sockets.ok_or(WayError::NoSockets)?;
        let listeners = Listeners {
            proxy: TcpListener::from(proxy),
            transparent: TcpListener::from(caught),
            dns_tcp: TcpListener::from(resolver_tcp),
            dns_udp: UdpSocket::from(resolver_udp),
            ssh_agent: self.ssh_agent,
        };
        let refused = refused::listen(refused, self.trail, self.session).map_err(WayError::Serve)?;
        let session = self.prepared.serve(listeners).map_err(WayError::Serve)?;
        Ok(Led { session, refused })
    }
}

impl Led {
    /// What the sandbox has done so far.
    pub(crate) fn counters(&self) -> proxy::Counters {
        self.session.counters()
    }

    /// Ends all of its connections.
    pub(crate) async fn close(self) {
        self.refused.abort();
        self.session.close().await;
    }
}

/// What makes placeholders, with the key that an earlier process left: what that gave out is known, and refused.
fn mint(state: &Path) -> Result<Mint, OpenError> {
    const KEY: &str = "placeholders.key";
    let path = state.join(KEY);
    let wrong = |cause| OpenError::Key { path: path.clone(), cause };
    let mut key = Zeroizing::new([0; 32]);
    match std::fs::File::open(&path) {
        Ok(mut file) => {
            if file.metadata().map_err(wrong)?.permissions().mode() & 0o077 != 0 {
                return Err(wrong(io::Error::other("others may read it; remove it to have a new one made")));
            }
            file.read_exact(&mut *key).map_err(wrong)?;
        }
        Err(why) if why.kind() == io::ErrorKind::NotFound => {
            getrandom::fill(&mut *key).map_err(|why| wrong(io::Error::other(why.to_string())))?;
            write_whole(state, KEY, &*key, Durable::Yes).map_err(|why| wrong(io::Error::other(why)))?;
        }
        Err(why) => return Err(wrong(why)),
    }
    Ok(Mint::from_key(&key))
}

/// The egress service's view of an audit trail, as the worker has it: what to measure the service with, outside of a worker.
pub fn egress_trail(trail: palisade_audit::Trail, now: SystemTime) -> Arc<dyn palisade_egress::Trail> {
    Arc::new(Kept::new(trail, now))
}
