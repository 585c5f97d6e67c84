//! Client events arrive: all are checked, then all are taken.

use std::collections::BTreeSet;

use palisade_api::{ClientEvent, ContentBlock, EventId, ToolConfirmationResult};

use crate::session::{Answerer, Env, Outcome, Pending, Phase, Place, Refusal, State, Step};

/// Takes client events. `past` holds the ids of those tool calls that the events answer and that are in the log but no
/// longer in the state: their turn is over.
///
/// Answers to tool calls are processed on receipt; everything else waits in the inbox for [`advance`](super::advance).
///
/// # Errors
/// The first event that cannot be taken refuses all of them, and nothing changes.
pub fn ingest(
    state: &mut State,
    events: Vec<ClientEvent>,
    past: &BTreeSet<EventId>,
    env: &mut Env<'_>,
) -> Result<Outcome, Refusal> {
    check(state, &events, past)?;
    let mut step = Step::new(state, env);
    let mut answered = false;
    for event in events {
        match event {
            ClientEvent::UserToolResult(result) => {
                let open = step.state.open_call(&result.tool_use_id).is_some();
                answered |= step.answer_by_client(ClientEvent::UserToolResult(result), open);
            }
            ClientEvent::UserCustomToolResult(result) => {
                let open = step.state.open_call(&result.custom_tool_use_id).is_some();
                answered |= step.answer_by_client(ClientEvent::UserCustomToolResult(result), open);
            }
            // Documented: at the budget an interrupt is accepted, ignored and not recorded.
            ClientEvent::UserInterrupt(event) if step.state.phase == Phase::Exhausted => {
                let queued = step.queued(ClientEvent::UserInterrupt(event));
                step.out.reply.push(queued);
            }
            other => {
                let queued = step.queued(other);
                let pending = Pending { event: queued.clone(), at: step.env.now };
                step.state.pending.push_back(pending.clone());
                step.out.enqueue.push(pending);
                step.out.reply.push(queued);
            }
        }
    }
    if answered {
        step.state.reoffers = 0;
        step.settle();
    }
    Ok(step.finish())
}

