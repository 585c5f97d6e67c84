//! A model request has failed.

use palisade_api::EventId;

use crate::session::step::TokenUse;
use crate::session::{Effect, Env, Outcome, Phase, Purpose, State, Step};

/// Why a model request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The provider is overloaded.
    Overloaded,
    /// The provider limits the rate.
    RateLimited,
    /// The provider wants payment.
    Billing,
    /// Anything else about the request.
    Request,
    /// The conversation does not fit the model's window.
    ContextTooLong,
}

/// A failed model request.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// Why.
    pub kind: FailureKind,
    /// For people.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retry: bool,
    /// The provider's own wish, in microseconds.
    pub after: Option<i64>,
    /// Tokens that were used all the same.
    pub usage: Option<TokenUse>,
}

/// Takes the failure of the request `request`: tries again later, or ends the turn.
pub fn fail(state: &mut State, request: &EventId, failure: Failure, env: &mut Env<'_>) -> Outcome {
    let purpose = match &state.phase {
        Phase::Sampling { request: open, purpose } if open == request => *purpose,
        _ => return Outcome::default(),
    };
    let mut step = Step::new(state, env);
    step.close_request(request.clone(), true, failure.usage);
    if failure.kind == FailureKind::ContextTooLong && purpose == Purpose::Reply {
        step.next_request(Purpose::Compaction);
        return step.finish();
    }
    step.state.failures += 1;
    let retry = failure.retry && step.state.failures < step.env.rules.max_failures;
    let kind = match failure.kind {
        FailureKind::Overloaded => "model_overloaded_error",
        FailureKind::RateLimited => "model_rate_limited_error",
        FailureKind::Billing => "billing_error",
        FailureKind::ContextTooLong => "compaction_limit_reached_error",
        FailureKind::Request => "model_request_failed_error",
    };
    if retry {
        step.error(kind, &failure.message, "retrying");
        let backoff = step.env.rules.backoff(step.state.failures).max(failure.after.unwrap_or(0));
        let at = step.env.later(backoff);
        step.rescheduled();
        step.state.phase = Phase::Rescheduled { at, purpose };
        step.out.effects.push(Effect::Wake(at));
    } else {
        step.exhausted(kind, &failure.message);
    }
    step.finish()
}
