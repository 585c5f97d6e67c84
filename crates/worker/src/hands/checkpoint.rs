//! Checkpoints of the session's workspace, and going back to one.

use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, UNIX_EPOCH};

use palisade_checkpoint::{CaptureOptions, Captured, Checkpoint, Id, Ownership, Store};
use palisade_sandbox::Sandbox;

use super::transaction::supersede;
use super::{Hands, Live};
use crate::observe::Observation;
use crate::pace::now;
use crate::workspace::{Home, KEPT, Layers, Taken};

/// Whom files belong to inside, where everything on disk is the worker's own.
const AGENT: u32 = 1000;

/// With root, layers have the owners that they have inside; without it, everything is the worker's.
pub(super) fn ownership() -> Ownership {
    if rustix::process::geteuid().is_root() { Ownership::Kept } else { Ownership::Flat { uid: AGENT, gid: AGENT } }
}

impl Hands {
    /// Takes a checkpoint of the workspace. Everything in the sandbox stands still from before the first byte is read until
    /// the last one is.
    pub(crate) async fn checkpoint(&self, why: &str) -> Result<Captured, String> {
        if self.is_flat() {
            return Err(self.no_layers());
        }
        // Nobody starts or ends the sandbox meanwhile. A task of its own, as whoever gives the caller up must not leave
        // a sandbox frozen, nor let one go on that is being read.
        let live = self.live.clone().lock_owned().await;
        self.serving()?;
        let paused = *self.paused.borrow();
        let (home, store, reason) = (self.plan.home.clone(), self.plan.store.clone(), why.to_owned());
        let task = tokio::spawn(async move {
            let awake = live.as_ref().map(|live| &live.sandbox).filter(|sandbox| !sandbox.is_asleep());
            take(awake, paused, home, store, reason).await
        });
        let captured = task.await.map_err(|error| error.to_string())??;
        self.taken(&captured, why);
        Ok(captured)
    }

    fn taken(&self, captured: &Captured, why: &str) {
        let (session, checkpoint) = (self.session.to_string(), captured.checkpoint.id.to_string());
        tracing::info!(session, checkpoint, why, read = captured.read, grown = captured.grown, "checkpoint taken");
        (self.observe)(Observation::CheckpointTaken { session, checkpoint, why: why.to_owned() });
    }

