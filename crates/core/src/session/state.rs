//! The state of a session between two of its durable steps.

use std::collections::VecDeque;

use palisade_api::{Event, EventId, PermissionPolicy, Session, ThreadId, Timestamp, WorkId};
use serde::{Deserialize, Serialize};

use crate::batch::{Kind, LogEntry, Record};

/// Where a session's tools run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// An environment worker claims the session and runs its tools.
    SelfHosted,
    /// The hosted product's own sandboxes, which this server does not have.
    Cloud,
}

/// What a model request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// The next reply of the agent.
    Reply,
    /// A summary that replaces the conversation so far.
    Compaction,
}

/// What the session is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Phase {
    /// Between turns.
    Idle,
    /// A model request is under way; `request` is its `span.model_request_start`.
    Sampling {
        /// The open span.
        request: EventId,
        /// What the answer will be used for.
        purpose: Purpose,
    },
    /// The model asked for tools whose answers come from outside.
    Waiting,
    /// A model request failed and will be repeated.
    Rescheduled {
        /// Not before this time.
        at: Timestamp,
        /// What was tried.
        purpose: Purpose,
    },
    /// The budget is used up.
    Exhausted,
    /// Ended for good.
    Terminated,
}

/// Who answers a tool call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answerer {
    /// The environment worker, with `user.tool_result`.
    Worker,
    /// The API client, with `user.custom_tool_result`.
    Client,
}

/// A tool call that the turn waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The event that announced it.
    pub event: EventId,
    /// The tool.
    pub name: String,
    /// Who answers.
    pub answerer: Answerer,
    /// A person must allow it first.
    pub held: bool,
    /// The event that answered it.
    pub answered: bool,
}

/// A client event that has arrived and is not yet in the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Pending {
    /// The event, with `processed_at` null.
    pub event: Event,
    /// When it arrived.
    pub at: Timestamp,
}

/// Everything about a session that outlives a crash, and nothing that can be derived from its log.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// The API object.
    pub session: Session,
    /// Where its tools run.
    pub place: Place,
    /// The primary thread.
    pub thread: ThreadId,
    /// What it is doing.
    pub phase: Phase,
    /// The last sequence number of its log.
    pub tail: u64,
    /// The calls of the last reply, in order.
    pub calls: Vec<Call>,
    /// Failed model requests in a row.
    pub failures: u32,
    /// Model requests since the turn began.
    pub rounds: u32,
    /// Compactions since the turn began.
    pub compactions: u32,
    /// Input tokens of the last request: how full the model's window is.
    pub window_used: u64,
    /// When the turn began, while one is under way.
    pub running_since: Option<Timestamp>,
    /// Model cost so far, in millionths of a cent at list price.
    pub cost: u64,
    /// The work item that asks for hands.
    pub work: Option<WorkId>,
    /// Work items offered in a row that ended without an answer.
    pub reoffers: u32,
    /// Events that wait for their turn.
    pub pending: VecDeque<Pending>,
}

/// The part of [`State`] that is stored beside the API object.
#[derive(Serialize, Deserialize)]
struct Stored {
    session: serde_json::Map<String, serde_json::Value>,
    place: Place,
    thread: ThreadId,
    phase: Phase,
    tail: u64,
    calls: Vec<Call>,
    failures: u32,
    rounds: u32,
    #[serde(default)]
    compactions: u32,
    window_used: u64,
    running_since: Option<Timestamp>,
    cost: u64,
    work: Option<WorkId>,
    #[serde(default)]
    reoffers: u32,
}

/// A session of the API, read from its two records.
///
/// # Errors
/// When a record does not hold a session.
pub fn session_from_records(session: &Record, agent: &Record) -> Result<Session, serde_json::Error> {
    Ok(State::from_records(session, agent)?.session)
}

/// Whether a worker has something to do for the session that this record holds.
///
/// # Errors
/// When the record does not hold a session.
pub fn needs_hands(session: &Record) -> Result<bool, serde_json::Error> {
    let stored: Stored = session.decode()?;
    Ok(hands_needed(stored.place, &stored.phase, &stored.calls))
}

fn hands_needed(place: Place, phase: &Phase, calls: &[Call]) -> bool {
    place == Place::SelfHosted
        && match phase {
            Phase::Sampling { .. } | Phase::Rescheduled { .. } => true,
            Phase::Waiting => calls.iter().any(|call| !call.answered && call.answerer == Answerer::Worker),
            Phase::Idle | Phase::Exhausted | Phase::Terminated => false,
        }
}

impl State {
    /// A session that has not begun.
    pub fn new(session: Session, place: Place, thread: ThreadId) -> State {
        State {
            session,
            place,
            thread,
            phase: Phase::Idle,
            tail: 0,
            calls: Vec::new(),
            failures: 0,
            rounds: 0,
            compactions: 0,
            window_used: 0,
            running_since: None,
            cost: 0,
            work: None,
            reoffers: 0,
            pending: VecDeque::new(),
        }
    }

