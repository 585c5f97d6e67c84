//! Transactional calls: what a call did to the workspace is kept whole or undone whole.

use std::path::Path;
use std::sync::PoisonError;

use palisade_checkpoint::{Action, Facts, State, Store, Transaction, recover as decide};

use super::checkpoint::go_back;
use super::{Hands, Open};
use crate::ledger::Call;
use crate::options::Before;
use crate::pace::now;
use crate::workspace::Home;

impl Hands {
    /// Takes the checkpoint that the policy wants before this call. Says whether the call is transactional; a call whose
    /// checkpoint cannot be taken is not run.
    pub(super) async fn before(&self, call: &Call) -> Result<bool, String> {
        let policy = self.plan.checkpoints;
        let wanted = match policy.before {
            Before::Off => false,
            Before::Gated => call.gated,
            Before::All => true,
        };
        if call.is_read() {
            return Ok(false);
        }
        // Before whatever changes something, wanted or not: what is undone later would take this call's effects along.
        self.recover_live().await;
        if !wanted {
            return Ok(false);
        }
        self.ready().await?;
        let taken = self.checkpoint(&format!("before {}", call.name)).await;
        let prepared = taken.and_then(|captured| {
            if !policy.transactional {
                return Ok(());
            }
            let before = captured.checkpoint.id;
            Transaction::prepared(&*self.session, &call.id, before, now())
                .write(&self.plan.home.transaction)
                .map_err(|error| error.to_string())
        });
        prepared.map_err(|reason| {
            tracing::error!(session = &*self.session, call = call.id, reason, "no checkpoint before the call; not run");
            "The call was not run: the worker could not take a checkpoint of the workspace before it (see the worker's log)."
                .to_owned()
        })?;
        *self.transacting.lock().unwrap_or_else(PoisonError::into_inner) =
            policy.transactional.then(|| Open { call: call.id.clone(), succeeded: false });
        Ok(policy.transactional)
    }

    pub(super) fn succeeded(&self, call: &str) {
        if let Some(open) = &mut *self.transacting.lock().unwrap_or_else(PoisonError::into_inner) {
            open.succeeded |= open.call == call;
        }
    }

    /// Whether what this call did to the workspace will be undone if it is stopped now.
    pub(crate) fn would_be_undone(&self, call: &str) -> bool {
        let open = self.transacting.lock().unwrap_or_else(PoisonError::into_inner);
        open.as_ref().is_some_and(|open| open.call == call && !open.succeeded)
    }

    /// The call's result is durable: what it did is kept, if it ended well.
    pub(crate) async fn keep(&self, call: &str) {
        let ended = self.transacting.lock().unwrap_or_else(PoisonError::into_inner).take_if(|open| open.call == call);
        if !ended.is_some_and(|open| open.succeeded) {
            return;
        }
        let (path, kept) = (self.plan.home.transaction.clone(), call.to_owned());
        let done = tokio::task::spawn_blocking(move || keep(&path, &kept)).await;
        if let Ok(Err(error)) = done {
            tracing::error!(session = &*self.session, call, %error, "it could not be noted that a call is kept");
        }
    }

    /// Undoes a call; says what became of the workspace, for the agent.
    pub(super) async fn undo(&self, call: &Call, reason: &str) -> String {
        let mut live = self.live.lock().await;
        self.end(&mut live).await;
        tracing::info!(session = &*self.session, call = call.id, reason, "undoing a call");
        if !self.recover().await {
            return "The workspace could not be returned to its state before this call; check it before going on."
                .to_owned();
        }
        if self.was_undone(&call.id) {
            "The workspace was returned to its state before this call, and all processes of the session were ended."
                .to_owned()
        } else {
            "All processes of the session were ended; meanwhile an operator brought the workspace back to a checkpoint."
                .to_owned()
        }
    }

    /// Undoes a call that was given up while it ran, if there is one. No sandbox is left then.
    async fn recover_live(&self) {
        if !self.plan.home.transaction.exists() {
            return;
        }
        let mut live = self.live.lock().await;
        self.end(&mut live).await;
        self.recover().await;
    }

    /// Whether this call was cut off and then undone.
    pub(crate) fn was_undone(&self, call: &str) -> bool {
        self.undone.lock().unwrap_or_else(PoisonError::into_inner).contains(call)
    }

    /// Undoes or keeps what a transactional call left. Nothing may run in the workspace. Says whether all is well.
    pub(crate) async fn recover(&self) -> bool {
        let (home, store, session) = (self.plan.home.clone(), self.plan.store.clone(), self.session.clone());
        let done = tokio::task::spawn_blocking(move || recover(&home, &store, &session)).await;
        match done {
            Ok(Ok(undone)) => {
                self.undone.lock().unwrap_or_else(PoisonError::into_inner).extend(undone);
                true
            }
            Ok(Err(reason)) => {
                tracing::error!(session = &*self.session, reason, "a call that was not finished could not be undone");
                false
            }
            Err(_) => false,
        }
    }
}

/// Does with the call that is under way what has to be done with it: see [`decide`]. Names the call when it was undone.
pub(super) fn recover(home: &Home, store: &Store, session: &str) -> Result<Option<String>, String> {
    let path = &home.transaction;
    let Some(open) = Transaction::read(path).map_err(|error| error.to_string())? else { return Ok(None) };
    let now = now();
    let restorable = store.show(&open.before).is_ok();
    // There is no network in a sandbox; what was written to outputs and memory stays.
    let action = decide(open.state, Facts { restorable, reached_outside: false });
    let end = |state, reason: Option<&str>| {
        let step = open.step(state, reason, now).map_err(|error| error.to_string())?;
        step.write(path).map_err(|error| error.to_string())?;
        if step.state.is_final() {
            step.remove(path).map_err(|error| error.to_string())?
        }
        Ok(None)
    };
    match action {
        Action::Nothing => open.remove(path).map(|()| None).map_err(|error| error.to_string()),
        Action::Commit => end(State::Committed, None),
        Action::RollBack | Action::RollBackAndReport => {
            // What fails here, such as for want of space, is tried again before anything else happens in the workspace.
            go_back(home, store, &open.before)?;
            tracing::info!(session, call = open.call, checkpoint = %open.before, "call undone");
            end(State::RolledBack, open.reason.as_deref())?;
            Ok(Some(open.call.clone()))
        }
        Action::Report => {
            end(State::CompensationNeeded, Some("the checkpoint before the call cannot be read"))?;
            Err(format!(
                "call {}: the checkpoint {} before it cannot be read; restore another one to go on",
                open.call, open.before
            ))
        }
    }
}

/// Ends the call that is under way, whatever its state: somebody brought the workspace back to another checkpoint.
pub(super) fn supersede(path: &Path) -> palisade_checkpoint::Result<()> {
    let Some(open) = Transaction::read(path)? else { return Ok(()) };
    if open.state.is_final() {
        return open.remove(path);
    }
    let ended = open.step(State::RolledBack, Some("another checkpoint was restored"), now())?;
    ended.write(path)?;
    ended.remove(path)
}

/// Steps the call that is under way to its end, when it is this one.
fn keep(path: &Path, call: &str) -> palisade_checkpoint::Result<()> {
    match Transaction::read(path)? {
        Some(open) if open.call == call && open.state == State::Prepared => {
            let now = now();
            let executed = open.step(State::Executed, None, now)?;
            executed.write(path)?;
            let committed = executed.step(State::Committed, None, now)?;
            committed.write(path)?;
            committed.remove(path)
        }
        _ => Ok(()),
    }
}
