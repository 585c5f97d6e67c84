//! The session's SSH agent, and what it knows of hosts: see [`crate::ssh`].

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use palisade_api::Secret;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::evidence::Asked;
use super::fault::Fault;
use super::session::Shared;
use crate::broker::Misuse;
use crate::name::Authority;
use crate::policy::{Reason, RuleName};
use crate::ssh::{
    Authentication, Bind, Opening, Proof, Request, Sign, Signed as _, SshKey, SshKeyError, answer, public_key, sign,
};

/// Clients at a time. Others wait.
const CLIENTS: usize = 16;
/// The longest request, in bytes.
const MOST: usize = 64 << 10;

/// Serves whoever connects, until the session ends.
pub(super) async fn serve(shared: Arc<Shared>, listener: UnixListener) {
    let room = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let client = client(Arc::clone(&shared), stream);
                shared.spawn(async move {
                    let ended = client.await;
                    tracing::debug!(?ended, "a client of the SSH agent has left");
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, session = shared.id, "a client of the SSH agent could not be taken");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// What a client has said its requests are for.
enum Bound {
    /// Nothing yet.
    Not,
    /// A connection that nothing is signed for.
    Nowhere,
    /// This one.
    To { proof: Weak<Proof>, session: Vec<u8> },
}

async fn client(shared: Arc<Shared>, mut stream: UnixStream) -> io::Result<()> {
    let mut bound = Bound::Not;
    loop {
        let length = usize::try_from(stream.read_u32().await?).unwrap_or(usize::MAX);
        if length > MOST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut message = vec![0; length];
        stream.read_exact(&mut message).await?;
        let answer = match Request::read(&message) {
            Request::Identities => identities(&shared, &bound).await,
            Request::Bind(wanted) => bind(&shared, &mut bound, &wanted),
            Request::Sign(wanted) => signature(&shared, &bound, &wanted).await,
            Request::Other => answer::failure(),
        };
        stream.write_all(&answer).await?;
    }
}

/// Whether a key is for this host, by its name and by the key that it has shown.
fn is_for(key: &SshKey, proof: &Proof) -> bool {
    key.hosts.matches(&proof.to) && key.host_keys.iter().any(|host| host.is(&proof.shown.key))
}

fn bind(shared: &Shared, bound: &mut Bound, wanted: &Bind<'_>) -> Vec<u8> {
    if !matches!(bound, Bound::Not) {
        return answer::failure();
    }
    let proof = shared.hosts.find(wanted).filter(|_| !wanted.forwarding && wanted.is_signed());
    match proof.filter(|proof| shared.ssh_keys.iter().any(|key| is_for(key, proof))) {
        Some(proof) => {
            *bound = Bound::To { proof: Arc::downgrade(&proof), session: wanted.session.to_vec() };
            answer::success()
        }
        None => {
            *bound = Bound::Nowhere;
            answer::failure()
        }
    }
}

/// The keys that a client may try: all of them, before it says what for.
async fn identities(shared: &Shared, bound: &Bound) -> Vec<u8> {
    let proof = match bound {
        Bound::Not => None,
        Bound::Nowhere => return answer::identities(&[]),
        Bound::To { proof, .. } => match proof.upgrade() {
            Some(proof) => Some(proof),
            None => return answer::identities(&[]),
        },
    };
    let mut keys = Vec::new();
    for key in shared.ssh_keys.iter().filter(|key| proof.as_ref().is_none_or(|proof| is_for(key, proof))) {
        match value(key).await.and_then(|value| public_key(&value).map_err(|why| unusable(key, why))) {
            Ok(public) => keys.push((public, &*key.reference)),
            Err(fault) => tracing::warn!(session = shared.id, "an SSH key is left out: {fault}"),
        }
    }
    answer::identities(&keys)
}

async fn value(key: &SshKey) -> Result<Arc<Secret>, Fault> {
    key.value.value().await.map_err(|error| Misuse::supply(&key.reference, error).into())
}

fn unusable(key: &SshKey, why: SshKeyError) -> Fault {
    let message = format!("the value of credential {} cannot be used as an SSH key: {why}", key.reference);
    Fault::refused(Reason::CredentialUnavailable, message)
}

async fn signature(shared: &Arc<Shared>, bound: &Bound, wanted: &Sign<'_>) -> Vec<u8> {
    let (asked, fault) = match decide(shared, bound, wanted).await {
        Ok(Login { key, proof, user, algorithm, value }) => {
            let asked = Asked::signature(format!("{user}@{}", proof.to));
            let entry = asked.allowed(&shared.id, &proof.rule, None, vec![key.reference.clone()]);
            // Kept before it is made. Without a trail nothing is signed.
            let Ok(mut open) = shared.begin(entry).await else { return answer::failure() };
            return match sign(&value, &algorithm, wanted.data) {
                Ok(signature) => {
                    open.outcome.error = None;
                    answer::signature(&signature)
                }
                Err(why) => {
                    open.fail(&unusable(key, why));
                    answer::failure()
                }
            };
        }
        Err(refused) => refused,
    };
    tracing::info!(session = shared.id, reason = fault.code, "a signature for SSH is refused: {}", fault.message);
    shared.refuse(asked, fault).await;
    answer::failure()
}

/// What is signed.
struct Login<'a> {
    key: &'a SshKey,
    /// The connection that it is for.
    proof: Arc<Proof>,
    /// Who logs in there.
    user: String,
    /// How it is to be signed.
    algorithm: Vec<u8>,
    value: Arc<Secret>,
}

/// What is to be signed, if anything.
async fn decide<'a>(shared: &'a Shared, bound: &Bound, wanted: &Sign<'_>) -> Result<Login<'a>, (Asked, Fault)> {
    let loose = |message: &str| (Asked::signature("unknown"), Fault::refused(Reason::SshNotBound, message));
    let (proof, session) = match bound {
        Bound::To { proof, session } => match proof.upgrade() {
            Some(proof) => (proof, session),
            None => return Err(loose("the connection that the signature is for is not open any more")),
        },
        Bound::Nowhere => {
            let message = "no key here is for the host that is connected to, by its name and by the key that it has shown. A \
                           host's keys are those that its credential names";
            return Err(loose(message));
        }
        Bound::Not => {
            let message = "the client does not say which connection it logs in to. Use OpenSSH 8.9 or later";
            return Err(loose(message));
        }
    };
    let misused = |message: &str| {
        (Asked::signature(&proof.to), Fault::refused(Reason::CredentialMisused, format!("refused: {message}")))
    };
    let Some(login) = Authentication::read(wanted.data) else {
        return Err(misused("what is to be signed logs nobody in; nothing else is signed here"));
    };
    if login.session != *session || login.host_key.is_some_and(|key| key != proof.shown.key) {
        return Err(misused("what is to be signed is for another connection than the one it was said to be for"));
    }
    if login.key != wanted.key {
        return Err(misused("what is to be signed names another key than the one that is to sign"));
    }
    let named = |key: &&SshKey| key.users.iter().any(|user| user.as_bytes() == login.user);
    let mut later = None;
    for key in shared.ssh_keys.iter().filter(|key| is_for(key, &proof)).filter(named) {
        match value(key).await.and_then(|value| {
            let public = public_key(&value).map_err(|why| unusable(key, why))?;
            Ok((public, value))
        }) {
            Ok((public, value)) if public == wanted.key => {
                let user = String::from_utf8_lossy(login.user).into_owned();
                return Ok(Login { key, proof, user, algorithm: login.algorithm.to_vec(), value });
            }
            Ok(_) => {}
            Err(fault) => later = Some(fault),
        }
    }
    Err(match later {
        Some(fault) => (Asked::signature(&proof.to), fault),
        None => misused("no key here logs this user in at this host"),
    })
}

/// Listens to a host on a connection that is carried, until it has shown who it is. What it has shown holds for as long as this is
/// kept.
pub(super) struct Watch {
    shared: Arc<Shared>,
    to: Authority,
    rule: RuleName,
    opening: Mutex<Opening>,
    over: AtomicBool,
    proof: OnceLock<Arc<Proof>>,
}

impl Watch {
    /// None where no key is for the host.
    pub(super) fn of(shared: &Arc<Shared>, to: &Authority, rule: &RuleName) -> Option<Watch> {
        shared.ssh_keys.iter().any(|key| key.hosts.matches(to)).then(|| Watch {
            shared: Arc::clone(shared),
            to: to.clone(),
            rule: rule.clone(),
            opening: Mutex::default(),
            over: AtomicBool::new(false),
            proof: OnceLock::new(),
        })
    }

    /// What the host says next, before the client hears it.
    pub(super) fn hear(&self, bytes: &[u8]) {
        if self.over.load(Relaxed) {
            return;
        }
        let mut opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shown) = opening.take(bytes) {
            let proof = Arc::new(Proof { to: self.to.clone(), rule: self.rule.clone(), shown });
            self.shared.hosts.add(&proof);
            // There is one for each connection: only its first opening is in the clear.
            let _ = self.proof.set(proof);
        }
        self.over.store(opening.is_over(), Relaxed);
    }
}
