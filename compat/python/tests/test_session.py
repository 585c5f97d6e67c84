"""Whole sessions: streams with previews, confirmations, custom tools, interrupts."""

from __future__ import annotations

import anthropic
import pytest
from anthropic.lib.sessions import accumulate_managed_agents_event

from harness import assert_gapless, eventually, history, message, of_type, text_of, wait_idle

ASK = [{"type": "agent_toolset_20260401", "default_config": {"permission_policy": {"type": "always_ask"}}}]
WEATHER = [
    {
        "type": "custom",
        "name": "get_weather",
        "description": "The weather of a place.",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
]


@pytest.fixture
def start(client, environment, make_agent):
    """Starts a session of the agent that this script plays."""

    def start(script, **options):
        agent = make_agent(script, **options)
        return client.beta.sessions.create(
            agent=agent.id, environment_id=environment.id, initial_events=[message("begin")]
        )

    return start


def test_previews_add_up(client, environment, make_agent):
    """The accumulator follows every delta; what it built is a prefix of the final event, which replaces it."""
    session = client.beta.sessions.create(agent=make_agent("greeter").id, environment_id=environment.id)
    snapshot, seen, finals, starts = None, [], [], []
    with client.beta.sessions.events.stream(session.id, event_deltas=["agent.message", "agent.thinking"]) as stream:
        for turn in ("hello", "tell me more"):
            client.beta.sessions.events.send(session.id, events=[message(turn)])
            for event in stream:
                before = snapshot
                snapshot = accumulate_managed_agents_event(snapshot, event)
                if event.type == "event_start":
                    starts.append(event.event.id)
                if event.type == "event_delta":
                    seen.append(text_of(snapshot))
                if event.type == "agent.message":
                    assert before is not None and before.id == event.id, "the final event follows its preview"
                    assert text_of(event).startswith(text_of(before)) and text_of(before)
                    finals.append(event)
                if event.type == "session.status_idle":
                    break
    assert starts == [event.id for event in finals] and len(finals) == 2
    assert len(seen) >= 2 and "script" in text_of(finals[0])
    listed = history(client, session.id)
    assert {"event_start", "event_delta"}.isdisjoint(event.type for event in listed)
    assert [event.id for event in of_type(listed, "agent.message")] == [event.id for event in finals]
    assert_gapless(listed)


def test_a_stream_without_previews(client, environment, make_agent):
    session = client.beta.sessions.create(agent=make_agent("greeter").id, environment_id=environment.id)
    with client.beta.sessions.events.stream(session.id) as stream:
        client.beta.sessions.events.send(session.id, events=[message("hello")])
        kinds = []
        for event in stream:
            kinds.append(event.type)
            if event.type == "session.status_idle":
                break
    assert "event_start" not in kinds and "event_delta" not in kinds
    order = [kind for kind in kinds if not kind.startswith("user.")]
    assert order == [
        "session.status_running",
        "session.thread_status_running",
        "span.model_request_start",
        "agent.message",
        "span.model_request_end",
        "session.thread_status_idle",
        "session.usage",
        "session.status_idle",
    ]
    with pytest.raises(anthropic.BadRequestError):
        client.beta.sessions.events.stream(session.id, event_deltas=["agent.tool_use"])


def test_confirmation_allowed(client, start):
    session = start("asker", tools=ASK)
    events = wait_idle(client, session.id, "requires_action")
    (call,) = of_type(events, "agent.tool_use")
    assert call.evaluated_permission == "ask" and call.evaluation.type == "always_ask"
    assert events[-1].stop_reason.event_ids == [call.id]
    with pytest.raises(anthropic.BadRequestError):
        client.beta.sessions.events.send(session.id, events=[message("are you there?")])

    confirmation = {"type": "user.tool_confirmation", "tool_use_id": call.id, "result": "allow"}
    client.beta.sessions.events.send(session.id, events=[confirmation])
    # It is still open: now it waits for the hands of the environment.
    client.beta.sessions.events.send(
        session.id,
        events=[
            {"type": "user.tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "asked"}]},
        ],
    )
    events = wait_idle(client, session.id, "end_turn")
    assert text_of(of_type(events, "agent.message")[-1]) == "It ran."
    assert_gapless(events)


def test_confirmation_denied(client, start):
    session = start("asker", tools=ASK)
    (call,) = of_type(wait_idle(client, session.id, "requires_action"), "agent.tool_use")
    client.beta.sessions.events.send(
        session.id,
        events=[
            {"type": "user.tool_confirmation", "tool_use_id": call.id, "result": "deny", "deny_message": "not on a Sunday"}
        ],
    )
    events = wait_idle(client, session.id, "end_turn")
    assert text_of(of_type(events, "agent.message")[-1]) == "It was refused.", "the model saw an error result"
    (result,) = of_type(events, "agent.tool_result")
    assert result.tool_use_id == call.id and result.is_error and "not on a Sunday" in text_of(result)
    assert_gapless(events)


def test_custom_tool(client, start):
    session = start("weather", tools=WEATHER)
    events = wait_idle(client, session.id, "requires_action")
    (call,) = of_type(events, "agent.custom_tool_use")
    assert (call.name, call.input) == ("get_weather", {"city": "Oslo"})
    assert events[-1].stop_reason.event_ids == [call.id]
    result = {"type": "user.custom_tool_result", "custom_tool_use_id": call.id}
    sent = client.beta.sessions.events.send(
        session.id, events=[result | {"content": [{"type": "text", "text": "snow"}], "is_error": False}]
    )
    assert sent.data[0].custom_tool_use_id == call.id and sent.data[0].processed_at is not None
    events = wait_idle(client, session.id, "end_turn")
    assert "snow" in text_of(of_type(events, "agent.message")[-1])
    assert_gapless(events)


def test_partial_answers_ask_again(client, start):
    """Two calls in one turn: answering one of them asks again, for the other."""
    session = start("two_calls", tools=WEATHER)
    events = wait_idle(client, session.id, "requires_action")
    calls = [event.id for event in of_type(events, "agent.custom_tool_use")]
    assert len(calls) == 2 and events[-1].stop_reason.event_ids == calls
    answer = lambda call: {"type": "user.custom_tool_result", "custom_tool_use_id": call, "content": []}  # noqa: E731
    client.beta.sessions.events.send(session.id, events=[answer(calls[0])])
    events = wait_idle(client, session.id, "requires_action", after=len(events))
    assert events[-1].stop_reason.event_ids == [calls[1]]
    client.beta.sessions.events.send(session.id, events=[answer(calls[1])])
    assert_gapless(wait_idle(client, session.id, "end_turn"))


def test_interrupt_closes_the_pending_call(client, start):
    session = start("hands")
    events = wait_idle(client, session.id, "requires_action")
    (call,) = of_type(events, "agent.tool_use")
    client.beta.sessions.events.send(session.id, events=[{"type": "user.interrupt"}])
    events = wait_idle(client, session.id, "end_turn", after=len(events))
    (result,) = of_type(events, "agent.tool_result")
    assert result.tool_use_id == call.id and result.is_error
    # A late result does no harm, and the session takes new input.
    client.beta.sessions.events.send(session.id, events=[{"type": "user.tool_result", "tool_use_id": call.id}])
    sent = client.beta.sessions.events.send(session.id, events=[message("go on")])
    events = wait_idle(client, session.id, "requires_action", after=len(events))
    assert sent.data[0].id in [event.id for event in events]
    assert_gapless(events)


def test_interrupt_in_the_middle_of_a_reply(client, environment, make_agent):
    """The preview ends without a final event, the request is closed as a failure, and the turn is over."""
    session = client.beta.sessions.create(agent=make_agent("talker").id, environment_id=environment.id)
    snapshot, seen = None, []
    with client.beta.sessions.events.stream(session.id, event_deltas=["agent.message"]) as stream:
        client.beta.sessions.events.send(session.id, events=[message("speak")])
        for event in stream:
            seen.append(event)
            snapshot = accumulate_managed_agents_event(snapshot, event)
            if event.type == "event_delta" and len(of_type(seen, "event_delta")) == 3:
                client.beta.sessions.events.send(session.id, events=[{"type": "user.interrupt"}])
            if event.type == "session.status_idle":
                break
    assert text_of(snapshot).startswith("Thi") and of_type(seen, "agent.message") == []
    (end,) = of_type(seen, "span.model_request_end")
    (begin,) = of_type(seen, "span.model_request_start")
    assert end.model_request_start_id == begin.id and end.is_error
    assert seen[-1].stop_reason.type == "end_turn" and seen[-2].type == "session.usage"
    client.beta.sessions.events.send(session.id, events=[message("still there?")])
    events = eventually(lambda: (it := history(client, session.id)) and of_type(it, "agent.message") and it, "a reply")
    assert text_of(of_type(events, "agent.message")[-1]) == "Yes."
    assert_gapless(events)


def test_deleted_session_ends_its_streams(client, environment, make_agent):
    session = client.beta.sessions.create(agent=make_agent("greeter").id, environment_id=environment.id)
    with client.beta.sessions.events.stream(session.id) as stream:
        client.beta.sessions.delete(session.id)
        assert [event.type for event in stream][-1] == "session.deleted"
