//! The session's sandbox: started when first needed or before, replaced when it has died.

mod checkpoint;
mod transaction;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use palisade_checkpoint::{Id, Layer, Store};
use palisade_sandbox::{Driver, Sandbox, Spec, ToolCall, ToolOutput, Workspace, within};
use tokio::sync::{Mutex, watch};

use crate::egress::{Led, Told, Way};
use crate::ledger::Call;
use crate::observe::Observation;
use crate::options::Checkpoints;
use crate::pace::{Backoff, Pace, unit};
use crate::workspace::{self, Base, Home, Layers};

/// How often a sandbox is tried before a call is answered without one.
const ATTEMPTS: u32 = 3;

/// What a session's sandboxes are made from.
pub(crate) struct Plan {
    pub(crate) driver: Arc<dyn Driver>,
    /// All but the workspace.
    pub(crate) spec: Spec,
    pub(crate) home: Home,
    /// What a fresh workspace starts with.
    pub(crate) base: Base,
    pub(crate) store: Arc<Store>,
    pub(crate) checkpoints: Checkpoints,
}

/// One session's sandbox.
pub(crate) struct Hands {
    plan: Plan,
    pace: Pace,
    session: Arc<str>,
    observe: Arc<dyn Fn(Observation) + Send + Sync>,
    /// The checkpoint that a fresh workspace starts from.
    origin: std::sync::Mutex<Option<Id>>,
    /// Where its sandboxes' network leads to; nowhere when there is none.
    way: std::sync::Mutex<Option<Arc<Way>>>,
    live: Arc<Mutex<Option<Live>>>,
    /// The item has ended; whoever continues the session may be at its workspace.
    closed: AtomicBool,
    /// Calls that the sandbox has answered.
    calls: AtomicU64,
    /// The transactional call that runs or has just ended.
    transacting: std::sync::Mutex<Option<Open>>,
    /// Calls that were cut off and undone.
    undone: std::sync::Mutex<HashSet<String>>,
    /// While this holds, no call is started.
    paused: watch::Sender<bool>,
}

/// A transactional call.
struct Open {
    call: String,
    /// It has ended well, so that it is kept as soon as its result is durable.
    succeeded: bool,
}

/// A workspace's layers.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// What is only read, topmost first.
    pub(crate) lower: Vec<PathBuf>,
    /// What the session changed, in overlayfs's format.
    pub(crate) upper: PathBuf,
    directory: PathBuf,
    layer: Option<Layer>,
}

/// A sandbox that is up.
struct Live {
    sandbox: Arc<Sandbox>,
    /// What it was made from.
    spec: Spec,
    /// Where its network leads to.
    led: Option<Led>,
    /// The layer that it has mounted; the store keeps it as long as this is held.
    _layer: Option<Layer>,
}

impl Hands {
    pub(crate) fn new(
        plan: Plan,
        pace: Pace,
        session: Arc<str>,
        observe: Arc<dyn Fn(Observation) + Send + Sync>,
    ) -> Self {
        let (live, paused) = (Arc::new(Mutex::new(None)), watch::Sender::new(plan.home.is_paused()));
        Self {
            plan,
            pace,
            session,
            observe,
            origin: std::sync::Mutex::default(),
            way: std::sync::Mutex::default(),
            live,
            closed: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            transacting: std::sync::Mutex::default(),
            undone: std::sync::Mutex::default(),
            paused,
        }
    }

    /// Has a workspace that was never there start from a checkpoint.
    pub(crate) fn start_from(&self, checkpoint: Id) {
        *self.origin.lock().unwrap_or_else(PoisonError::into_inner) = Some(checkpoint);
    }

    /// Has the sandboxes that are started from now on led to the egress service.
    pub(crate) fn lead(&self, way: Option<Way>) {
        *self.way.lock().unwrap_or_else(PoisonError::into_inner) = way.map(Arc::new);
    }

    /// The sandbox, started if there is none. Whoever asks meanwhile waits for the same one.
    pub(crate) async fn ready(&self) -> Result<Arc<Sandbox>, String> {
        let mut live = self.live.lock().await;
        self.serving()?;
        if let Some(live) = &*live {
            return Ok(live.sandbox.clone());
        }
        let mut backoff = Backoff::new(self.pace.retry);
        let mut attempt = 1;
        loop {
            match self.create().await {
                Ok((created, _)) => return Ok(live.insert(created).sandbox.clone()),
                Err(reason) if attempt >= ATTEMPTS => {
                    tracing::error!(session = &*self.session, reason, "the sandbox could not be started");
                    (self.observe)(Observation::SandboxFailed { session: self.session.to_string(), reason });
                    // The reason may name paths of this host; it is for the operator, not for the agent.
                    return Err("The call was not run: the worker could not start a sandbox for this session \
                         (see the worker's log)."
                        .into());
                }
                Err(reason) => {
                    tracing::warn!(session = &*self.session, reason, "the sandbox could not be started; trying again");
                    tokio::time::sleep(backoff.delay(unit())).await;
                    attempt += 1;
                }
            }
        }
    }

