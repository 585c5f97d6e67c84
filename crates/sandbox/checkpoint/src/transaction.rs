//! The journal of a transactional call: a call whose changes to the workspace are kept whole or undone whole.
//!
//! ```text
//! prepared ──► executed ──► committed
//!    │  │         │  │          ▲
//!    │  └─────────┼──┴──► compensation needed ──► rolled back
//!    └────────────┴─────────────────────────────►
//! ```
//! Decisions are pure: [`Transaction::step`] says which steps there are, [`recover`] what to do after a crash.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::error::At as _;
use crate::store::{Durable, sync_dir, write_whole};
use crate::{Error, Id, Result, seal};

/// Where a transactional call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The checkpoint to go back to is durable. The call may have begun.
    Prepared,
    /// The call has ended well, and its result is durable.
    Executed,
    /// What it did is kept.
    Committed,
    /// The workspace is as it was before the call.
    RolledBack,
    /// The workspace cannot be brought back, or the call did something outside of it that only a person can undo.
    CompensationNeeded,
}

impl State {
    /// Its name, as in the journal.
    pub fn name(self) -> &'static str {
        match self {
            State::Prepared => "prepared",
            State::Executed => "executed",
            State::Committed => "committed",
            State::RolledBack => "rolled_back",
            State::CompensationNeeded => "compensation_needed",
        }
    }

    /// Whether nothing can follow.
    pub fn is_final(self) -> bool {
        matches!(self, State::Committed | State::RolledBack)
    }

    fn may_become(self, next: State) -> bool {
        match self {
            State::Prepared => matches!(next, State::Executed | State::RolledBack | State::CompensationNeeded),
            State::Executed => matches!(next, State::Committed | State::RolledBack | State::CompensationNeeded),
            // Whoever compensated says which of the two it has become.
            State::CompensationNeeded => matches!(next, State::Committed | State::RolledBack),
            State::Committed | State::RolledBack => false,
        }
    }
}

/// The record of one transactional call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transaction {
    /// The call's id.
    pub call: String,
    /// The session's id.
    pub session: String,
    /// The checkpoint of the workspace before the call.
    pub before: Id,
    /// Where the call is.
    pub state: State,
    /// When it came there, in milliseconds since 1970, UTC.
    pub since_ms: u64,
    /// Why it came there, where that is not plain: the reason of a denial, the failure.
    pub reason: Option<String>,
}

impl Transaction {
    /// A call that may begin once this is written.
    pub fn prepared(session: impl Into<String>, call: impl Into<String>, before: Id, now: SystemTime) -> Transaction {
        Transaction {
            call: call.into(),
            session: session.into(),
            before,
            state: State::Prepared,
            since_ms: millis(now),
            reason: None,
        }
    }

    /// The same call one step on. Coming to the state where it is already is no step and changes nothing, so that a step whose
    /// answer was lost can be asked for again.
    pub fn step(&self, next: State, reason: Option<&str>, now: SystemTime) -> Result<Transaction> {
        if next == self.state {
            return Ok(self.clone());
        }
        if !self.state.may_become(next) {
            return Err(Error::Transition { from: self.state.name(), to: next.name() });
        }
        Ok(Transaction { state: next, since_ms: millis(now), reason: reason.map(str::to_owned), ..self.clone() })
    }

    /// Writes the record; when this returns it is durable. A crash leaves the old record or the new one.
    pub fn write(&self, path: &Path) -> Result<()> {
        let name = path.file_name().and_then(std::ffi::OsStr::to_str);
        let (Some(dir), Some(name)) = (path.parent(), name) else {
            return Err(Error::io("writing", path, io::Error::other("it is no name of a file")));
        };
        write_whole(dir, name, &seal::text(self), Durable::Yes)
    }

    /// Reads the record; `None` when there is none.
    pub fn read(path: &Path) -> Result<Option<Transaction>> {
        match std::fs::read(path) {
            Ok(bytes) => seal::record(&bytes).map(Some).map_err(|what| Error::corrupt(path, what)),
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(why) => Err(Error::io("reading", path, why)),
        }
    }

    /// Removes the record of a call that has come to its end.
    pub fn remove(&self, path: &Path) -> Result<()> {
        if !self.state.is_final() {
            return Err(Error::Transition { from: self.state.name(), to: "removed" });
        }
        std::fs::remove_file(path).at("removing", path)?;
        path.parent().map_or(Ok(()), sync_dir)
    }
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What is known after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// The checkpoint before the call is in the store, and whole.
    pub restorable: bool,
    /// The call may have reached something outside of the workspace: it had a network, or a tool outside of the sandbox.
    pub reached_outside: bool,
}