    /// Makes a checkpoint's layer while nobody waits for it: whoever asked for one is likely to go back to it, or to fork it.
    pub(crate) fn foresee(&self, id: Id) {
        let (store, session) = (self.plan.store.clone(), self.session.clone());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = store.materialise(&id, ownership()) {
                tracing::warn!(session = &*session, checkpoint = %id, %error, "a checkpoint's layer could not be made");
            }
        });
    }

    /// Gives a checkpoint a name.
    pub(crate) async fn label(&self, id: Id, label: String) -> Result<Checkpoint, String> {
        let store = self.plan.store.clone();
        let done = tokio::task::spawn_blocking(move || store.label(&id, Some(&label)));
        done.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    /// Brings the workspace back to a checkpoint. The sandbox ends, and with it every process of the session; the next call
    /// starts a new one on the state of the checkpoint.
    pub(crate) async fn restore(&self, id: &Id) -> Result<(), String> {
        if self.is_flat() {
            return Err(self.no_layers());
        }
        let mut live = self.live.lock().await;
        self.serving()?;
        self.end(&mut live).await;
        self.plan.home.drop_images();
        let (home, store, id) = (self.plan.home.clone(), self.plan.store.clone(), *id);
        let done = tokio::task::spawn_blocking(move || {
            go_back(&home, &store, &id)?;
            // A call that is under way fails with its sandbox, and is not to be undone on top of this.
            supersede(&home.transaction).map_err(|error| error.to_string())
        });
        done.await.map_err(|error| error.to_string())??;
        let (session, checkpoint) = (self.session.to_string(), id.to_string());
        tracing::info!(session, checkpoint, "workspace brought back");
        (self.observe)(Observation::WorkspaceRestored { session, checkpoint });
        Ok(())
    }

    /// Stops everything in the sandbox where it is; no call is started until [`Hands::resume`].
    pub(crate) async fn pause(&self) -> Result<(), String> {
        let live = self.live.lock().await;
        self.serving()?;
        if let Some(live) = live.as_ref().filter(|live| !live.sandbox.is_asleep()) {
            live.sandbox.freeze().await.map_err(|error| error.to_string())?;
        }
        // Before anything is noted: a worker that ends in between has ended the sandbox as well.
        self.paused.send_replace(true);
        self.plan.home.note_paused(true).map_err(|error| error.to_string())
    }

    /// Whether no call is started.
    pub(crate) fn is_paused(&self) -> bool {
        *self.paused.borrow()
    }

    /// Whether it is paused, and not on disk.
    pub(crate) fn is_frozen(&self) -> bool {
        self.is_paused() && !self.plan.home.has_image()
    }

    /// Takes a checkpoint and gives up all memory, so that the session needs nothing but disk; no call is started until
    /// [`Hands::resume`]. Files are kept; processes too where the driver can write them to disk, which is what the second value
    /// says. What is on disk outlives this worker.
    pub(crate) async fn hibernate(self: &Arc<Self>) -> Result<(Captured, bool), String> {
        let hands = self.clone();
        // Whoever gives the caller up must not leave it half done.
        let task = tokio::spawn(async move { hands.to_disk().await });
        task.await.map_err(|error| error.to_string())?
    }

    async fn to_disk(&self) -> Result<(Captured, bool), String> {
        if self.is_flat() {
            return Err(self.no_layers());
        }
        let mut live = self.live.lock().await;
        self.serving()?;
        // From here on nothing goes on by itself, so that nothing is written between the checkpoint and the end.
        let was_paused = self.paused.send_replace(true);
        let noted = self.plan.home.note_paused(true).map_err(|error| error.to_string());
        let done = match noted {
            Ok(()) => self.put_to_sleep(&mut live, was_paused).await,
            Err(why) => Err(why),
        };
        match &done {
            Ok((captured, _)) => self.taken(captured, "hibernate"),
            Err(_) if was_paused => {}
            Err(_) => {
                self.paused.send_replace(false);
                self.plan.home.note_paused(false).map_err(|error| error.to_string())?;
            }
        }
        done
    }

    /// See [`Hands::to_disk`]. On failure all is as it was.
    async fn put_to_sleep(&self, live: &mut Option<Live>, was_paused: bool) -> Result<(Captured, bool), String> {
        let text = |error: palisade_sandbox::Error| error.to_string();
        let (home, store) = (self.plan.home.clone(), self.plan.store.clone());
        let capture = |awake| take(awake, true, home.clone(), store, "hibernate".to_owned());
        let sandbox = live.as_ref().map(|live| live.sandbox.clone());
        let Some(sandbox) = sandbox.filter(|sandbox| !sandbox.is_asleep()) else {
            return capture(None).await.map(|captured| (captured, home.has_image()));
        };
        if !self.plan.driver.capabilities().hibernate {
            let captured = match capture(Some(&sandbox)).await {
                Ok(captured) => captured,
                Err(why) => {
                    if !was_paused {
                        sandbox.thaw().await.map_err(text)?;
                    }
                    return Err(why);
                }
            };
            self.end(live).await;
            return Ok((captured, false));
        }
        let image = home.new_image().map_err(|error| error.to_string())?;
        if was_paused {
            // Its cell has a word to say.
            sandbox.thaw().await.map_err(text)?;
        }
        let began = Instant::now();
        let kept = match sandbox.hibernate(&image).await {
            Ok(()) => match capture(None).await {
                Ok(captured) => home.keep_image().map(|()| captured).map_err(|error| error.to_string()),
                Err(why) => Err(why),
            },
            Err(why) => Err(why.to_string()),
        };
        let why = match kept {
            Ok(captured) => {
                let took_us = began.elapsed().as_micros() as u64;
                tracing::info!(session = &*self.session, took_us, "the session is on disk with its processes");
                return Ok((captured, true));
            }
            Err(why) => why,
        };
        let awake = !sandbox.is_asleep() || self.wake(live, &image).await;
        if awake && was_paused {
            sandbox.freeze().await.map_err(text)?;
        }
        home.drop_images();
        Err(why)
    }

    /// Lets the session go on. Says whether its processes do: `false` when what was on disk of them could not be brought back,
    /// none when there are none.
    pub(crate) async fn resume(self: &Arc<Self>) -> Result<Option<bool>, String> {
        let hands = self.clone();
        let task = tokio::spawn(async move {
            let mut live = hands.live.lock().await;
            hands.serving()?;
            let kept = match &*live {
                Some(asleep) if asleep.sandbox.is_asleep() => match hands.plan.home.take_image() {
                    Ok(Some(image)) => {
                        let woken = hands.wake(&mut live, &image).await;
                        hands.plan.home.drop_images();
                        Some(woken)
                    }
                    Ok(None) => {
                        hands.end(&mut live).await;
                        Some(false)
                    }
                    Err(error) => return Err(error.to_string()),
                },
                // One that is not paused has nothing to be let go on with.
                Some(_) if !hands.is_paused() => Some(true),
                Some(frozen) => frozen.sandbox.thaw().await.map(|()| Some(true)).map_err(|error| error.to_string())?,
                // An earlier worker's; what it left running is not to wait for the next call.
                None if hands.plan.home.has_image() => {
                    let (created, woken) = hands.create().await?;
                    *live = Some(created);
                    Some(woken)
                }
                None => None,
            };
            hands.plan.home.note_paused(false).map_err(|error| error.to_string())?;
            hands.paused.send_replace(false);
            Ok(kept)
        });
        task.await.map_err(|error: tokio::task::JoinError| error.to_string())?
    }

    /// Brings back the processes of the sandbox that sleeps; without them it is of no use any more.
    async fn wake(&self, live: &mut Option<Live>, image: &Path) -> bool {
        let Some(asleep) = live.as_ref() else { return false };
        let began = Instant::now();
        let woken = match self.plan.driver.wake(asleep.spec.clone(), image).await {
            Ok(woken) => asleep.sandbox.wake(woken).await,
            Err(why) => Err(why),
        };
        let took_us = began.elapsed().as_micros() as u64;
        match woken {
            Ok(()) => tracing::info!(session = &*self.session, took_us, "the session's processes go on"),
            Err(error) => {
                tracing::error!(session = &*self.session, %error, "the session's processes could not be brought back; its files are there");
                self.end(live).await;
                return false;
            }
        }
        true
    }
}

