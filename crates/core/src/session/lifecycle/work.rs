//! The session's work item has ended.

use palisade_api::WorkId;

use crate::session::{Env, Outcome, Phase, State, Step};

/// Takes note that a work item ended. When calls still wait for a worker another item is offered, later each time, so
/// that the session is never stuck; an operator's stop stands until the session gets input.
pub fn work_ended(state: &mut State, work: &WorkId, by_operator: bool, env: &mut Env<'_>) -> Outcome {
    if state.work.as_ref() != Some(work) || state.phase == Phase::Terminated {
        return Outcome::default();
    }
    let mut step = Step::new(state, env);
    step.state.work = None;
    step.changed();
    if !by_operator && step.state.needs_hands() {
        let backoff = step.env.rules.backoff(step.state.reoffers + 1);
        let at = if step.state.reoffers == 0 { None } else { Some(step.env.later(backoff)) };
        step.state.reoffers += 1;
        step.offer_work(at);
    }
    step.finish()
}
