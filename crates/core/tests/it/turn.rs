//! Turns: their order, their failures, their limits.

use palisade_api::{Event, SessionStatus, StopReason};
use palisade_core::session::{self, Effect, Ended, FailureKind, Phase, Place, Purpose};
use serde_json::json;

use crate::rig::{Rig, text, tool};

fn last_stop(rig: &Rig) -> StopReason {
    match rig.log.last().unwrap() {
        Event::SessionStatusIdle(idle) => idle.stop_reason.clone(),
        other => panic!("not idle: {}", other.type_name()),
    }
}

#[test]
fn a_plain_turn_follows_the_documented_order() {
    let mut rig = Rig::new(Place::SelfHosted, Rig::toolset());
    let reply = rig.say("hi");
    assert_eq!(reply[0].processed_at(), None);
    assert!(rig.log.is_empty(), "a message waits in the inbox");
    rig.advance();
    assert_eq!(
        rig.types(0),
        ["session.status_running", "session.thread_status_running", "user.message", "span.model_request_start"]
    );
    assert_eq!(rig.log[2].id(), reply[0].id(), "the echo keeps its id");
    assert!(rig.log[2].processed_at().is_some());
    assert_eq!(rig.work.len(), 1, "a session that starts to run asks for hands");
    rig.complete(vec![text("hello")], Ended::EndTurn);
    assert_eq!(
        rig.types(4),
        [
            "agent.message",
            "span.model_request_end",
            "session.thread_status_idle",
            "session.usage",
            "session.status_idle"
        ]
    );
    assert_eq!(last_stop(&rig), StopReason::EndTurn);
    assert_eq!(rig.state.session.usage.input_tokens, Some(100));
    assert_eq!(rig.state.session.status, SessionStatus::Idle);
}

#[test]
fn a_message_that_comes_meanwhile_is_read_before_the_turn_ends() {
    let mut rig = Rig::new(Place::SelfHosted, Rig::toolset());
    rig.say("one");
    rig.advance();
    rig.say("two");
    rig.advance();
    assert_eq!(rig.types(4).len(), 0, "it stays in the inbox while the model works");
    rig.complete(vec![text("first")], Ended::EndTurn);
    assert_eq!(rig.types(4), ["agent.message", "span.model_request_end", "user.message", "span.model_request_start"]);
}

#[test]
fn failures_reschedule_and_then_exhaust() {
    let mut rig = Rig::new(Place::SelfHosted, Rig::toolset());
    rig.say("hi");
    rig.advance();
    rig.fail(FailureKind::Overloaded, true);
    assert_eq!(
        rig.types(4),
        ["span.model_request_end", "session.error", "session.status_rescheduled", "session.thread_status_rescheduled"]
    );
    let Phase::Rescheduled { at, .. } = rig.state.phase.clone() else { panic!("not rescheduled") };
    rig.advance();
    assert_eq!(rig.log.len(), 8, "nothing happens before its time");
    rig.now = at.as_micros();
    rig.advance();
    assert_eq!(rig.types(8), ["session.status_running", "session.thread_status_running", "span.model_request_start"]);
    for _ in 2..rig.rules.max_failures {
        rig.fail(FailureKind::Overloaded, true);
        rig.now += 1_000_000_000;
        rig.advance();
    }
    rig.fail(FailureKind::Overloaded, true);
    assert_eq!(last_stop(&rig), StopReason::RetriesExhausted);
    rig.say("again");
    rig.advance();
    assert!(matches!(rig.state.phase, Phase::Sampling { .. }), "a new message starts a new turn");
}

#[test]
fn a_late_reply_changes_nothing() {
    let mut rig = Rig::new(Place::SelfHosted, Rig::toolset());
    rig.say("hi");
    rig.advance();
    let before = rig.request();
    rig.send(json!([{"type": "user.interrupt"}])).unwrap();
    rig.advance();
    assert_eq!(last_stop(&rig), StopReason::EndTurn);
    let reply = session::Reply { parts: Vec::new(), ended: Ended::EndTurn, usage: session::TokenUse::default() };
    let outcome = rig.step(|state, env| session::complete(state, &before, reply, env));
    assert!(outcome.is_empty());
}

