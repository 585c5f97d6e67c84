//! Which calls of a session are to be run, held, dropped: a pure function of the events seen, in order.
//!
//! *Decide, then do*: nothing here waits, reads a clock or touches a tool. [`Ledger::apply`] takes events (history and
//! stream alike, duplicates dropped by id), [`Ledger::startable`] and [`Ledger::take_cancelled`] say what to do.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::wire::Event;

/// A tool call as the agent made it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Call {
    /// The `agent.tool_use` event's id, which the result names.
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) input: serde_json::Value,
    /// A person had to confirm it.
    pub(crate) gated: bool,
    thread: Option<String>,
}

impl Call {
    /// Reads may run side by side and may be repeated; everything else runs alone, in order, at most once.
    pub(crate) fn is_read(&self) -> bool {
        matches!(self.name.as_str(), "read" | "glob" | "grep")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Waits for a confirmation.
    Held,
    /// Waits for its turn.
    Queued,
    /// Its tool runs.
    Running { read: bool },
    /// Its tool is done, the result is on its way.
    Answering,
}

#[derive(Debug)]
struct Entry {
    phase: Phase,
    thread: Option<String>,
    /// Present until the call starts.
    call: Option<Call>,
}

/// Why the session needs no worker any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionEnd {
    Terminated,
    Deleted,
}

/// The state of all calls of one session.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    owned: Arc<BTreeSet<String>>,
    /// Event ids seen, and whether the event was already processed then: queued client events come twice.
    seen: HashMap<String, bool>,
    open: HashMap<String, Entry>,
    queue: VecDeque<String>,
    answered: HashSet<String>,
    verdicts: HashMap<String, bool>,
    dead_threads: HashSet<String>,
    primary: Option<String>,
    running_reads: usize,
    running_alone: bool,
    cancelled: Vec<String>,
    held_news: Vec<(String, String)>,
    turn_ended: bool,
    end: Option<SessionEnd>,
}

impl Ledger {
    pub(crate) fn new(owned: Arc<BTreeSet<String>>) -> Self {
        Self { owned, ..Self::default() }
    }

    /// Takes one event. `false`: it was known already.
    pub(crate) fn apply(&mut self, event: Event) -> bool {
        let processed = event.processed_at.is_some();
        if !event.id.is_empty() {
            match self.seen.get_mut(&event.id) {
                Some(before) if *before || !processed => return false,
                Some(before) => *before = true,
                None => {
                    self.seen.insert(event.id.clone(), processed);
                }
            }
        }
        self.note_turn(&event);
        match event.kind.as_str() {
            "agent.tool_use" => self.called(event),
            "user.tool_result" | "agent.tool_result" => {
                if let Some(id) = event.tool_use_id {
                    self.answer(id);
                }
            }
            "user.tool_confirmation" => self.confirmed(event),
            "user.interrupt" => self.interrupted(event.session_thread_id.as_deref()),
            "session.thread_status_terminated" => {
                if let Some(thread) = event.session_thread_id {
                    self.drop_calls(|ledger, entry| ledger.thread_of(entry) == Some(thread.as_str()));
                    self.dead_threads.insert(thread);
                }
            }
            "session.thread_status_running" | "session.thread_status_idle" | "session.thread_status_rescheduled"
                if self.primary.is_none() =>
            {
                // The first thread status in history is the primary thread's.
                self.primary = event.session_thread_id;
            }
            "session.status_terminated" => self.end = Some(SessionEnd::Terminated),
            "session.deleted" => self.end = Some(SessionEnd::Deleted),
            _ => {}
        }
        true
    }

    fn note_turn(&mut self, event: &Event) {
        match event.kind.as_str() {
            "session.status_idle" => {
                let waits = event.stop_reason.as_ref().is_some_and(|reason| reason.kind == "requires_action");
                self.turn_ended = !waits;
            }
            // None of these starts a turn. (The protocol names the first two. Of the others, a late result would otherwise
            // keep the worker for ever; a turn that really starts says so with `session.status_running`.)
            "user.tool_confirmation" | "session.thread_status_terminated" => {}
            "user.tool_result" | "agent.tool_result" | "session.updated" | "session.usage" => {}
            _ => self.turn_ended = false,
        }
    }

    fn called(&mut self, event: Event) {
        let Some(name) = event.name else { return };
        let dead = event.session_thread_id.as_ref().is_some_and(|thread| self.dead_threads.contains(thread));
        if event.id.is_empty() || !self.owned.contains(&name) || self.answered.contains(&event.id) || dead {
            return;
        }
        let gated = event.evaluated_permission.as_deref().is_some_and(|permission| permission != "allow");
        let phase = match event.evaluated_permission.as_deref() {
            None | Some("allow") => Phase::Queued,
            Some("deny") => return,
            Some(_) => match self.verdicts.get(&event.id) {
                Some(true) => Phase::Queued,
                Some(false) => return,
                None => Phase::Held,
            },
        };
        if phase == Phase::Queued {
            self.queue.push_back(event.id.clone());
        } else {
            self.held_news.push((event.id.clone(), name.clone()));
        }
        let thread = event.session_thread_id;
        let input = event.input.unwrap_or_else(|| serde_json::Value::Object(serde_json::Map::new()));
        let call = Call { id: event.id.clone(), name, input, gated, thread: thread.clone() };
        self.open.insert(event.id, Entry { phase, thread, call: Some(call) });
    }