    /// The sandbox, if it is up.
    pub(crate) async fn live(&self) -> Option<Arc<Sandbox>> {
        let live = self.live.lock().await;
        live.as_ref().filter(|live| !live.sandbox.is_asleep()).map(|live| live.sandbox.clone())
    }

    /// Whose sandbox it is.
    pub(crate) fn session(&self) -> &str {
        &self.session
    }

    /// What makes the sandboxes.
    pub(crate) fn driver(&self) -> &'static str {
        self.plan.driver.name()
    }

    /// Whether the driver mounts no layers, so that a workspace is a plain directory.
    fn is_flat(&self) -> bool {
        !self.plan.driver.capabilities().snapshot
    }

    fn no_layers(&self) -> String {
        format!("the {} driver mounts no layers, so that it has no checkpoints: use native or oci", self.driver())
    }

    /// Makes a sandbox. Whether it is one that was asleep.
    async fn create(&self) -> Result<(Live, bool), String> {
        let began = Instant::now();
        let place = self.prepare().await?;
        let workspace = if self.is_flat() {
            Workspace::Directory(place.upper)
        } else {
            Workspace::Layered { lower: place.lower, upper: place.directory }
        };
        let mut spec = Spec { workspace, ..self.plan.spec.clone() };
        let told = self.told().await?;
        if let Some(told) = &told {
            spec.egress = true;
            spec.given.extend(told.given.iter().cloned());
            // What the operator sets for sandboxes stays, but for what would lead past the service or to a real credential.
            spec.env.extend(told.env.iter().cloned());
        }
        let (created, woken) = match self.asleep(&spec).await? {
            Some(woken) => (woken, true),
            None => (self.plan.driver.create(spec.clone()).await.map_err(|error| error.to_string())?, false),
        };
        let led = told.map(|told| told.serve(created.network())).transpose().map_err(|error| error.to_string())?;
        let took = began.elapsed();
        tracing::info!(
            session = &*self.session,
            driver = self.plan.driver.name(),
            took_us = took.as_micros() as u64,
            woken,
            "sandbox started"
        );
        let report = Box::new(created.report().clone());
        (self.observe)(Observation::SandboxStarted { session: self.session.to_string(), took, report });
        Ok((Live { sandbox: Arc::new(created), spec, led, _layer: place.layer }, woken))
    }

    /// The sandbox that an earlier worker has put to disk, if there is one of this workspace.
    async fn asleep(&self, spec: &Spec) -> Result<Option<Sandbox>, String> {
        let home = &self.plan.home;
        let Some(image) = home.take_image().map_err(|error| error.to_string())? else { return Ok(None) };
        let woken = self.plan.driver.wake(spec.clone(), &image).await;
        home.drop_images();
        match woken {
            Ok(woken) => Ok(Some(woken.into_sandbox())),
            Err(error) => {
                tracing::error!(session = &*self.session, %error, "the session's processes could not be brought back; its files are there");
                Ok(None)
            }
        }
    }

    /// What the next sandbox is told of its way out.
    async fn told(&self) -> Result<Option<Told>, String> {
        let way = self.way.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(way) = way else { return Ok(None) };
        let directory = self.plan.home.trust.clone();
        let told = tokio::task::spawn_blocking(move || way.prepare(&directory)).await;
        told.map_err(|error| error.to_string())?.map(Some).map_err(|error| error.to_string())
    }

    /// The layers of the workspace, made where they are missing. What a transactional call left unfinished is undone first.
    /// As long as no sandbox has it, it may be written.
    pub(crate) async fn prepare(&self) -> Result<Place, String> {
        let (home, store, base) = (self.plan.home.clone(), self.plan.store.clone(), self.plan.base.clone());
        let origin = *self.origin.lock().unwrap_or_else(PoisonError::into_inner);
        let session = self.session.clone();
        let flat = self.is_flat();
        if flat && origin.is_some() {
            return Err(self.no_layers());
        }
        let made = tokio::task::spawn_blocking(move || {
            let fresh = || {
                // A checkpoint brings its own base.
                let from = origin.map(|id| store.show(&id)).transpose()?;
                let base = from.map_or_else(|| base.name.clone(), |from| from.base);
                Ok(Layers { base, checkpoint: origin, layer: 1, taken: Vec::new(), flat })
            };
            home.make_root().map_err(|error| error.to_string())?;
            home.make(flat, fresh).map_err(|error| error.to_string())?;
            let undone = transaction::recover(&home, &store, &session)?;
            let (layers, base) =
                home.make(flat, || unreachable!("it was made above")).map_err(|error| error.to_string())?;
            let layer = match &layers.checkpoint {
                Some(id) => Some(store.materialise(id, checkpoint::ownership()).map_err(|error| error.to_string())?),
                None => None,
            };
            let above = layer.iter().map(|layer| layer.path().to_owned());
            let lower = above.chain([base.path]).collect();
            let directory = home.layer(layers.layer);
            let lower: Vec<PathBuf> = lower;
            if !flat {
                workspace::take_after(&directory.join("upper"), &lower[0]).map_err(|error| error.to_string())?;
            }
            Ok::<_, String>((Place { lower, upper: directory.join("upper"), directory, layer }, undone))
        });
        let (place, undone) = made.await.map_err(|error| error.to_string())??;
        self.undone.lock().unwrap_or_else(PoisonError::into_inner).extend(undone);
        Ok(place)
    }

    /// Waits no longer than the limit, without the time in which the session is paused.
    pub(crate) async fn within<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        within(limit, self.paused.subscribe(), |paused| *paused, work).await
    }

    /// Runs one tool. `Err` is the text of an error result.
    pub(crate) async fn run(&self, call: &Call, timeout: Duration) -> Result<ToolOutput, String> {
        let mut paused = self.paused.subscribe();
        // The sender lives as long as this does.
        let _ = paused.wait_for(|paused| !paused).await;
        let transactional = self.before(call).await?;
        let outcome = self.tool(&call.name, call.input.clone(), timeout).await;
        let failed = outcome.as_ref().map_or(true, |output| output.is_error);
        if !transactional {
            return outcome;
        }
        if !failed {
            self.succeeded(&call.id);
            return outcome;
        }
        let note = self.undo(call, "the call failed").await;
        match outcome {
            Ok(mut output) => {
                output.content.push(serde_json::json!({"type": "text", "text": note}));
                Ok(output)
            }
            Err(text) => Err(format!("{text}\n{note}")),
        }
    }

    async fn tool(&self, name: &str, input: serde_json::Value, timeout: Duration) -> Result<ToolOutput, String> {
        let sandbox = self.ready().await?;
        match sandbox.tool(ToolCall { name: name.to_owned(), input, timeout }).await {
            Ok(output) => {
                self.calls.fetch_add(1, Ordering::Relaxed);
                Ok(output)
            }
            Err(error) => {
                tracing::warn!(session = &*self.session, tool = name, %error, "tool failed; the next call gets a new sandbox");
                self.discard(&sandbox).await;
                Err(format!("{name}: the sandbox failed while it ran the call ({error}); the next call gets a new one"))
            }
        }
    }

    /// Lets go of a sandbox that no longer works, unless somebody else did already.
    async fn discard(&self, dead: &Arc<Sandbox>) {
        let mut live = self.live.lock().await;
        if live.as_ref().is_some_and(|current| Arc::ptr_eq(&current.sandbox, dead)) {
            let led = live.take().and_then(|live| live.led);
            // Others may hold on to what is left of it.
            if let Err(error) = dead.destroy().await {
                tracing::warn!(session = &*self.session, %error, "the sandbox did not end cleanly");
            }
            if let Some(led) = led {
                led.close().await;
            }
        }
    }

    /// Takes the checkpoint that the policy wants before the item ends.
    pub(crate) async fn checkpoint_at_end(&self, idle: bool) {
        let keep = self.plan.checkpoints;
        let why = if idle { keep.on_idle.then_some("idle") } else { keep.on_stop.then_some("stop") };
        if let Some(why) = why
            && self.live().await.is_some()
            && let Err(error) = self.checkpoint(why).await
        {
            tracing::error!(session = &*self.session, error, "the checkpoint at the end could not be taken");
        }
    }

    /// Ends the sandbox and everything in it, for good: nobody starts another one. The directories stay; a call that was under
    /// way is undone if that was asked for.
    pub(crate) async fn close(&self) {
        let mut live = self.live.lock().await;
        self.closed.store(true, Ordering::Relaxed);
        self.end(&mut live).await;
        let way = self.way.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(way) = way {
            way.end().await;
        }
        self.recover().await;
    }

    /// Fails once the workspace may not be touched any more. To be asked with the lock of what is live held.
    fn serving(&self) -> Result<(), String> {
        if self.closed.load(Ordering::Relaxed) {
            Err("the worker serves the session no longer".to_owned())
        } else {
            Ok(())
        }
    }

    /// Ends a sandbox, whoever still holds on to it.
    async fn end(&self, live: &mut Option<Live>) {
        let Some(ended) = live.take() else { return };
        if let Ok(usage) = ended.sandbox.usage().await {
            let calls = self.calls.swap(0, Ordering::Relaxed);
            tracing::info!(session = &*self.session, calls, ?usage, "sandbox ends");
            let (session, usage) = (self.session.to_string(), Box::new(usage));
            (self.observe)(Observation::SandboxEnded { session, usage, calls });
        }
        if let Err(error) = ended.sandbox.destroy().await {
            tracing::warn!(session = &*self.session, %error, "the sandbox did not end cleanly");
        }
        if let Some(led) = ended.led {
            tracing::info!(session = &*self.session, counters = ?led.counters(), "egress ends");
            led.close().await;
        }
    }
}
