//! Checkpoints of the session's workspace, and going back to one.

use std::time::UNIX_EPOCH;

use palisade_checkpoint::{CaptureOptions, Captured, Checkpoint, Id, Ownership, Store};

use super::Hands;
use super::transaction::supersede;
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
            let sandbox = live.as_ref().map(|live| &live.sandbox);
            if let Some(sandbox) = sandbox {
                sandbox.freeze().await.map_err(|error| error.to_string())?;
            }
            let captured = tokio::task::spawn_blocking(move || capture(&home, &store, reason)).await;
            if let Some(sandbox) = sandbox
                && !paused
            {
                sandbox.thaw().await.map_err(|error| error.to_string())?;
            }
            captured.map_err(|error| error.to_string())?
        });
        let captured = task.await.map_err(|error| error.to_string())??;
        let (session, checkpoint) = (self.session.to_string(), captured.checkpoint.id.to_string());
        tracing::info!(session, checkpoint, why, read = captured.read, grown = captured.grown, "checkpoint taken");
        (self.observe)(Observation::CheckpointTaken { session, checkpoint, why: why.to_owned() });
        Ok(captured)
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
        if let Some(live) = &*live {
            live.sandbox.freeze().await.map_err(|error| error.to_string())?;
        }
        self.paused.send_replace(true);
        Ok(())
    }

    /// Takes a checkpoint and ends the sandbox, so that the session needs nothing but disk; no call is started until
    /// [`Hands::resume`]. Files are kept, processes are not.
    pub(crate) async fn hibernate(&self) -> Result<Captured, String> {
        // From here on nothing goes on by itself, so that nothing is written between the checkpoint and the end.
        let was_paused = self.paused.send_replace(true);
        let captured = match self.checkpoint("hibernate").await {
            Ok(captured) => captured,
            Err(why) => {
                if !was_paused {
                    self.resume().await?;
                }
                return Err(why);
            }
        };
        let mut live = self.live.lock().await;
        self.end(&mut live).await;
        Ok(captured)
    }

    /// Lets the session go on.
    pub(crate) async fn resume(&self) -> Result<(), String> {
        let live = self.live.lock().await;
        if let Some(live) = &*live {
            live.sandbox.thaw().await.map_err(|error| error.to_string())?;
        }
        self.paused.send_replace(false);
        Ok(())
    }
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