    fn confirmed(&mut self, event: Event) {
        let Some(id) = event.tool_use_id else { return };
        let allowed = event.result.as_deref() == Some("allow");
        match self.open.get_mut(&id) {
            Some(entry) if entry.phase == Phase::Held => {
                if allowed {
                    entry.phase = Phase::Queued;
                    self.queue.push_back(id.clone());
                } else {
                    // The control plane writes the refusal for the model.
                    self.open.remove(&id);
                }
            }
            _ => {}
        }
        self.verdicts.insert(id, allowed);
    }

    fn answer(&mut self, id: String) {
        self.drop_calls(|_, entry| entry == id.as_str());
        self.answered.insert(id);
    }

    fn interrupted(&mut self, thread: Option<&str>) {
        self.drop_calls(|ledger, entry| thread.is_none() || ledger.thread_of(entry) == thread);
    }

    /// The thread of an open call; a call without one belongs to the primary thread.
    fn thread_of(&self, id: &str) -> Option<&str> {
        self.open.get(id)?.thread.as_deref().or(self.primary.as_deref())
    }

    /// Takes the matching calls out; running ones are to be cancelled. A result already on its way is left to arrive.
    fn drop_calls(&mut self, matches: impl Fn(&Self, &str) -> bool) {
        let ids: Vec<String> = self.open.keys().filter(|id| matches(self, id)).cloned().collect();
        for id in ids {
            match self.open.get(&id).map(|entry| entry.phase) {
                Some(Phase::Running { .. }) => {
                    self.tool_done(&id);
                    self.open.remove(&id);
                    self.cancelled.push(id);
                }
                Some(Phase::Held | Phase::Queued) => {
                    self.open.remove(&id);
                    self.queue.retain(|queued| *queued != id);
                }
                Some(Phase::Answering) | None => {}
            }
        }
    }

    /// Calls that may begin now, in order. They count as running from here on.
    ///
    /// Arrival order is kept between calls with effects, and between those and reads; only neighbouring reads overlap.
    pub(crate) fn startable(&mut self) -> Vec<Call> {
        let mut calls = Vec::new();
        while let Some(id) = self.queue.front() {
            let Some(entry) = self.open.get_mut(id) else {
                self.queue.pop_front();
                continue;
            };
            let Some(call) = entry.call.as_ref() else {
                self.queue.pop_front();
                continue;
            };
            let read = call.is_read();
            if self.running_alone || (!read && self.running_reads > 0) {
                break;
            }
            entry.phase = Phase::Running { read };
            calls.extend(entry.call.take());
            if read {
                self.running_reads += 1;
            } else {
                self.running_alone = true;
            }
            self.queue.pop_front();
        }
        calls
    }

    /// The call's tool has finished; its result is going out. `false`: nobody wants the result any more.
    pub(crate) fn tool_done(&mut self, id: &str) -> bool {
        let Some(entry) = self.open.get_mut(id) else { return false };
        if let Phase::Running { read } = std::mem::replace(&mut entry.phase, Phase::Answering) {
            if read {
                self.running_reads -= 1;
            } else {
                self.running_alone = false;
            }
        }
        true
    }

    /// The control plane has the call's result, or has refused it for good.
    pub(crate) fn settle(&mut self, id: &str) {
        self.open.remove(id);
        self.answered.insert(id.to_owned());
    }

    /// Whether the control plane is known to have an answer to the call.
    pub(crate) fn is_answered(&self, id: &str) -> bool {
        self.answered.contains(id)
    }

    /// Running calls that nobody waits for any more, once.
    pub(crate) fn take_cancelled(&mut self) -> Vec<String> {
        std::mem::take(&mut self.cancelled)
    }