    /// The record of the session: all but its agent, which is large and seldom changes.
    ///
    /// # Errors
    /// Never for a state that was made by this crate.
    pub fn record(&self) -> Result<Record, serde_json::Error> {
        let mut session = match serde_json::to_value(&self.session)? {
            serde_json::Value::Object(map) => map,
            _ => serde_json::Map::new(),
        };
        session.remove("agent");
        let stored = Stored {
            session,
            place: self.place,
            thread: self.thread.clone(),
            phase: self.phase.clone(),
            tail: self.tail,
            calls: self.calls.clone(),
            failures: self.failures,
            rounds: self.rounds,
            compactions: self.compactions,
            window_used: self.window_used,
            running_since: self.running_since,
            cost: self.cost,
            work: self.work.clone(),
            reoffers: self.reoffers,
        };
        let mut record = Record::new(Kind::Session, self.session.id.as_str(), self.session.created_at, &stored)?;
        record.parent = Some(self.session.environment_id.as_str().to_owned());
        record.archived = self.session.archived_at.is_some();
        record.status = Some(self.session.status.as_str().to_owned());
        record.due_at = match &self.phase {
            Phase::Rescheduled { at, .. } => Some(*at),
            _ => None,
        };
        record.labels.insert("agent_id".to_owned(), self.session.agent.id.as_str().to_owned());
        record.labels.insert("agent_version".to_owned(), self.session.agent.version.to_string());
        Ok(record)
    }

    /// The record of the session's agent.
    ///
    /// # Errors
    /// Never for a state that was made by this crate.
    pub fn agent_record(&self) -> Result<Record, serde_json::Error> {
        Record::new(Kind::SessionAgent, self.session.id.as_str(), self.session.created_at, &self.session.agent)
    }

    /// Reads a state back; its pending events are kept elsewhere and start empty.
    ///
    /// # Errors
    /// When a record does not hold a session.
    pub fn from_records(session: &Record, agent: &Record) -> Result<State, serde_json::Error> {
        let stored: Stored = session.decode()?;
        let mut object = stored.session;
        object.insert("agent".to_owned(), serde_json::from_str(&agent.body)?);
        Ok(State {
            session: serde_json::from_value(serde_json::Value::Object(object))?,
            place: stored.place,
            thread: stored.thread,
            phase: stored.phase,
            tail: stored.tail,
            calls: stored.calls,
            failures: stored.failures,
            rounds: stored.rounds,
            compactions: stored.compactions,
            window_used: stored.window_used,
            running_since: stored.running_since,
            cost: stored.cost,
            work: stored.work,
            reoffers: stored.reoffers,
            pending: VecDeque::new(),
        })
    }

    /// The calls that block the turn, in order.
    pub fn blocking(&self) -> Vec<EventId> {
        self.calls.iter().filter(|call| !call.answered).map(|call| call.event.clone()).collect()
    }

    /// The unanswered call announced by this event.
    pub fn open_call(&mut self, event: &EventId) -> Option<&mut Call> {
        self.calls.iter_mut().find(|call| &call.event == event && !call.answered)
    }

    /// Whether a worker has something to do for this session.
    pub fn needs_hands(&self) -> bool {
        hands_needed(self.place, &self.phase, &self.calls)
    }
}

/// What a command did: everything that must be made durable together, and what follows once it is.
#[derive(Debug, Default)]
pub struct Outcome {
    /// New entries of the log.
    pub entries: Vec<LogEntry>,
    /// Client events to put into the inbox.
    pub enqueue: Vec<Pending>,
    /// Client events that left the inbox.
    pub dequeue: Vec<EventId>,
    /// The events to answer the caller with.
    pub reply: Vec<Event>,
    /// A work item to queue, not before the time given.
    pub work: Option<(WorkId, Option<Timestamp>)>,
    /// The state must be written although the log has nothing new.
    pub dirty: bool,
    /// The session's agent changed and its record must be written too.
    pub agent_changed: bool,
    /// What to do after the commit.
    pub effects: Vec<Effect>,
}

impl Outcome {
    /// Whether anything must be written.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
            && self.enqueue.is_empty()
            && self.dequeue.is_empty()
            && self.work.is_none()
            && !self.dirty
    }
}

/// What follows a commit. Every effect can be derived again from the state, so that none is lost in a crash.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Ask the model.
    Sample {
        /// The span that was opened for it.
        request: EventId,
        /// What for.
        purpose: Purpose,
    },
    /// Give up the request under way.
    CancelSample,
    /// Call [`advance`](super::advance) again at this time.
    Wake(Timestamp),
    /// End the work item: nobody needs hands any more.
    StopWork(WorkId),
}

/// How a tool is answered and guarded.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Ruling {
    /// Not for this agent.
    Unknown,
    /// A built-in tool.
    Builtin(PermissionPolicy),
    /// A tool of the API client.
    Custom,
}
