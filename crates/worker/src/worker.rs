//! The queue's side: poll, claim, hand over, and end in good order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade_checkpoint::Store;
use palisade_sandbox::{Temporary, Workspace};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::client::{CallError, Client, ClientError, ClientOptions, is_loopback};
use crate::egress::IdentitiesError;
use crate::item::{self, Outcome, Shared};
use crate::observe::Observation;
use crate::options::{Checkpoints, Mode, Options};
use crate::pace::{Backoff, between, unit, unix_now};
use crate::perimeter::{Perimeter, Registry};
use crate::ssh::Ssh;
use crate::webhook::{self, WebhookError};
use crate::wire::WorkItem;
use crate::workspace::Base;

/// How long the server may hold a poll, in ms; the protocol's largest.
const BLOCK_MS: u16 = 999;
/// A poll that took this long was held by the server, which therefore answers when there is work: ask again at once.
const HELD: Duration = Duration::from_millis(500);
/// In a drain, items claimed by somebody who has not acknowledged them for this long are taken over.
const DRAIN_RECLAIM_MS: u32 = 2000;
/// How long a shutdown waits for the answer to an open poll.
const LAST_ANSWER: Duration = Duration::from_millis(100);
/// Failed polls that a drain puts up with before it gives up.
const DRAIN_FAILURES: u32 = 4;
/// Poll answers of 404 in a row after which the environment itself is doubted.
const SUSPICIOUS: u32 = 20;

/// Why a worker could not start or had to give up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The base URL is not one.
    #[error("the base URL {0:?} is not an http:// or https:// address")]
    BaseUrl(String),
    /// The base URL would send the key over the network in the clear.
    #[error("the base URL {0} is plain HTTP to another machine; use https://, or permit it explicitly")]
    PlainHttp(String),
    /// The keys of identities cannot be served.
    #[error(transparent)]
    Identities(#[from] IdentitiesError),
    /// What must be in force around sandboxes is not, or none can be made.
    #[error("no session can be served: {0}")]
    Boundary(#[from] palisade_sandbox::Error),
    /// A variable for sandboxes would carry a credential.
    #[error(
        "the variable {0} may not be set in sandboxes: it is a name, or holds the value, of the worker's own credential"
    )]
    SandboxEnv(String),
    /// What fresh workspaces start with cannot be prepared.
    #[error("preparing what fresh workspaces start with: {0}")]
    Base(String),
    /// The store of checkpoints cannot be used.
    #[error("opening the store of checkpoints: {0}")]
    Checkpoints(#[from] palisade_checkpoint::Error),
    /// Checkpoints are wanted of a driver that has none.
    #[error("the {0} driver mounts no layers, so that it has no checkpoints; use native or oci, or ask for none")]
    NoCheckpoints(&'static str),
    /// There is no environment key.
    #[error("the environment key is empty")]
    NoKey,
    /// The environment's id is empty.
    #[error("the environment id is empty")]
    NoEnvironment,
    /// The connection to the control plane could not be prepared.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The state directory cannot be used.
    #[error("the state directory {path} cannot be used: {source}")]
    StateDir {
        /// The directory.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// SSH could not be served where it was asked for.
    #[error("cannot serve SSH on {address}: {source}")]
    Ssh {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The webhook listener could not be set up.
    #[error(transparent)]
    Webhook(#[from] WebhookError),
    /// The control plane does not accept the environment key.
    #[error(
        "the control plane refused the environment key for {environment} ({reason}); \
         check that the key belongs to this environment and has not been revoked"
    )]
    Unauthorized {
        /// The environment.
        environment: String,
        /// What the control plane said.
        reason: String,
    },
    /// The control plane refuses to be polled.
    #[error("the control plane refused the poll: {reason}")]
    PollRefused {
        /// What the control plane said.
        reason: String,
    },
    /// A drain could not look into the queue.
    #[error("the queue could not be drained: {reason}")]
    DrainFailed {
        /// What went wrong last.
        reason: String,
    },
}

/// What a worker did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Work items claimed, sessions or not.
    pub claimed: u64,
    /// Items that ended in good order.
    pub completed: u64,
    /// Items that could not be served.
    pub failed: u64,
    /// Items whose lease was lost.
    pub lost: u64,
}

/// The environment worker.
pub struct Worker {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("options", &self.shared.options).finish()
    }
}

