"""Workers serve sessions to their end: the official Python one, its replacement after a kill, and ours."""

from __future__ import annotations

import asyncio

import pytest
from anthropic import AsyncAnthropic, beta_async_tool

from harness import (
    Server,
    assert_gapless,
    eventually,
    history,
    message,
    of_type,
    official_worker,
    palisade_worker,
    text_of,
    wait_idle,
)


@pytest.fixture
def start(client, environment, make_agent):
    def start(script, **options):
        agent = make_agent(script, **options)
        return client.beta.sessions.create(
            agent=agent.id, environment_id=environment.id, initial_events=[message("begin")]
        )

    return start


def answers(events):
    """The results of the session's calls, by the calls' ids; fails when a call has none or two."""
    calls = [event.id for event in of_type(events, "agent.tool_use")]
    results = of_type(events, "user.tool_result")
    assert sorted(result.tool_use_id for result in results) == sorted(calls), "one result for each call"
    return {result.tool_use_id: result for result in results}


def assert_built(events):
    """The session of the script ``builder`` went as it should."""
    assert text_of(of_type(events, "agent.message")[-1]) == "Built: 42"
    results = answers(events)
    calls = of_type(events, "agent.tool_use")
    assert [call.name for call in calls] == ["write", "bash", "read"]
    assert not any(result.is_error for result in results.values())
    assert "42" in text_of(results[calls[1].id]) and "answer" in text_of(results[calls[2].id])
    assert_gapless(events)


def test_the_official_worker_serves_a_session(server, client, environment, start, children, tmp_path):
    session = start("builder")
    worker = official_worker(server, environment.id, tmp_path)
    children.append(worker)
    assert_built(wait_idle(client, session.id, "end_turn", child=worker))
    assert (tmp_path / "work" / "answer.txt").read_text() == "answer\n"
    # It gives the item back when the session stays idle, and then serves the next one.
    eventually(lambda: client.beta.environments.work.stats(environment.id).depth == 0, "an empty queue", child=worker)
    second = start("builder")
    assert_built(wait_idle(client, second.id, "end_turn", child=worker))
    assert worker.running


def test_a_killed_official_worker_is_replaced(server, client, environment, start, children, tmp_path):
    """SIGKILL in the middle of a call: the lease lapses, another worker takes the session and ends it."""
    session = start("sleeper")
    first = official_worker(server, environment.id, tmp_path / "one")
    children.append(first)
    eventually((tmp_path / "one/work/started").exists, "the call has begun", child=first)
    first.kill()
    # The orphan of the killed worker waits for its mark to go, and ends.
    (tmp_path / "one/work/started").unlink()
    (pending,) = of_type(history(client, session.id), "agent.tool_use")
    assert of_type(history(client, session.id), "user.tool_result") == []

    # The new one finds the mark of a first attempt, as in a workspace that both share.
    (tmp_path / "two/work").mkdir(parents=True)
    (tmp_path / "two/work/started").touch()
    second = official_worker(server, environment.id, tmp_path / "two")
    children.append(second)
    events = wait_idle(client, session.id, "end_turn", child=second)
    assert text_of(answers(events)[pending.id]).strip() == "second attempt"
    assert text_of(of_type(events, "agent.message")[-1]) == "Survived."
    assert_gapless(events)


def test_the_official_worker_holds_a_call_until_it_is_confirmed(server, client, environment, start, children, tmp_path):
    ask = [{"type": "agent_toolset_20260401", "default_config": {"permission_policy": {"type": "always_ask"}}}]
    session = start("asker", tools=ask)
    worker = official_worker(server, environment.id, tmp_path)
    children.append(worker)
    events = wait_idle(client, session.id, "requires_action", child=worker)
    (call,) = of_type(events, "agent.tool_use")
    confirmation = {"type": "user.tool_confirmation", "tool_use_id": call.id, "result": "allow"}
    client.beta.sessions.events.send(session.id, events=[confirmation])
    events = wait_idle(client, session.id, "end_turn", child=worker)
    assert text_of(answers(events)[call.id]).strip() == "asked"
    assert text_of(of_type(events, "agent.message")[-1]) == "It ran."


def test_our_worker_serves_a_session(server, client, environment, start, children, tmp_path):
    session = start("builder")
    worker = palisade_worker(server, environment.id, tmp_path)
    children.append(worker)
    assert_built(wait_idle(client, session.id, "end_turn", child=worker))


