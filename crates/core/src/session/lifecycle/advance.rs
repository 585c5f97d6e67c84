//! The session goes on by itself: its inbox is read and the next model request is made.

use palisade_api::{Event, StopReason, ToolConfirmationResult};

use crate::session::{Env, Outcome, Phase, Purpose, State, Step};

/// Does the next thing that the state and the inbox allow. An empty outcome means that there is nothing to do until
/// something arrives.
pub fn advance(state: &mut State, env: &mut Env<'_>) -> Outcome {
    let mut step = Step::new(state, env);
    if step.state.phase == Phase::Terminated {
        return step.finish();
    }
    if step.state.pending.iter().any(|p| matches!(p.event, Event::UserInterrupt(_))) {
        interrupt(&mut step);
        return step.finish();
    }
    match step.state.phase.clone() {
        Phase::Waiting => confirm(&mut step),
        Phase::Idle if !step.state.pending.is_empty() => {
            step.start_turn();
            step.next_request(Purpose::Reply);
        }
        Phase::Rescheduled { at, purpose } if step.env.now >= at => {
            step.running();
            step.request(purpose);
        }
        Phase::Rescheduled { at, .. } => step.out.effects.push(crate::session::Effect::Wake(at)),
        Phase::Exhausted if !step.over_budget() => {
            step.start_turn();
            step.next_request(Purpose::Reply);
        }
        _ => {}
    }
    step.finish()
}

/// Goes on after a restart of the process: a model request that was under way is closed as failed and made again.
pub fn resume(state: &mut State, env: &mut Env<'_>) -> Outcome {
    let mut step = Step::new(state, env);
    if let Phase::Sampling { request, purpose } = step.state.phase.clone() {
        step.close_request(request, true, None);
        step.request(purpose);
    }
    step.finish()
}

/// Reads the inbox up to its last interrupt and ends the turn, if there is one.
fn interrupt(step: &mut Step<'_, '_>) {
    let last = step.state.pending.iter().rposition(|p| matches!(p.event, Event::UserInterrupt(_))).unwrap_or(0);
    for _ in 0..=last {
        step.promote_first();
    }
    match step.state.phase.clone() {
        Phase::Sampling { request, .. } => {
            step.out.effects.push(crate::session::Effect::CancelSample);
            step.close_request(request, true, None);
            step.end_turn(StopReason::EndTurn, None);
        }
        Phase::Waiting => {
            for event in step.state.blocking() {
                step.answer_by_server(&event, "The tool call was interrupted by the user before it finished.");
            }
            step.end_turn(StopReason::EndTurn, None);
        }
        Phase::Rescheduled { .. } => step.end_turn(StopReason::EndTurn, None),
        Phase::Idle | Phase::Exhausted | Phase::Terminated => {}
    }
}

/// Reads the confirmations out of the inbox.
fn confirm(step: &mut Step<'_, '_>) {
    let mut denied = false;
    while let Some(at) = step.state.pending.iter().position(|p| matches!(p.event, Event::UserToolConfirmation(_))) {
        let Some(Event::UserToolConfirmation(confirmation)) = step.promote(at) else { break };
        match confirmation.result {
            ToolConfirmationResult::Allow => {
                if let Some(call) = step.state.open_call(&confirmation.tool_use_id) {
                    call.held = false;
                }
            }
            ToolConfirmationResult::Deny => {
                let Some(call) = step.state.open_call(&confirmation.tool_use_id) else { continue };
                let name = call.name.clone();
                let why = confirmation.deny_message.as_deref().unwrap_or("");
                let text = denial(&name, why);
                step.answer_by_server(&confirmation.tool_use_id, &text);
                denied = true;
            }
        }
    }
    if !step.out.entries.is_empty() {
        // A worker that has gone would never see that its call may now run.
        step.ensure_work();
    }
    if denied {
        step.settle();
    }
}

/// What the model is told about a call that a person or a rule refused.
pub(crate) fn denial(tool: &str, why: &str) -> String {
    if why.is_empty() {
        format!("Permission to use {tool} was denied.")
    } else {
        format!("Permission to use {tool} was denied: {why}")
    }
}

/// Whether this event is read from the inbox at the next model request.
pub(crate) fn is_input(event: &Event) -> bool {
    matches!(event, Event::UserMessage(_) | Event::SystemMessage(_))
}