/// Captures the workspace while everything in the sandbox stands still; afterwards it goes on unless it is to be `still`.
async fn take(
    sandbox: Option<&Arc<Sandbox>>,
    still: bool,
    home: Home,
    store: Arc<Store>,
    why: String,
) -> Result<Captured, String> {
    if let Some(sandbox) = sandbox {
        sandbox.freeze().await.map_err(|error| error.to_string())?;
    }
    let captured = tokio::task::spawn_blocking(move || capture(&home, &store, why)).await;
    if let Some(sandbox) = sandbox
        && !still
    {
        sandbox.thaw().await.map_err(|error| error.to_string())?;
    }
    captured.map_err(|error| error.to_string())?
}

/// See [`Hands::go_back`].
pub(super) fn go_back(home: &Home, store: &Store, id: &Id) -> Result<(), String> {
    let found = store.show(id).map_err(|error| error.to_string())?;
    // Made now, so that a checkpoint that cannot be read changes nothing.
    store.materialise(id, ownership()).map_err(|error| error.to_string())?;
    let layers = home.layers().map_err(|error| error.to_string())?;
    let layers = layers.ok_or("the session has no workspace yet")?;
    let next = Layers { base: found.base, checkpoint: Some(*id), layer: layers.layer + 1, ..layers };
    home.note_layers(&next).map_err(|error| error.to_string())
}

/// Captures the layer that is written. Nothing may run in it.
fn capture(home: &Home, store: &Store, why: String) -> Result<Captured, String> {
    let layers = home.layers().map_err(|error| error.to_string())?;
    let mut layers = layers.ok_or("the session has no workspace yet")?;
    home.hold(layers.layer).map_err(|error| error.to_string())?;
    let now = now();
    let options = CaptureOptions {
        parent: layers.checkpoint,
        ownership: ownership(),
        cache: Some(home.cache(layers.layer)),
        ..CaptureOptions::new(layers.base.clone(), now)
    };
    let upper = home.layer(layers.layer).join("upper");
    let captured = store.capture(&upper, &options).map_err(|error| error.to_string())?;
    let at_ms = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    layers.taken.push(Taken { id: captured.checkpoint.id, at_ms, why });
    let surplus = layers.taken.len().saturating_sub(KEPT);
    layers.taken.drain(..surplus);
    home.note_layers(&layers).map_err(|error| error.to_string())?;
    Ok(captured)
}
