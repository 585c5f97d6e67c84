//! A session: its state, its log, and the transitions between its durable steps.

pub mod lifecycle;
mod state;
mod step;

pub use lifecycle::*;
pub use state::{
    Answerer, Call, Effect, Outcome, Pending, Phase, Place, Purpose, State, needs_hands, session_from_records,
};
pub(crate) use step::Step;
pub use step::TokenUse;

use std::collections::BTreeMap;

use palisade_api::{Event, EventId, PlainEvent, Timestamp, WorkId};

/// Costs are counted in millionths of a cent, so that a single cached token is not rounded away.
pub const MICROCENTS: u64 = 1_000_000;

/// New identifiers.
pub trait Ids: Send {
    /// For an event.
    fn event(&mut self) -> EventId;
    /// For a work item.
    fn work(&mut self) -> WorkId;
}

/// What a model costs at list price, in cents per million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Tokens read.
    pub input: u64,
    /// Tokens written.
    pub output: u64,
    /// Tokens read from the cache.
    pub cache_read: u64,
    /// Tokens written to the cache.
    pub cache_write: u64,
}

/// The numbers that decide how long a session tries.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Failed model requests in a row before the turn is given up.
    pub max_failures: u32,
    /// Model requests in one turn.
    pub max_rounds: u32,
    /// Compactions in one turn.
    pub max_compactions: u32,
    /// The first pause after a failure, in microseconds; doubles up to 64 times.
    pub backoff: i64,
    /// The conversation is summarised when it fills this share of the model's window, in hundredths.
    pub compact_at: u64,
    /// List prices by model id. A model without one cannot have a budget.
    pub prices: BTreeMap<String, Price>,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            max_failures: 6,
            max_rounds: 1000,
            max_compactions: 3,
            backoff: 1_000_000,
            compact_at: 80,
            prices: BTreeMap::new(),
        }
    }
}

impl Rules {
    /// The pause after this many failures in a row, in microseconds.
    pub fn backoff(&self, failures: u32) -> i64 {
        self.backoff.saturating_mul(1 << failures.saturating_sub(1).min(6))
    }
}

/// What a transition may look at besides the state.
pub struct Env<'a> {
    /// The time.
    pub now: Timestamp,
    /// Where identifiers come from.
    pub ids: &'a mut dyn Ids,
    /// The rules in force.
    pub rules: &'a Rules,
    /// The model's context window, in tokens.
    pub window: u32,
}

impl Env<'_> {
    /// So many microseconds from now.
    pub fn later(&self, micros: i64) -> Timestamp {
        self.now.plus(micros)
    }
}

/// Why a command was refused; nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For people; names the field and the fix.
    pub message: String,
    /// For programs.
    pub code: Option<&'static str>,
}

impl Refusal {
    /// A refusal that concerns the request as a whole.
    pub fn new(message: impl Into<String>) -> Refusal {
        Refusal { message: message.into(), code: None }
    }

    /// A refusal because of one field.
    pub fn field(field: impl AsRef<str>, why: impl AsRef<str>) -> Refusal {
        Refusal { message: format!("{}: {}", field.as_ref(), why.as_ref()), code: None }
    }

    /// Adds a code for programs.
    #[must_use]
    pub fn code(self, code: &'static str) -> Refusal {
        Refusal { code: Some(code), ..self }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

/// The last event of a session that is being deleted. It is streamed and never logged: the log is gone.
pub fn deleted(ids: &mut dyn Ids, now: Timestamp) -> Event {
    Event::SessionDeleted(PlainEvent::new(ids.event(), now))
}
