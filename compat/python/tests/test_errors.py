"""Typed errors, and that the SDK's retries are steered as they should be."""

from __future__ import annotations

import anthropic
import pytest

from harness import counting_client, message


def test_not_found(server, client, environment):
    for call in (
        lambda: client.beta.agents.retrieve("agent_011CZkYpogX7uDKUyvBTophP"),
        lambda: client.beta.sessions.retrieve("sesn_011CZkYpogX7uDKUyvBTophP"),
        lambda: client.beta.environments.retrieve("env_011CZkYpogX7uDKUyvBTophP"),
        lambda: client.beta.environments.work.retrieve("work_011CZkYpogX7uDKUyvBTophP", environment_id=environment.id),
        lambda: client.beta.sessions.events.send("sesn_011CZkYpogX7uDKUyvBTophP", events=[message("x")]),
        lambda: client.beta.sessions.events.stream("sesn_011CZkYpogX7uDKUyvBTophP"),
        lambda: client.beta.agents.retrieve("not an id/at all"),
    ):
        with pytest.raises(anthropic.NotFoundError) as refused:
            call()
        assert refused.value.type == "not_found_error" and refused.value.status_code == 404
        assert refused.value.request_id == refused.value.body["request_id"]
        assert refused.value.request_id.startswith("req_")


def test_conflict_is_not_retried(server):
    client, requests = counting_client(server)
    agent = client.beta.agents.create(model="scripted:greeter", name="locked")
    del requests[:]
    with pytest.raises(anthropic.ConflictError) as refused:
        client.beta.agents.update(agent.id, name="other", version=99)
    assert len(requests) == 1, "x-should-retry: false keeps the SDK from trying again"
    assert refused.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"model": "scripted:greeter"}, "name"),
        ({"name": "x"}, "model"),
        ({"name": "x" * 257, "model": "scripted:greeter"}, "name"),
        ({"name": 7, "model": "scripted:greeter"}, "name"),
        ({"name": "x", "model": "scripted:greeter", "colour": "red"}, "colour"),
        ({"name": "x", "model": "scripted:greeter", "tools": [{"type": "agent_toolset_19990101"}]}, "tools"),
        ({"name": "x", "model": "scripted:greeter", "metadata": {"k": 1}}, "metadata"),
        ({"name": "x", "model": "scripted:greeter", "metadata": {"k" * 65: "v"}}, "metadata"),
    ],
)
def test_bad_request_names_the_field(server, body, named):
    client, requests = counting_client(server)
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.post("/v1/agents", body=body, cast_to=object)
    assert refused.value.type == "invalid_request_error"
    assert named in refused.value.message, refused.value.message
    assert len(requests) == 1


def test_bad_cursor(client):
    with pytest.raises(anthropic.BadRequestError):
        client.beta.agents.list(page="no such page")


def test_authentication(server):
    with server.client(api_key="sk-ant-api03-wrong") as stranger:
        with pytest.raises(anthropic.AuthenticationError) as refused:
            stranger.beta.agents.list()
    assert refused.value.type == "authentication_error" and refused.value.status_code == 401


def test_both_ways_to_send_a_key(server):
    """Old clients send the key in x-api-key, and ``?beta=true`` with every path."""
    with server.client(
        api_key=None, auth_token=None, default_headers={"x-api-key": server.api_key, "anthropic-version": "2023-06-01"}
    ) as old:
        assert old.beta.agents.list(extra_query={"beta": "true"}, betas=["no-such-beta-2020-01-01"]).data is not None


def test_too_large(server, client, environment, make_agent):
    session = client.beta.sessions.create(agent=make_agent("greeter").id, environment_id=environment.id)
    with pytest.raises(anthropic.APIStatusError) as refused:
        client.beta.sessions.events.send(session.id, events=[message("x" * (33 * 1024 * 1024))])
    assert refused.value.status_code == 413 and isinstance(refused.value, anthropic.APIStatusError)
    assert type(refused.value).__name__ in ("ContentTooLargeError", "RequestTooLargeError")


def test_one_bad_event_refuses_all(client, environment, make_agent):
    session = client.beta.sessions.create(agent=make_agent("greeter").id, environment_id=environment.id)
    for bad in (
        {"type": "user.colour", "content": []},
        {"type": "user.tool_result", "tool_use_id": "sevt_011CZkYpogX7uDKUyvBTophP", "content": []},
        {"type": "user.tool_confirmation", "tool_use_id": "sevt_011CZkYpogX7uDKUyvBTophP", "result": "allow"},
        {"type": "user.message", "content": [{"type": "redacted"}]},
    ):
        with pytest.raises(anthropic.BadRequestError):
            client.beta.sessions.events.send(session.id, events=[message("good"), bad])
    assert list(client.beta.sessions.events.list(session.id, types=["user.message"])) == []
    assert client.beta.sessions.retrieve(session.id).status == "idle"


def test_keys_reach_only_what_is_theirs(server, client, make_agent):
    """An environment key sees the sessions of its environment, and the others' as not existing."""
    mine, theirs = (
        client.beta.environments.create(name=name, config={"type": "self_hosted"}) for name in ("mine", "theirs")
    )
    agent = make_agent("greeter")
    here, there = (client.beta.sessions.create(agent=agent.id, environment_id=it.id) for it in (mine, theirs))
    with server.worker_client(mine.id) as worker:
        assert worker.beta.sessions.retrieve(here.id).id == here.id
        with pytest.raises(anthropic.NotFoundError):
            worker.beta.sessions.retrieve(there.id)
        with pytest.raises(anthropic.NotFoundError):
            worker.beta.environments.work.poll(theirs.id)
        with pytest.raises(anthropic.PermissionDeniedError) as refused:
            worker.beta.agents.list()
        assert refused.value.type == "permission_error"
