//! Tool calls that somebody else answers.

use palisade_api::{Event, EventId, StopReason};
use palisade_core::session::{self, Ended, Phase, Place};
use serde_json::json;

use crate::rig::{Rig, text, tool};

fn blocking(rig: &Rig) -> Vec<EventId> {
    match rig.log.last().unwrap() {
        Event::SessionStatusIdle(idle) => match &idle.stop_reason {
            StopReason::RequiresAction { event_ids } => event_ids.clone(),
            other => panic!("{other:?}"),
        },
        other => panic!("not idle: {}", other.type_name()),
    }
}

fn waiting(tools: serde_json::Value, calls: &[&str]) -> Rig {
    let mut rig = Rig::new(Place::SelfHosted, tools);
    rig.say("go");
    rig.advance();
    rig.complete(calls.iter().map(|name| tool(name)).collect(), Ended::ToolUse);
    rig
}

#[test]
fn a_part_of_the_answers_reemits_the_rest() {
    let mut rig = waiting(Rig::toolset(), &["bash", "read"]);
    let calls = rig.calls();
    assert_eq!(blocking(&rig), calls);
    let from = rig.log.len();
    rig.result(&calls[1]);
    assert_eq!(
        rig.types(from),
        ["user.tool_result", "session.thread_status_idle", "session.usage", "session.status_idle"]
    );
    assert_eq!(blocking(&rig), [calls[0].clone()]);
    let from = rig.log.len();
    rig.result(&calls[0]);
    assert_eq!(
        rig.types(from),
        ["user.tool_result", "session.status_running", "session.thread_status_running", "span.model_request_start"]
    );
}

#[test]
fn the_first_answer_wins_and_later_ones_are_harmless() {
    let mut rig = waiting(Rig::toolset(), &["bash", "read"]);
    let calls = rig.calls();
    rig.result(&calls[0]);
    let from = rig.log.len();
    let reply = rig.result(&calls[0]);
    assert!(reply[0].processed_at().is_some());
    assert_eq!(rig.log.len(), from);
    rig.result(&calls[1]);
    rig.complete(vec![text("done")], Ended::EndTurn);
    let from = rig.log.len();
    rig.result(&calls[1]);
    assert_eq!(rig.log.len(), from);
    let refused = rig.send(json!([{"type": "user.tool_result", "tool_use_id": "sevt_none"}])).unwrap_err();
    assert!(refused.message.starts_with("events.0.tool_use_id: sevt_none"), "{refused}");
}

#[test]
fn a_message_is_refused_while_answers_are_awaited() {
    let mut rig = waiting(Rig::toolset(), &["bash"]);
    let calls = rig.calls();
    let message = json!({"type": "user.message", "content": [{"type": "text", "text": "x"}]});
    let refused = rig.send(json!([message])).unwrap_err();
    assert!(refused.message.contains(calls[0].as_str()), "{refused}");
    rig.send(json!([{"type": "user.tool_result", "tool_use_id": calls[0]}, message])).unwrap();
}

#[test]
fn one_bad_event_refuses_all() {
    let mut rig = waiting(Rig::toolset(), &["bash"]);
    let calls = rig.calls();
    let before = rig.log.len();
    let refused = rig.send(json!([
        {"type": "user.tool_result", "tool_use_id": calls[0]},
        {"type": "user.message", "content": [{"type": "redacted"}]},
    ]));
    assert!(refused.unwrap_err().message.starts_with("events.1.content.0"));
    assert_eq!(rig.log.len(), before);
    assert!(!rig.state.calls[0].answered);
}

