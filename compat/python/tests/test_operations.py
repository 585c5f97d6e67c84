"""Every operation of agents, environments, sessions and events by its SDK method, and the models that come back."""

from __future__ import annotations

from datetime import datetime

import pytest
from anthropic import BadRequestError, ConflictError, NotFoundError

from harness import message, of_type, text_of, wait_idle


def test_agents(client):
    """create, retrieve, update, list, archive."""
    agents = client.beta.agents
    made = agents.create(
        model="scripted:greeter",
        name="survey",
        description="looks around",
        system="Be brief.",
        tools=[
            {
                "type": "agent_toolset_20260401",
                "default_config": {"permission_policy": {"type": "always_ask"}},
                "configs": [{"name": "bash", "enabled": True, "permission_policy": {"type": "always_allow"}}],
            },
            {
                "type": "custom",
                "name": "lookup",
                "description": "Looks something up.",
                "input_schema": {"type": "object", "properties": {"key": {"type": "string"}}, "required": ["key"]},
            },
        ],
        metadata={"team": "red", "tier": "1"},
    )
    assert made.id.startswith("agent_") and made.type == "agent" and made.version == 1
    assert (made.name, made.description, made.system) == ("survey", "looks around", "Be brief.")
    assert made.model.id == "scripted:greeter" and made.model.effort.type
    assert made.metadata == {"team": "red", "tier": "1"}
    assert made.execution_identity.type == "service_account"
    assert made.archived_at is None and made.multiagent is None and made.skills == [] and made.mcp_servers == []
    assert isinstance(made.created_at, datetime)
    assert made._request_id and made._request_id.startswith("req_")
    toolset, custom = made.tools
    assert toolset.type == "agent_toolset_20260401" and toolset.default_config.enabled is True
    assert toolset.default_config.permission_policy.type == "always_ask"
    assert [(it.name, it.permission_policy.type) for it in toolset.configs] == [("bash", "always_allow")]
    assert custom.type == "custom" and custom.input_schema.required == ["key"]

    assert agents.retrieve(made.id).to_dict() == made.to_dict()

    # Absent keeps, null clears, a value replaces; metadata merges by key and null deletes.
    patched = agents.update(made.id, system=None, metadata={"tier": None, "site": "a"}, version=1)
    assert patched.version == 2 and patched.system is None and patched.description == "looks around"
    assert patched.metadata == {"team": "red", "site": "a"} and patched.tools == made.tools
    assert agents.update(made.id, name="survey").version == 2, "an update without effect makes no version"
    assert agents.update(made.id, description="", tools=None).tools == []
    assert agents.retrieve(made.id, version=1).system == "Be brief."
    assert agents.retrieve(made.id).description is None

    assert made.id in [agent.id for agent in agents.list()]
    assert agents.list(created_at_gte=made.created_at, limit=1).data
    archived = agents.archive(made.id)
    assert isinstance(archived.archived_at, datetime)
    assert made.id not in [agent.id for agent in agents.list()]
    assert made.id in [agent.id for agent in agents.list(include_archived=True)]


def test_agent_versions(client):
    """versions.list, over several pages."""
    agent = client.beta.agents.create(model="scripted:greeter", name="v1")
    for number in range(2, 6):
        client.beta.agents.update(agent.id, name=f"v{number}")
    listed = list(client.beta.agents.versions.list(agent.id, limit=2))
    assert sorted(version.version for version in listed) == [1, 2, 3, 4, 5]
    assert {version.name for version in listed} == {f"v{number}" for number in range(1, 6)}


def test_environments(client):
    """create, retrieve, update, list, archive, delete."""
    environments = client.beta.environments
    made = environments.create(name="field", config={"type": "self_hosted"}, description="d", metadata={"a": "1", "b": "2"})
    assert made.id.startswith("env_") and made.type == "environment" and made.config.type == "self_hosted"
    assert (made.name, made.description, made.metadata, made.archived_at) == ("field", "d", {"a": "1", "b": "2"}, None)
    assert environments.retrieve(made.id).to_dict() == made.to_dict()

    patched = environments.update(made.id, description=None, metadata={"a": None, "b": "", "c": "3"})
    assert patched.description is None and patched.metadata == {"c": "3"} and patched.name == "field"

    cloud = environments.create(
        name="cloud", config={"type": "cloud", "networking": {"type": "limited", "allowed_hosts": ["example.com"]}}
    )
    assert cloud.config.type == "cloud" and cloud.config.networking.type == "limited"
    assert cloud.config.networking.allowed_hosts == ["example.com"]
    assert cloud.config.networking.allow_mcp_servers is False and cloud.config.packages.pip == []
    with pytest.raises(BadRequestError) as refused:
        environments.update(cloud.id, config={"type": "self_hosted"})
    assert refused.value.error_code == "invalid_config_type_change"

    assert {made.id, cloud.id} <= {environment.id for environment in environments.list()}
    archived = environments.archive(made.id)
    assert archived.archived_at is not None
    with pytest.raises(BadRequestError) as refused:
        environments.update(made.id, name="again")
    assert refused.value.error_code == "environment_archived"
    assert made.id not in {environment.id for environment in environments.list()}
    assert made.id in {environment.id for environment in environments.list(include_archived=True)}

    gone = environments.delete(cloud.id)
    assert (gone.id, gone.type) == (cloud.id, "environment_deleted")
    with pytest.raises(NotFoundError):
        environments.retrieve(cloud.id)