impl Worker {
    /// Checks the options and prepares the state directory. Nothing is sent yet.
    ///
    /// # Errors
    /// When an option cannot work; each variant says what to change.
    pub fn new(mut options: Options) -> Result<Self, Error> {
        let url = reqwest::Url::parse(&options.base_url).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let url = url.filter(|url| url.has_host()).ok_or_else(|| Error::BaseUrl(options.base_url.clone()))?;
        if url.scheme() == "http" && !is_loopback(&url) && !options.insecure_http {
            return Err(Error::PlainHttp(options.base_url));
        }
        if options.environment_key.is_blank() {
            return Err(Error::NoKey);
        }
        if options.environment_id.as_str().is_empty() {
            return Err(Error::NoEnvironment);
        }
        let key = options.environment_key.expose().trim();
        let leaks = |(name, value): &&(String, String)| name.starts_with("ANTHROPIC_") || value.contains(key);
        if let Some((name, _)) = options.sandbox_env.iter().find(leaks) {
            return Err(Error::SandboxEnv(name.clone()));
        }
        if options.checkpoints != Checkpoints::default() && !options.driver.capabilities().snapshot {
            return Err(Error::NoCheckpoints(options.driver.name()));
        }
        options.concurrency = options.concurrency.max(1);
        let fail = |source| Error::StateDir { path: options.state_dir.display().to_string(), source };
        std::fs::create_dir_all(item::sessions_dir(&options.state_dir)).map_err(fail)?;
        // Sandboxes are told their directories by absolute paths.
        options.state_dir = options.state_dir.canonicalize().map_err(fail)?;
        palisade_sandbox::disk::sweep(&options.state_dir);
        let worker_id = options.worker_id.get_or_insert_with(random_id);
        let client = Client::new(ClientOptions {
            base_url: &url,
            environment: options.environment_id.as_str(),
            key: options.environment_key.clone(),
            worker_id,
            ca_file: options.ca_file.as_deref(),
            silent_stream: options.pace.silent_stream,
        })?;
        let observer = options.on_event.clone();
        let observe = move |observation: Observation| {
            if let Some(observer) = &observer {
                observer(&observation);
            }
        };
        let tools = Arc::new(options.tools.clone());
        let base =
            Base::make(&options.state_dir, options.seed.as_deref()).map_err(|why| Error::Base(why.to_string()))?;
        let store = Arc::new(Store::open(options.state_dir.join("checkpoints"))?);
        let (client, observe) = (Arc::new(client), Arc::new(observe));
        let registry = Registry::default();
        Ok(Self { shared: Arc::new(Shared { options, client, tools, observe, registry, base, store }) })
    }

    /// Works until `shutdown` is cancelled (or, in [`Mode::Drain`], until the queue is empty), then ends in good order:
    /// no new claims, running calls within the grace, results posted, leases released.
    ///
    /// # Errors
    /// When the queue cannot be polled at all. Items that were taken on are ended in good order first.
    pub async fn run(self, shutdown: CancellationToken) -> Result<Summary, Error> {
        let egress = self.shared.options.egress.clone();
        let outcome = self.work(shutdown).await;
        if let Some(egress) = egress {
            egress.close().await;
        }
        outcome
    }

    async fn work(self, shutdown: CancellationToken) -> Result<Summary, Error> {
        self.boundary().await?;
        let admin = self.admin().await?;
        let mut queue = Queue {
            slots: Arc::new(Semaphore::new(self.shared.options.concurrency)),
            shared: self.shared,
            items: JoinSet::new(),
            shutdown: shutdown.clone(),
            ending: shutdown.child_token(),
            summary: Summary::default(),
        };
        let mode = queue.shared.options.mode.clone();
        (queue.shared.observe)(Observation::Polling);
        tracing::info!(environment = %queue.shared.options.environment_id, "polling for work");
        let outcome = match mode {
            Mode::AlwaysOn => queue.always_on().await,
            Mode::Drain => queue.drain(true).await,
            Mode::Webhook { listen, signing_key } => {
                match webhook::Listener::bind(listen, &signing_key, unix_now).await {
                    Ok(listener) => queue.on_webhooks(listener).await,
                    Err(error) => Err(error.into()),
                }
            }
        };
        if outcome.is_err() {
            queue.ending.cancel();
        }
        queue.finish().await;
        admin.end().await;
        tracing::info!(summary = ?queue.summary, "worker ended");
        outcome.map(|()| queue.summary)
    }
}