#[test]
fn a_call_that_asks_is_held_until_a_person_allows_it() {
    let tools =
        json!([{"type": "agent_toolset_20260401", "default_config": {"permission_policy": {"type": "always_ask"}}}]);
    let mut rig = waiting(tools, &["bash", "write"]);
    let calls = rig.calls();
    let refused = rig.send(json!([{"type": "user.tool_result", "tool_use_id": calls[0]}])).unwrap_err();
    assert!(refused.message.contains("user.tool_confirmation"), "{refused}");
    rig.send(json!([
        {"type": "user.tool_confirmation", "tool_use_id": calls[0], "result": "allow"},
        {"type": "user.tool_confirmation", "tool_use_id": calls[1], "result": "deny", "deny_message": "not today"},
    ]))
    .unwrap();
    rig.advance();
    let denial = rig.log.iter().rev().find_map(|event| match event {
        Event::AgentToolResult(result) => Some(result),
        _ => None,
    });
    let denial = denial.unwrap();
    assert_eq!(denial.tool_use_id, calls[1]);
    assert_eq!(denial.is_error, Some(true));
    assert!(serde_json::to_string(&denial.content).unwrap().contains("not today"));
    assert_eq!(blocking(&rig), [calls[0].clone()]);
    rig.result(&calls[0]);
    assert!(matches!(rig.state.phase, Phase::Sampling { .. }));
}

#[test]
fn calls_that_no_rule_allows_are_denied_at_once() {
    let tools = json!([{"type": "agent_toolset_20260401", "configs": [{"name": "bash", "enabled": false}]}]);
    let rig = waiting(tools, &["bash", "nothing", "web_fetch"]);
    let denied = rig.log.iter().filter(|event| matches!(event, Event::AgentToolResult(_))).count();
    assert_eq!(denied, 3);
    assert!(matches!(rig.state.phase, Phase::Sampling { .. }), "the model hears of it and goes on");
}

#[test]
fn an_interrupt_closes_the_calls() {
    let mut rig = waiting(Rig::toolset(), &["bash", "read"]);
    let calls = rig.calls();
    rig.send(json!([{"type": "user.interrupt"}])).unwrap();
    rig.advance();
    let closed = rig.log.iter().filter(|event| matches!(event, Event::AgentToolResult(_))).count();
    assert_eq!(closed, 2);
    assert_eq!(rig.state.phase, Phase::Idle);
    let before = rig.log.len();
    rig.result(&calls[0]);
    assert_eq!(rig.log.len(), before, "the worker's late result is taken and ignored");
}

#[test]
fn a_lost_work_item_is_offered_again_while_calls_wait() {
    let mut rig = waiting(Rig::toolset(), &["bash"]);
    let first = rig.state.work.clone().unwrap();
    let outcome = rig.step(|state, env| session::work_ended(state, &first, false, env));
    rig.keep(outcome);
    let second = rig.state.work.clone().unwrap();
    assert_ne!(first, second);
    let outcome = rig.step(|state, env| session::work_ended(state, &first, false, env));
    assert!(outcome.is_empty(), "an item that is not the session's own is none of its business");
    let outcome = rig.step(|state, env| session::work_ended(state, &second, true, env));
    rig.keep(outcome);
    assert_eq!(rig.state.work, None, "an operator's stop stands");
    let calls = rig.calls();
    rig.result(&calls[0]);
    assert!(rig.state.work.is_some(), "until the session has something to do again");
}

#[test]
fn custom_tools_are_answered_by_the_client_anywhere() {
    let tools = json!([{"type": "custom", "name": "lookup", "description": "d", "input_schema": {"type": "object"}}]);
    let mut rig = Rig::new(Place::Cloud, tools);
    rig.say("go");
    rig.advance();
    rig.complete(vec![tool("lookup")], Ended::ToolUse);
    let calls = rig.calls();
    assert_eq!(blocking(&rig), calls);
    assert!(rig.work.is_empty(), "a cloud session asks for no hands");
    rig.send(json!([{"type": "user.custom_tool_result", "custom_tool_use_id": calls[0], "content": []}])).unwrap();
    assert!(matches!(rig.state.phase, Phase::Sampling { .. }));
}