#[test]
fn an_interrupt_and_what_follows_it_are_two_turns() {
    let mut rig = Rig::new(Place::SelfHosted, Rig::toolset());
    rig.say("hi");
    rig.advance();
    rig.send(json!([
        {"type": "user.interrupt"},
        {"type": "user.message", "content": [{"type": "text", "text": "rather this"}]},
    ]))
    .unwrap();
    let outcome = rig.step(session::advance);
    assert!(outcome.effects.contains(&Effect::CancelSample));
    rig.keep(outcome);
    assert_eq!(
        rig.types(4),
        [
            "user.interrupt",
            "span.model_request_end",
            "session.thread_status_idle",
            "session.usage",
            "session.status_idle"
        ]
    );
    rig.advance();
    assert_eq!(rig.types(9)[2], "user.message");
    assert!(matches!(rig.state.phase, Phase::Sampling { .. }));
}

#[test]
fn a_restart_closes_the_open_span_and_asks_again() {
    let mut rig = Rig::new(Place::SelfHosted, Rig::toolset());
    rig.say("hi");
    rig.advance();
    let before = rig.request();
    let outcome = rig.step(session::resume);
    rig.keep(outcome);
    assert_eq!(rig.types(4), ["span.model_request_end", "span.model_request_start"]);
    assert_ne!(rig.request(), before);
    assert!(matches!(rig.effects[0], Effect::Sample { .. }));
}

#[test]
fn a_full_window_is_summarised_first() {
    let mut rig = Rig::new(Place::SelfHosted, Rig::toolset());
    rig.window = 120;
    rig.say("one");
    rig.advance();
    rig.complete(vec![text("x")], Ended::EndTurn);
    rig.say("two");
    rig.advance();
    assert!(matches!(rig.state.phase, Phase::Sampling { purpose: Purpose::Compaction, .. }));
    assert_eq!(rig.state.pending.len(), 1, "the message waits until the summary is there");
    rig.complete(vec![text("summary")], Ended::EndTurn);
    let from = rig.log.len() - 3;
    assert_eq!(rig.types(from), ["agent.thread_context_compacted", "user.message", "span.model_request_start"]);
}

#[test]
fn the_budget_stops_the_turn_and_a_raise_resumes_it() {
    let mut rig = Rig::new(Place::SelfHosted, Rig::toolset());
    rig.state.session.budget = Some(
        serde_json::from_value(json!({"type": "limit", "max_list_cost": {"amount": "1", "currency": "USD"}})).unwrap(),
    );
    rig.say("hi");
    rig.advance();
    rig.state.cost = 2 * session::MICROCENTS;
    rig.complete(vec![tool("bash")], Ended::ToolUse);
    let call = rig.calls()[0].clone();
    rig.result(&call);
    assert_eq!(last_stop(&rig), StopReason::BudgetReached);
    let refused = rig.send(json!([{"type": "user.message", "content": [{"type": "text", "text": "x"}]}])).unwrap_err();
    assert!(refused.message.contains("user.custom_tool_result"), "{refused}");
    let change = session::Change {
        budget: palisade_api::Patch::Value(
            serde_json::from_value(json!({"type": "limit", "max_list_cost": {"amount": "9", "currency": "USD"}}))
                .unwrap(),
        ),
        ..session::Change::default()
    };
    let outcome = rig.step(|state, env| session::update(state, change, env)).unwrap();
    rig.keep(outcome);
    rig.advance();
    assert!(matches!(rig.state.phase, Phase::Sampling { .. }));
}

#[test]
fn running_sessions_are_not_archived() {
    let mut rig = Rig::new(Place::SelfHosted, Rig::toolset());
    rig.say("hi");
    rig.advance();
    assert!(rig.step(session::archive).is_err());
    rig.complete(vec![text("x")], Ended::EndTurn);
    let outcome = rig.step(session::archive).unwrap();
    rig.keep(outcome);
    assert_eq!(rig.types(rig.log.len() - 1), ["session.status_terminated"]);
    assert!(rig.send(json!([{"type": "user.interrupt"}])).is_err());
}

#[test]
fn an_mcp_server_that_cannot_be_reached_is_told_and_left_out() {
    let mut rig = Rig::new(Place::SelfHosted, Rig::toolset());
    let server = json!({"type": "url", "name": "tracker", "url": "https://mcp.example.org/mcp"});
    rig.state.session.agent.mcp_servers = vec![serde_json::from_value(server).unwrap()];
    rig.say("hi");
    rig.advance();
    let error = serde_json::to_value(&rig.log[2]).unwrap();
    assert_eq!(error["error"]["type"], "mcp_connection_failed_error");
    assert_eq!(error["error"]["mcp_server_name"], "tracker");
    assert_eq!(rig.types(3), ["user.message", "span.model_request_start"]);
}
