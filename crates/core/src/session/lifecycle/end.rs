//! The session ends.

use crate::session::{Effect, Env, Outcome, Phase, Refusal, State, Step};

/// Archives a session: it becomes read-only and reports `terminated`. Archiving again changes nothing.
///
/// # Errors
/// While the session is running.
pub fn archive(state: &mut State, env: &mut Env<'_>) -> Result<Outcome, Refusal> {
    if state.session.archived_at.is_some() {
        return Ok(Outcome::default());
    }
    may_delete(state)?;
    let mut step = Step::new(state, env);
    let now = step.env.now;
    step.state.session.archived_at = Some(now);
    step.terminated();
    if let Some(work) = step.state.work.take() {
        step.out.effects.push(Effect::StopWork(work));
    }
    Ok(step.finish())
}

/// Whether the session may be archived or deleted now.
///
/// # Errors
/// While the session is running.
pub fn may_delete(state: &State) -> Result<(), Refusal> {
    match state.phase {
        Phase::Sampling { .. } | Phase::Rescheduled { .. } => {
            Err(Refusal::new("the session is running: send user.interrupt and wait until it is idle"))
        }
        _ => Ok(()),
    }
}