fn check(state: &State, events: &[ClientEvent], past: &BTreeSet<EventId>) -> Result<(), Refusal> {
    if events.is_empty() {
        return Err(Refusal::field("events", "must hold at least one event"));
    }
    if state.phase == Phase::Terminated {
        return Err(Refusal::new("session is terminated and accepts no events"));
    }
    let mut blocking: BTreeSet<EventId> = state.blocking().into_iter().collect();
    let mut held: BTreeSet<EventId> =
        state.calls.iter().filter(|c| c.held && !c.answered).map(|c| c.event.clone()).collect();
    for (index, event) in events.iter().enumerate() {
        let at = |field: &str| format!("events.{index}.{field}");
        match event {
            ClientEvent::UserMessage(message) => {
                refuse_at_budget(state, "user.message")?;
                if !blocking.is_empty() && state.phase == Phase::Waiting {
                    let ids: Vec<&str> = blocking.iter().map(EventId::as_str).collect();
                    return Err(Refusal::new(format!(
                        "events.{index}: the session is waiting on responses to events [{}]; answer them or send user.interrupt first",
                        ids.join(", ")
                    )));
                }
                check_content(&message.content, &at("content"))?;
            }
            ClientEvent::UserInterrupt(interrupt) => {
                if let Some(thread) = &interrupt.session_thread_id
                    && *thread != state.thread
                {
                    return Err(Refusal::field(at("session_thread_id"), "names no thread of this session"));
                }
                blocking.clear();
                held.clear();
            }
            ClientEvent::UserToolConfirmation(confirmation) => {
                if !held.remove(&confirmation.tool_use_id) {
                    return Err(Refusal::field(
                        at("tool_use_id"),
                        format!(
                            "{} is not the id of a tool call that waits for a confirmation",
                            confirmation.tool_use_id
                        ),
                    ));
                }
                if confirmation.result == ToolConfirmationResult::Allow && confirmation.deny_message.is_some() {
                    return Err(Refusal::field(at("deny_message"), "is only allowed with result \"deny\""));
                }
                if confirmation.result == ToolConfirmationResult::Deny {
                    blocking.remove(&confirmation.tool_use_id);
                }
            }
            ClientEvent::UserToolResult(result) => {
                if state.place != Place::SelfHosted {
                    return Err(Refusal::field(
                        at("type"),
                        "user.tool_result is only accepted in self_hosted environments",
                    ));
                }
                let id = &result.tool_use_id;
                if held.contains(id) {
                    return Err(Refusal::field(
                        at("tool_use_id"),
                        format!("{id} has not been allowed yet: a user.tool_confirmation must come first"),
                    ));
                }
                check_answer(state, id, Answerer::Worker, past, &at("tool_use_id"))?;
                blocking.remove(id);
            }
            ClientEvent::UserCustomToolResult(result) => {
                let id = &result.custom_tool_use_id;
                check_answer(state, id, Answerer::Client, past, &at("custom_tool_use_id"))?;
                blocking.remove(id);
            }
            ClientEvent::UserDefineOutcome(_) => {
                return Err(Refusal::field(at("type"), "outcomes are not supported by this server version"));
            }
            ClientEvent::SystemMessage(message) => {
                refuse_at_budget(state, "system.message")?;
                let follows = index.checked_sub(1).and_then(|i| events.get(i)).is_some_and(|before| {
                    matches!(
                        before,
                        ClientEvent::UserMessage(_)
                            | ClientEvent::UserToolResult(_)
                            | ClientEvent::UserCustomToolResult(_)
                    )
                });
                if !follows || index + 1 != events.len() {
                    return Err(Refusal::field(
                        at("type"),
                        "system.message must be the last event and directly follow a user.message, user.tool_result or user.custom_tool_result",
                    ));
                }
                if message.content.is_empty() || message.content.len() > 1000 {
                    return Err(Refusal::field(at("content"), "must hold 1 to 1000 text blocks"));
                }
                if message.content.iter().any(|block| !matches!(block, ContentBlock::Text(_))) {
                    return Err(Refusal::field(at("content"), "may hold text blocks only"));
                }
            }
        }
    }
    Ok(())
}

fn refuse_at_budget(state: &State, kind: &str) -> Result<(), Refusal> {
    if state.phase == Phase::Exhausted {
        return Err(Refusal::new(format!(
            "the session has reached its budget: {kind} is not accepted, only user.tool_confirmation, user.tool_result, user.custom_tool_result and user.interrupt; raise or remove the budget to go on"
        )));
    }
    Ok(())
}

fn check_answer(
    state: &State,
    id: &EventId,
    answerer: Answerer,
    past: &BTreeSet<EventId>,
    field: &str,
) -> Result<(), Refusal> {
    let known = state.calls.iter().any(|call| &call.event == id && call.answerer == answerer);
    // A second or late answer is accepted and has no effect, so that a worker that repeats itself is not wedged.
    if known || past.contains(id) {
        return Ok(());
    }
    Err(Refusal::field(field, format!("{id} is not the id of a tool call of this session")))
}

fn check_content(content: &[ContentBlock], field: &str) -> Result<(), Refusal> {
    if content.is_empty() {
        return Err(Refusal::field(field, "must hold at least one block"));
    }
    for (index, block) in content.iter().enumerate() {
        match block {
            ContentBlock::Text(_) | ContentBlock::Image(_) | ContentBlock::Document(_) => {}
            other => {
                let kind = other.type_name();
                let why = if matches!(kind, "text" | "image" | "document") {
                    format!("is not a well-formed {kind} block")
                } else {
                    format!("{kind} is not accepted in a message: use text, image or document")
                };
                return Err(Refusal::field(format!("{field}.{index}"), why));
            }
        }
    }
    Ok(())
}