def test_sessions(client, environment, make_agent):
    """create, retrieve, update, list, archive, delete."""
    agent = make_agent("greeter", system="Be brief.")
    sessions = client.beta.sessions
    made = sessions.create(agent=agent.id, environment_id=environment.id, title="first", metadata={"k": "v", "gone": "x"})
    assert made.id.startswith("sesn_") and made.type == "session" and made.status == "idle"
    assert (made.title, made.metadata, made.environment_id) == ("first", {"k": "v", "gone": "x"}, environment.id)
    assert made.agent.type == "agent" and (made.agent.id, made.agent.version) == (agent.id, 1)
    assert made.agent.system == "Be brief." and made.agent.model.id == "scripted:greeter"
    assert made.resources == [] and made.vault_ids == [] and made.budget is None and made.outcome_evaluations == []
    assert made.archived_at is None and isinstance(made.updated_at, datetime)
    # Only its age differs from moment to moment.
    assert sessions.retrieve(made.id).to_dict() | {"stats": None} == made.to_dict() | {"stats": None}

    patched = sessions.update(made.id, title=None, metadata={"gone": None, "new": "y"})
    assert patched.title is None and patched.metadata == {"k": "v", "new": "y"}
    assert sessions.update(made.id, metadata={}).metadata == {"k": "v", "new": "y"}

    overridden = sessions.create(
        agent={"type": "agent_with_overrides", "id": agent.id, "system": None}, environment_id=environment.id
    )
    assert overridden.agent.system is None and overridden.agent.version == 1
    pinned = sessions.create(agent={"type": "agent", "id": agent.id, "version": 1}, environment_id=environment.id)

    listed = [session.id for session in sessions.list(agent_id=agent.id)]
    assert listed == [pinned.id, overridden.id, made.id], "newest first"
    assert [s.id for s in sessions.list(agent_id=agent.id, order="asc")] == listed[::-1]
    assert [s.id for s in sessions.list(agent_id=agent.id, statuses=["running"])] == []
    assert sessions.list(agent_id=agent.id, limit=1).next_page

    archived = sessions.archive(overridden.id)
    assert archived.status == "terminated" and isinstance(archived.archived_at, datetime)
    assert overridden.id not in [session.id for session in sessions.list(agent_id=agent.id)]
    assert overridden.id in [session.id for session in sessions.list(agent_id=agent.id, include_archived=True)]
    with pytest.raises(BadRequestError):
        sessions.events.send(overridden.id, events=[message("too late")])

    gone = sessions.delete(pinned.id)
    assert (gone.id, gone.type) == (pinned.id, "session_deleted")
    with pytest.raises(NotFoundError):
        sessions.retrieve(pinned.id)


def test_events(client, environment, make_agent):
    """send, list with its filters, stream; the echo of a queued event."""
    session = client.beta.sessions.create(agent=make_agent("greeter").id, environment_id=environment.id)
    events = client.beta.sessions.events
    with events.stream(session.id) as stream:
        sent = events.send(session.id, events=[message("hello")])
        (echo,) = sent.data
        assert echo.type == "user.message" and echo.id.startswith("sevt_") and echo.content[0].text == "hello"
        live = []
        for event in stream:
            live.append(event)
            if event.type == "session.status_idle":
                break
    echoes = [event for event in live if event.id == echo.id]
    assert len(echoes) in (1, 2) and echoes[-1].processed_at is not None
    assert live[-2].type == "session.usage", "usage comes right before idle"
    assert live[-1].stop_reason.type == "end_turn" and "stop_details" in live[-1].to_dict(exclude_unset=True)

    listed = list(events.list(session.id))
    assert [event.id for event in listed] == list(dict.fromkeys(event.id for event in listed))
    assert {event.id for event in live} <= {event.id for event in listed}, "what was streamed can be listed"
    assert text_of(of_type(listed, "agent.message")[0]) == "Hello. I am played by a script."
    assert [event.id for event in events.list(session.id, order="desc")] == [event.id for event in listed][::-1]
    only = list(events.list(session.id, types=["agent.message", "user.message"]))
    assert [event.type for event in only] == ["user.message", "agent.message"]
    since = list(events.list(session.id, created_at_gte=live[-1].processed_at))
    assert live[-1].id in [event.id for event in since]
    assert client.beta.sessions.retrieve(session.id).usage.output_tokens > 0


def test_initial_events_start_the_session(client, environment, make_agent):
    session = client.beta.sessions.create(
        agent=make_agent("greeter").id, environment_id=environment.id, initial_events=[message("hello")]
    )
    assert session.status == "running"
    listed = wait_idle(client, session.id, "end_turn")
    assert of_type(listed, "agent.message")


def test_version_conflict_is_typed(client):
    agent = client.beta.agents.create(model="scripted:greeter", name="locked")
    with pytest.raises(ConflictError) as refused:
        client.beta.agents.update(agent.id, name="other", version=7)
    assert refused.value.type == "conflict_error" and refused.value.request_id