/// What to do about a transactional call after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It has come to its end.
    Nothing,
    /// Keep the workspace as it is and step to [`State::Committed`].
    Commit,
    /// Restore the checkpoint before the call and step to [`State::RolledBack`].
    RollBack,
    /// Restore the checkpoint, then step to [`State::CompensationNeeded`]: what was done outside is for a person to look at.
    RollBackAndReport,
    /// Nothing can be restored: step to [`State::CompensationNeeded`], or stay there, and have a person look at it.
    Report,
}

/// What to do about a call that a crash left in this state. A call whose result was durable has been seen to succeed, so
/// it is kept; one whose result was not is undone.
pub fn recover(state: State, facts: Facts) -> Action {
    match state {
        State::Committed | State::RolledBack => Action::Nothing,
        State::Executed => Action::Commit,
        State::CompensationNeeded => Action::Report,
        State::Prepared => match (facts.restorable, facts.reached_outside) {
            (true, false) => Action::RollBack,
            (true, true) => Action::RollBackAndReport,
            (false, _) => Action::Report,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const STATES: [State; 5] =
        [State::Prepared, State::Executed, State::Committed, State::RolledBack, State::CompensationNeeded];

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_123)
    }

    fn in_state(state: State) -> Transaction {
        Transaction { state, ..Transaction::prepared("sess_1", "call_1", Id::of(b"before"), now()) }
    }

    #[test]
    fn only_the_steps_of_the_diagram_are_taken() {
        let allowed = [
            (State::Prepared, State::Executed),
            (State::Prepared, State::RolledBack),
            (State::Prepared, State::CompensationNeeded),
            (State::Executed, State::Committed),
            (State::Executed, State::RolledBack),
            (State::Executed, State::CompensationNeeded),
            (State::CompensationNeeded, State::Committed),
            (State::CompensationNeeded, State::RolledBack),
        ];
        for from in STATES {
            for to in STATES {
                let stepped = in_state(from).step(to, Some("why"), now());
                assert_eq!(stepped.is_ok(), from == to || allowed.contains(&(from, to)), "{from:?} to {to:?}");
            }
        }
        // A step that is asked for again does not rewrite why it was taken.
        let denied = in_state(State::Prepared).step(State::RolledBack, Some("denied"), now()).unwrap();
        assert_eq!(denied.step(State::RolledBack, Some("again"), now()).unwrap(), denied);
    }

    #[test]
    fn what_recovery_asks_for_is_a_legal_step_and_ends() {
        for state in STATES {
            for (restorable, reached_outside) in [(false, false), (false, true), (true, false), (true, true)] {
                let action = recover(state, Facts { restorable, reached_outside });
                let next = match action {
                    Action::Nothing => state,
                    Action::Commit => State::Committed,
                    Action::RollBack => State::RolledBack,
                    Action::RollBackAndReport | Action::Report => State::CompensationNeeded,
                };
                let after = in_state(state).step(next, None, now()).unwrap();
                // Recovering twice, as after a second crash, does nothing more.
                let again = recover(after.state, Facts { restorable, reached_outside });
                assert!(matches!(again, Action::Nothing | Action::Report), "{state:?} {action:?} {again:?}");
                // Nothing is restored from a checkpoint that is not there.
                assert!(restorable || !matches!(action, Action::RollBack | Action::RollBackAndReport));
            }
        }
    }

    #[test]
    fn a_record_survives_and_a_broken_one_is_no_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("call_1.json");
        assert_eq!(Transaction::read(&path).unwrap(), None);
        let prepared = in_state(State::Prepared);
        prepared.write(&path).unwrap();
        assert_eq!(Transaction::read(&path).unwrap(), Some(prepared.clone()));
        assert!(prepared.remove(&path).is_err());
        let bytes = std::fs::read(&path).unwrap();
        for place in 0..bytes.len() {
            let mut broken = bytes.clone();
            broken[place] ^= 1;
            std::fs::write(&path, &broken).unwrap();
            assert!(Transaction::read(&path).is_err(), "byte {place}");
            std::fs::write(&path, &bytes[..place]).unwrap();
            assert!(Transaction::read(&path).is_err(), "cut at {place}");
        }
        let ended = prepared.step(State::RolledBack, Some("denied"), now()).unwrap();
        ended.write(&path).unwrap();
        ended.remove(&path).unwrap();
        assert_eq!(Transaction::read(&path).unwrap(), None);
    }
}