@pytest.mark.parametrize(("first", "second"), [(official_worker, palisade_worker), (palisade_worker, official_worker)])
def test_one_kind_of_worker_takes_over_from_the_other(
    first, second, server, client, environment, start, children, tmp_path
):
    session = start("napper")
    victim = first(server, environment.id, tmp_path / "one")
    children.append(victim)
    # A sandbox shows no marks outside, so all that is waited for is that the session is held.
    eventually(lambda: "active" in states(server, environment), "the session is held", child=victim)
    victim.kill()
    heir = second(server, environment.id, tmp_path / "two")
    children.append(heir)
    events = wait_idle(client, session.id, "end_turn", child=heir)
    (result,) = answers(events).values()
    assert text_of(result).strip() == "rested" and not result.is_error
    assert_gapless(events)


def states(server, environment):
    """The states of the environment's work items, as a worker sees them."""
    with server.worker_client(environment.id) as worker:
        return [item.state for item in worker.beta.environments.work.list(environment.id)]


def test_the_official_worker_outlives_its_server(children, tmp_path):
    """SIGKILL to the server in the middle of a session: the SDK's worker and client go on with the next process."""
    server = Server(tmp_path / "state", "--lease-ttl", "10")
    children.append(server)
    with server.client() as client:
        environment = client.beta.environments.create(name="home", config={"type": "self_hosted"})
        agent = client.beta.agents.create(
            model="scripted:clerk", name="clerk", tools=[{"type": "agent_toolset_20260401"}]
        )
        session = client.beta.sessions.create(
            agent=agent.id, environment_id=environment.id, initial_events=[message("begin")]
        )
        worker = official_worker(server, environment.id, tmp_path)
        children.append(worker)
        for answered in (1, 3):
            eventually(
                lambda: len(of_type(history(client, session.id), "user.tool_result")) >= answered,
                f"{answered} results",
                child=worker,
            )
            before = history(client, session.id)
            server.kill_and_restart()
            after = history(client, session.id)
            assert [event.id for event in after][: len(before)] == [event.id for event in before], "nothing is lost"
        events = wait_idle(client, session.id, "end_turn", child=worker)
        assert len(answers(events)) == 4
        assert text_of(of_type(events, "agent.message")[-1]).startswith("The log has ")
        assert_gapless(events)


def test_a_late_result_does_no_harm(server, client, environment, start, children, tmp_path):
    """An interrupt closes the call; what the worker posts for it later is taken and changes nothing."""
    session = start("sleeper")
    worker = official_worker(server, environment.id, tmp_path)
    children.append(worker)
    mark = tmp_path / "work/started"
    eventually(mark.exists, "the call has begun", child=worker)
    client.beta.sessions.events.send(session.id, events=[{"type": "user.interrupt"}])
    events = wait_idle(client, session.id, "end_turn", child=worker)
    (closed,) = of_type(events, "agent.tool_result")
    assert closed.is_error
    mark.unlink()
    # The worker posts its result, and is there for the next turn.
    client.beta.sessions.events.send(session.id, events=[message("and now?")])
    events = wait_idle(client, session.id, "end_turn", after=len(events), child=worker)
    assert text_of(of_type(events, "agent.message")[-1]) == "Survived."
    assert_gapless(events)


def test_the_tool_runner_answers_custom_tools(server, client, environment, start):
    """``events.tool_runner`` with a local tool, the helper for those who have no environment worker."""
    weather = {
        "type": "custom",
        "name": "get_weather",
        "description": "The weather of a place.",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
    session = start("weather", tools=[weather])

    @beta_async_tool
    async def get_weather(city: str) -> str:
        """The weather of a place.

        Args:
            city: Which place.
        """
        return f"snow in {city}"

    async def run() -> list[str]:
        async with AsyncAnthropic(base_url=server.base_url, api_key=server.api_key) as runner:
            calls = runner.beta.sessions.events.tool_runner(session.id, tools=[get_weather], max_idle=0.5)
            return [call.name async for call in calls]

    assert asyncio.run(asyncio.wait_for(run(), 60)) == ["get_weather"]
    events = wait_idle(client, session.id, "end_turn")
    assert "snow in Oslo" in text_of(of_type(events, "agent.message")[-1])
