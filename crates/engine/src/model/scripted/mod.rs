//! A model that follows a script: for demos, tests and places without a network.
//!
//! A reply is a function of the script and the conversation alone, so that a session goes on after a restart where it was.
//! The one exception is `times`, which counts in memory how often a failure was played.

mod condition;
mod play;
mod schema;
mod template;
mod view;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Mutex, PoisonError};

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tracing::debug;

pub use schema::{Script, ScriptError};

use super::{ModelClient, ModelError, ModelEvent, ModelRequest};
use schema::{Branch, Reply};
use view::View;

/// The window assumed unless the script says otherwise, in tokens.
const WINDOW: u32 = 200_000;
/// Counters kept for `times`; the oldest goes first.
const MOST_COUNTERS: usize = 4096;

/// A client that plays a [`Script`].
pub struct Scripted {
    script: Script,
    played: Mutex<Counters>,
}

impl fmt::Debug for Scripted {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Scripted").field("script", &self.script.name()).finish_non_exhaustive()
    }
}

/// How often a failure was played, by conversation and place in the script.
#[derive(Default)]
struct Counters {
    counts: HashMap<(String, String), u32>,
    order: VecDeque<(String, String)>,
}

impl Counters {
    /// Counts this time; false when the failure has been played `times` times already.
    fn take(&mut self, key: (String, String), times: u32) -> bool {
        if !self.counts.contains_key(&key) {
            if self.order.len() >= MOST_COUNTERS
                && let Some(oldest) = self.order.pop_front()
            {
                self.counts.remove(&oldest);
            }
            self.order.push_back(key.clone());
        }
        let count = self.counts.entry(key).or_default();
        *count = count.saturating_add(1);
        *count <= times
    }
}

impl Scripted {
    /// Plays this script.
    pub fn new(script: Script) -> Scripted {
        Scripted { script, played: Mutex::default() }
    }

    /// The reply and its place in the script: rules first, then the step, then what is said otherwise.
    fn choose(&self, view: &View<'_>) -> (String, Option<&Reply>) {
        let script = &self.script;
        for (number, rule) in script.rules.iter().enumerate() {
            if rule.holds(view) {
                return (format!("rules[{number}]"), Some(&rule.reply));
            }
        }
        let position = if script.per_turn { view.replies_of_turn } else { view.replies };
        if let Some(step) = script.steps.get(position) {
            let branches = step.iter().enumerate();
            if let Some((number, branch)) = branches.into_iter().find(|(_, branch)| branch.holds(view)) {
                return (format!("steps[{position}].when[{number}]"), Some(&branch.reply));
            }
        }
        (format!("otherwise[{position}]"), script.otherwise.as_ref())
    }
}

impl Branch {
    fn holds(&self, view: &View<'_>) -> bool {
        self.condition.as_ref().is_none_or(|condition| condition.holds(view))
    }
}

impl ModelClient for Scripted {
    fn stream(&self, request: ModelRequest) -> BoxStream<'static, Result<ModelEvent, ModelError>> {
        let view = View::of(&request);
        let (place, reply) = self.choose(&view);
        debug!(session = %request.conversation, script = self.script.name(), place, "scripted reply");
        let over;
        let reply = match reply {
            Some(reply) => reply,
            None => {
                over = Reply::text(format!("The script {} is over.", self.script.name()));
                &over
            }
        };
        let fails = reply.failure.as_ref().is_some_and(|failure| match failure.times {
            None => true,
            Some(times) => {
                let key = (request.conversation.clone(), place.clone());
                self.played.lock().unwrap_or_else(PoisonError::into_inner).take(key, times)
            }
        });
        let play = play::play(reply, &view, &request, fails);
        let events = stream::iter(play.events).then(|(wait, event)| async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            event
        });
        if play.hangs { events.chain(stream::pending()).boxed() } else { events.boxed() }
    }

    fn context_window(&self, _: &str) -> u32 {
        self.script.context_window.unwrap_or(WINDOW)
    }
}