    /// Calls (id, tool) newly held for a confirmation, once.
    pub(crate) fn take_held(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.held_news)
    }

    /// The turn is over and no call is open: the time until the worker leaves may run.
    pub(crate) fn may_leave(&self) -> bool {
        self.turn_ended && self.open.is_empty()
    }

    /// Why the session is over, if it is.
    pub(crate) fn end(&self) -> Option<SessionEnd> {
        self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ledger() -> Ledger {
        Ledger::new(Arc::new(["bash", "read", "write", "edit", "glob", "grep"].map(String::from).into()))
    }

    fn feed(ledger: &mut Ledger, events: &[serde_json::Value]) {
        for event in events {
            ledger.apply(serde_json::from_value(event.clone()).unwrap());
        }
    }

    fn call(id: &str, name: &str) -> serde_json::Value {
        json!({"id": id, "type": "agent.tool_use", "name": name, "input": {}, "evaluated_permission": "allow"})
    }

    fn started(ledger: &mut Ledger) -> Vec<String> {
        ledger.startable().into_iter().map(|call| call.id).collect()
    }

    #[test]
    fn neighbouring_reads_overlap_and_everything_else_keeps_its_order() {
        let mut ledger = ledger();
        let calls = [("r1", "read"), ("r2", "grep"), ("w1", "write"), ("b1", "bash"), ("r3", "glob"), ("r4", "read")];
        feed(&mut ledger, &calls.map(|(id, name)| call(id, name)));
        assert_eq!(started(&mut ledger), ["r1", "r2"]);
        ledger.tool_done("r1");
        assert_eq!(started(&mut ledger), [""; 0]);
        ledger.tool_done("r2");
        assert_eq!(started(&mut ledger), ["w1"]);
        ledger.tool_done("w1");
        assert_eq!(started(&mut ledger), ["b1"]);
        ledger.tool_done("b1");
        assert_eq!(started(&mut ledger), ["r3", "r4"]);
    }

    #[test]
    fn history_decides_before_anything_runs() {
        let mut ledger = ledger();
        let mut asked = call("asked", "bash");
        asked["evaluated_permission"] = json!("ask");
        let mut denied = call("denied", "bash");
        denied["evaluated_permission"] = json!("deny");
        let mut refused = call("refused", "bash");
        refused["evaluated_permission"] = json!("ask");
        let mut child = call("child", "read");
        child["session_thread_id"] = json!("sthr_2");
        feed(
            &mut ledger,
            &[
                json!({"id":"t","type":"session.thread_status_running","session_thread_id":"sthr_1"}),
                call("answered", "bash"),
                call("other", "deploy"),
                asked,
                denied,
                refused,
                child,
                call("open", "bash"),
                json!({"id":"1","type":"user.tool_result","tool_use_id":"answered"}),
                json!({"id":"2","type":"user.tool_confirmation","tool_use_id":"refused","result":"deny"}),
                json!({"id":"3","type":"session.thread_status_terminated","session_thread_id":"sthr_2"}),
            ],
        );
        assert_eq!(started(&mut ledger), ["open"]);
        assert_eq!(ledger.take_held().len(), 2);
        ledger.tool_done("open");
        ledger.settle("open");
        let allow = json!({"id":"4","type":"user.tool_confirmation","tool_use_id":"asked","result":"allow"});
        feed(&mut ledger, &[allow]);
        assert_eq!(started(&mut ledger), ["asked"]);
        feed(&mut ledger, &[call("open", "bash"), call("answered", "bash")]);
        assert_eq!(started(&mut ledger), [""; 0]);
    }

    #[test]
    fn interrupt_cancels_what_came_before_it_and_nothing_after() {
        let mut ledger = ledger();
        feed(&mut ledger, &[call("a", "bash"), call("b", "bash")]);
        assert_eq!(started(&mut ledger), ["a"]);
        feed(&mut ledger, &[json!({"id":"i","type":"user.interrupt","processed_at":null}), call("c", "bash")]);
        assert_eq!(ledger.take_cancelled(), ["a"]);
        assert_eq!(started(&mut ledger), ["c"]);
        feed(&mut ledger, &[json!({"id":"i","type":"user.interrupt","processed_at":"2026-01-01T00:00:00Z"})]);
        assert_eq!(ledger.take_cancelled(), ["c"]);
        feed(
            &mut ledger,
            &[call("d", "bash"), json!({"id":"i","type":"user.interrupt","processed_at":"2026-01-01T00:00:00Z"})],
        );
        assert_eq!(started(&mut ledger), ["d"]);
    }

    #[test]
    fn the_worker_may_leave_only_after_a_turn_with_nothing_open() {
        let idle =
            |id: &str, reason: &str| json!({"id": id, "type": "session.status_idle", "stop_reason": {"type": reason}});
        let mut ledger = ledger();
        feed(&mut ledger, &[idle("1", "requires_action")]);
        assert!(!ledger.may_leave());
        feed(&mut ledger, &[idle("2", "end_turn")]);
        assert!(ledger.may_leave());
        let mut held = call("h", "bash");
        held["evaluated_permission"] = json!("ask");
        feed(&mut ledger, &[held, idle("3", "end_turn")]);
        assert!(!ledger.may_leave());
        feed(&mut ledger, &[json!({"id":"4","type":"user.tool_confirmation","tool_use_id":"h","result":"deny"})]);
        assert!(ledger.may_leave());
        feed(&mut ledger, &[json!({"id":"5","type":"session.status_running"})]);
        assert!(!ledger.may_leave());
    }
}