impl Worker {
    /// Tries what must be in force around every sandbox with one that nobody uses: better no session is claimed than that each
    /// fails.
    async fn boundary(&self) -> Result<(), Error> {
        let options = &self.shared.options;
        if options.require.is_empty() {
            return Ok(());
        }
        let failed = |source| Error::StateDir { path: options.state_dir.display().to_string(), source };
        let place = Temporary::new(".boundary-", Some(&options.state_dir)).map_err(failed)?;
        let [layer, outputs] = ["layer", "outputs"].map(|name| place.path().join(name));
        for directory in [&layer, &outputs] {
            std::fs::create_dir(directory).map_err(failed)?;
        }
        let mut spec = item::spec(options, &layer, &outputs);
        if options.driver.capabilities().snapshot {
            // As sessions have it: what can be limited depends on it.
            spec.workspace = Workspace::Layered { lower: vec![self.shared.base.path.clone()], upper: layer.clone() };
        }
        let tried = match options.driver.create(spec).await {
            Ok(sandbox) => sandbox.destroy().await,
            Err(why) => Err(why),
        };
        for directory in [&layer, &outputs] {
            if let Err(error) = palisade_sandbox::disk::clear(directory) {
                tracing::warn!(%error, "what was tried before the first session is not wholly gone");
            }
        }
        Ok(tried?)
    }

    /// Starts what operators use: SSH where it was asked for, and the local admin API. Sessions are served without the latter,
    /// too: what operators lose is said.
    async fn admin(&self) -> Result<Admin, Error> {
        let options = &self.shared.options;
        let stop = CancellationToken::new();
        // They outlive a request to end: calls that still run can be looked into.
        let mut admin = Admin { stop: stop.clone().drop_guard(), tasks: JoinSet::new() };
        let mut authority = None;
        if let Some(address) = options.ssh {
            let ssh = Ssh::bind(address, &options.state_dir, self.shared.registry.clone()).await;
            let ssh = ssh.map_err(|source| Error::Ssh { address, source })?;
            authority = Some(ssh.authority());
            admin.tasks.spawn(ssh.serve(stop.clone()));
        }
        if let Some(egress) = &options.egress
            && let Some(serving) = egress.serve(stop.clone()).await?
        {
            admin.tasks.spawn(serving);
        }
        if options.admin {
            let registry = self.shared.registry.clone();
            let (preview, egress) = (options.allow_preview, options.egress.clone());
            match Perimeter::bind(&options.state_dir, registry, preview, authority, egress) {
                Ok(perimeter) => {
                    admin.tasks.spawn(perimeter.serve(stop));
                }
                Err(error) => {
                    tracing::warn!(%error, "the local admin API cannot be served; `palisade exec` and its like do not work");
                }
            }
        }
        Ok(admin)
    }
}

/// What operators use. Dropping it ends it.
struct Admin {
    stop: DropGuard,
    tasks: JoinSet<()>,
}

impl Admin {
    async fn end(mut self) {
        drop(self.stop);
        while self.tasks.join_next().await.is_some() {}
    }
}

fn random_id() -> String {
    let mut bytes = [0; 6];
    // An id that is not random costs only a statistic of the control plane.
    let _ = getrandom::fill(&mut bytes);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("palisade-{hex}")
}

/// A session's place among those that are served at a time. A session that only waits whether its user has more to say
/// gives it up, so that it keeps nobody waiting; when it goes on while all places are taken, there is one more for a while.
pub(crate) struct Slot {
    slots: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

impl Slot {
    fn new(slots: Arc<Semaphore>, held: OwnedSemaphorePermit) -> Slot {
        Slot { slots, held: Some(held) }
    }

    pub(crate) fn give_up(&mut self) {
        self.held = None;
    }

    pub(crate) fn regain(&mut self) {
        if self.held.is_none() {
            self.held = self.slots.clone().try_acquire_owned().ok();
        }
    }
}

/// What one look into the queue gave.
enum Looked {
    Item(WorkItem),
    Empty,
    /// An item that is not there any more (404): there may be others behind it.
    Stale,
    Failed(CallError),
}

struct Queue {
    shared: Arc<Shared>,
    slots: Arc<Semaphore>,
    items: JoinSet<Outcome>,
    /// The caller wants the worker to end.
    shutdown: CancellationToken,
    /// Items are to end: the caller wants it, or there is no point in going on.
    ending: CancellationToken,
    summary: Summary,
}

impl Queue {
    async fn always_on(&mut self) -> Result<(), Error> {
        let pace = self.shared.options.pace.clone();
        let mut backoff = Backoff::new(pace.failed_poll);
        let mut stale = 0;
        while let Some(slot) = self.slot().await {
            let began = Instant::now();
            let looked = self.look(Some(BLOCK_MS), None).await?;
            let pause = match looked {
                None => return Ok(()),
                Some(Looked::Item(work)) => {
                    (stale, backoff) = (0, Backoff::new(pace.failed_poll));
                    self.take_on(work, slot).await;
                    Duration::ZERO
                }
                Some(Looked::Empty) => {
                    (stale, backoff) = (0, Backoff::new(pace.failed_poll));
                    if began.elapsed() >= HELD { Duration::ZERO } else { between(pace.empty_poll, unit()) }
                }
                Some(Looked::Stale) => {
                    stale += 1;
                    if stale == SUSPICIOUS {
                        tracing::error!(environment = %self.shared.options.environment_id, "every poll is answered with 404; does the environment exist?");
                    }
                    if stale == 1 { Duration::ZERO } else { between(pace.empty_poll, unit()) }
                }
                Some(Looked::Failed(error)) => {
                    let delay = backoff.delay_after(unit(), error.retry_after());
                    tracing::warn!(%error, retry_ms = delay.as_millis() as u64, "poll failed; trying again");
                    delay
                }
            };
            if !pause.is_zero() {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = self.shutdown.cancelled() => return Ok(()),
                }
            }
        }
        Ok(())
    }

    /// Takes on items until the queue is empty or the worker is to end; unless it is to `wait`, also until no slot is free.
    async fn drain(&mut self, wait: bool) -> Result<(), Error> {
        let mut backoff = Backoff::new(self.shared.options.pace.failed_poll);
        let (mut failures, mut stale) = (0, 0);
        while wait || self.slots.available_permits() > 0 {
            let Some(slot) = self.slot().await else { return Ok(()) };
            match self.look(None, Some(DRAIN_RECLAIM_MS)).await? {
                None | Some(Looked::Empty) => return Ok(()),
                Some(Looked::Item(work)) => {
                    (failures, stale) = (0, 0);
                    self.take_on(work, slot).await;
                }
                Some(Looked::Stale) if stale < SUSPICIOUS => stale += 1,
                Some(Looked::Stale) => {
                    let reason = "every poll is answered with 404; does the environment exist?".into();
                    return Err(Error::DrainFailed { reason });
                }
                Some(Looked::Failed(error)) => {
                    failures += 1;
                    if failures >= DRAIN_FAILURES {
                        return Err(Error::DrainFailed { reason: error.to_string() });
                    }
                    let delay = backoff.delay_after(unit(), error.retry_after());
                    tokio::select! {
                        () = tokio::time::sleep(delay) => {}
                        () = self.shutdown.cancelled() => return Ok(()),
                    }
                }
            }
        }
        Ok(())
    }

    async fn on_webhooks(&mut self, listener: webhook::Listener) -> Result<(), Error> {
        let (wake, mut woken) = mpsc::channel::<oneshot::Sender<bool>>(64);
        if let Some(address) = listener.address() {
            tracing::info!(%address, "listening for webhooks");
            (self.shared.observe)(Observation::Listening { address });
        }
        let serving = tokio::spawn(listener.serve(wake, self.shutdown.clone()));
        let mut waiting: Vec<oneshot::Sender<bool>> = Vec::new();
        let outcome = loop {
            // Whatever woke us, deliveries may have been lost: what is in the queue is the truth. One look answers all.
            while let Ok(waiter) = woken.try_recv() {
                waiting.push(waiter);
            }
            let drained = self.drain(false).await;
            for waiter in waiting.drain(..) {
                let _ = waiter.send(drained.is_ok());
            }
            match drained {
                Ok(()) => {}
                Err(error @ Error::DrainFailed { .. }) => tracing::warn!(%error, "the next delivery tries again"),
                Err(error) => break Err(error),
            }
            tokio::select! {
                () = self.shutdown.cancelled() => break Ok(()),
                waiter = woken.recv() => match waiter {
                    Some(waiter) => waiting.push(waiter),
                    None => break Ok(()),
                },
                Some(done) = self.items.join_next() => self.count(done),
            }
        };
        serving.abort();
        let _ = serving.await;
        outcome
    }

    /// A free slot; `None` when the worker is to end. Items that end meanwhile are counted.
    async fn slot(&mut self) -> Option<OwnedSemaphorePermit> {
        loop {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return None,
                Some(done) = self.items.join_next() => self.count(done),
                slot = self.slots.clone().acquire_owned() => return slot.ok(),
            }
        }
    }

    /// Polls once. `None` when the worker is to end.
    async fn look(&mut self, block: Option<u16>, reclaim: Option<u32>) -> Result<Option<Looked>, Error> {
        // The answer to an abandoned poll may hold an item. Nobody acknowledges it, so it goes back to the queue after a
        // few seconds; a short wait makes that rare without making the end of the worker slow.
        let client = self.shared.client.clone();
        let answer = client.poll(block, reclaim);
        tokio::pin!(answer);
        let answer = tokio::select! {
            answer = &mut answer => answer,
            () = self.shutdown.cancelled() => match tokio::time::timeout(LAST_ANSWER, answer).await {
                Ok(answer) => answer,
                Err(_) => return Ok(None),
            },
        };
        if self.shutdown.is_cancelled() {
            if let Ok(Some(work)) = answer {
                tracing::info!(
                    work = work.id,
                    "claimed while shutting down; not acknowledged, so the queue offers it again"
                );
            }
            return Ok(None);
        }
        match answer {
            Ok(Some(work)) => Ok(Some(Looked::Item(work))),
            Ok(None) => Ok(Some(Looked::Empty)),
            Err(error) => match error.status() {
                Some(404) => Ok(Some(Looked::Stale)),
                Some(401 | 403) => Err(Error::Unauthorized {
                    environment: self.shared.options.environment_id.to_string(),
                    reason: error.to_string(),
                }),
                _ if error.is_transient() => Ok(Some(Looked::Failed(error))),
                _ => Err(Error::PollRefused { reason: error.to_string() }),
            },
        }
    }

    /// Acknowledges a claimed item at once and starts serving it.
    async fn take_on(&mut self, work: WorkItem, slot: OwnedSemaphorePermit) {
        self.summary.claimed += 1;
        let client = &self.shared.client;
        let mut backoff = Backoff::new((Duration::from_millis(300), Duration::from_secs(2)));
        for attempt in 1.. {
            match client.ack(&work.id).await {
                Ok(()) => break,
                Err(error) if matches!(error.status(), Some(404 | 409)) => {
                    tracing::info!(work = work.id, %error, "somebody else has the item, or it is gone");
                    self.summary.lost += 1;
                    return;
                }
                Err(error) if error.is_transient() && attempt < 3 => {
                    tokio::time::sleep(backoff.delay_after(unit(), error.retry_after())).await;
                }
                Err(error) if error.is_transient() => {
                    tracing::warn!(work = work.id, %error, "claim not acknowledged; the queue offers the item again");
                    self.summary.failed += 1;
                    return;
                }
                Err(error) => {
                    tracing::warn!(work = work.id, %error, "acknowledgement refused; stopping the item");
                    self.summary.failed += 1;
                    self.stop(&work).await;
                    return;
                }
            }
        }
        let ours = work.environment_id.as_deref().is_none_or(|id| id == self.shared.options.environment_id.as_str());
        if work.data.kind.as_deref() != Some("session") || work.data.id.is_empty() || !ours {
            let kind = work.data.kind.as_deref().unwrap_or("unnamed");
            tracing::info!(work = work.id, kind, "not a session of this environment; stopping the item");
            self.summary.completed += 1;
            self.stop(&work).await;
            return;
        }
        tracing::info!(work = work.id, session = work.data.id, "claimed work");
        (self.shared.observe)(Observation::Claimed { work: work.id.clone(), session: work.data.id.clone() });
        let (shared, ending) = (self.shared.clone(), self.ending.clone());
        let slot = Slot::new(self.slots.clone(), slot);
        self.items.spawn(async move { Box::pin(item::serve(shared, work, slot, ending)).await });
    }

    async fn stop(&self, work: &WorkItem) {
        if let Err(error) = self.shared.client.stop(None, &work.id).await {
            tracing::warn!(work = work.id, %error, "the item could not be stopped");
        }
    }

    fn count(&mut self, done: Result<Outcome, tokio::task::JoinError>) {
        match done {
            Ok(Outcome::Completed) => self.summary.completed += 1,
            Ok(Outcome::Failed) => self.summary.failed += 1,
            Ok(Outcome::Lost) => self.summary.lost += 1,
            Err(error) => {
                tracing::error!(%error, "serving an item broke the worker's code; its lease will lapse");
                self.summary.failed += 1;
            }
        }
    }

    /// Waits for the items that were taken on; a shutdown makes them end.
    async fn finish(&mut self) {
        while let Some(done) = self.items.join_next().await {
            self.count(done);
        }
    }
}
