"""The raw work queue, served by a hand-written worker: every operation of ``environments.work``."""

from __future__ import annotations

import base64
import json
import time

import anthropic
import pytest
from anthropic.types.beta.environments import BetaHeartbeatPreconditionFailedError

from harness import counting_client, eventually, message, of_type, text_of, wait_idle

ABSENT = "work_011CZkYpogX7uDKUyvBTophP"


@pytest.fixture
def session(client, environment, make_agent):
    """A session that waits for a pair of hands."""
    made = client.beta.sessions.create(
        agent=make_agent("hands").id, environment_id=environment.id, initial_events=[message("work")]
    )
    wait_idle(client, made.id, "requires_action")
    return made


@pytest.fixture
def worker(server, environment):
    with server.worker_client(environment.id) as worker:
        yield worker


def token_of(item) -> str:
    """The sessions token inside an item's secret."""
    padded = item.secret + "=" * (-len(item.secret) % 4)
    return json.loads(base64.urlsafe_b64decode(padded))["sessions_token"]


def claim(worker, environment_id):
    work = worker.beta.environments.work
    return eventually(lambda: work.poll(environment_id, block_ms=500, anthropic_worker_id="hand-made"), "work")


def test_a_custom_worker(server, client, environment, session, worker):
    """poll, ack, heartbeat, list, retrieve, update, stats, stop, with the work in between."""
    work = worker.beta.environments.work
    before = client.beta.environments.work.stats(environment.id)
    assert before.type == "work_queue_stats" and before.depth == 1 and before.oldest_queued_at is not None

    item = claim(worker, environment.id)
    assert item.type == "work" and item.environment_id == environment.id and item.state == "queued"
    assert item.data.type == "session" and item.data.id == session.id
    assert item.acknowledged_at is None and item.started_at is None and item.stopped_at is None
    token = token_of(item)
    polled = client.beta.environments.work.stats(environment.id)
    assert (polled.pending, polled.workers_polling) == (1, 1)
    assert work.poll(environment.id) is None, "a claimed item is offered to nobody else"

    acked = work.ack(item.id, environment_id=environment.id)
    assert acked.id == item.id and acked.state == "starting" and acked.acknowledged_at and acked.secret is None

    # From here on with the item's own token, as the official workers do.
    with server.client(api_key=None, auth_token=token) as hands:
        beat = hands.beta.environments.work.heartbeat(
            item.id, environment_id=environment.id, expected_last_heartbeat="NO_HEARTBEAT"
        )
        assert beat.type == "work_heartbeat" and beat.lease_extended is True and beat.state == "active"
        assert beat.ttl_seconds > 0 and beat.last_heartbeat
        again = hands.beta.environments.work.heartbeat(
            item.id, environment_id=environment.id, expected_last_heartbeat=beat.last_heartbeat
        )
        assert again.lease_extended is True

        assert hands.beta.sessions.retrieve(session.id).id == session.id
        (call,) = of_type(list(hands.beta.sessions.events.list(session.id, limit=1000)), "agent.tool_use")
        assert (call.name, call.input, call.evaluated_permission) == ("bash", {"command": "echo handy"}, "allow")
        sent = hands.beta.sessions.events.send(
            session.id,
            events=[{"type": "user.tool_result", "tool_use_id": call.id, "is_error": False}
                    | {"content": [{"type": "text", "text": "handy"}]}],
        )
        assert sent.data[0].type == "user.tool_result" and sent.data[0].processed_at is not None
        events = wait_idle(client, session.id, "end_turn")
        assert "handy" in text_of(of_type(events, "agent.message")[-1])
        # The same result once more is accepted and changes nothing.
        hands.beta.sessions.events.send(session.id, events=[{"type": "user.tool_result", "tool_use_id": call.id}])
        assert client.beta.sessions.retrieve(session.id).status == "idle"

        retrieved = client.beta.environments.work.retrieve(item.id, environment_id=environment.id)
        assert retrieved.state == "active" and retrieved.secret is None
        assert retrieved.started_at and retrieved.latest_heartbeat_at
        marked = client.beta.environments.work.update(
            item.id, environment_id=environment.id, metadata={"host": "a", "zone": "b"}
        )
        assert marked.metadata == {"host": "a", "zone": "b"}
        marked = client.beta.environments.work.update(item.id, environment_id=environment.id, metadata={"zone": None})
        assert marked.metadata == {"host": "a"}
        assert item.id in [listed.id for listed in work.list(environment.id)]

        stopping = client.beta.environments.work.stop(item.id, environment_id=environment.id)
        assert stopping.state == "stopping" and stopping.stop_requested_at
        told = hands.beta.environments.work.heartbeat(
            item.id, environment_id=environment.id, expected_last_heartbeat="whatever"
        )
        assert told.state == "stopping", "the worker learns it from its next heartbeat, which compares nothing now"
        stopped = hands.beta.environments.work.stop(item.id, environment_id=environment.id, force=True)
        assert stopped.state == "stopped" and stopped.stopped_at
    assert client.beta.environments.work.stats(environment.id).depth == 0


def test_stop_twice_is_a_conflict_tried_once(server, client, environment, session, worker):
    item = claim(worker, environment.id)
    worker.beta.environments.work.ack(item.id, environment_id=environment.id)
    worker.beta.environments.work.stop(item.id, environment_id=environment.id, force=True)
    counting, requests = counting_client(server)
    with pytest.raises(anthropic.ConflictError) as refused:
        counting.beta.environments.work.stop(item.id, environment_id=environment.id, force=True)
    assert refused.value.type == "conflict_error" and len(requests) == 1


def test_heartbeat_precondition(client, environment, session, worker):
    """412, as the SDK's own subclass, with the state that the server holds."""
    item = claim(worker, environment.id)
    work = worker.beta.environments.work
    work.ack(item.id, environment_id=environment.id)
    beat = work.heartbeat(item.id, environment_id=environment.id, expected_last_heartbeat="NO_HEARTBEAT")
    for wrong in ("NO_HEARTBEAT", "2020-01-01T00:00:00Z", "junk"):
        with pytest.raises(BetaHeartbeatPreconditionFailedError) as refused:
            work.heartbeat(item.id, environment_id=environment.id, expected_last_heartbeat=wrong)
        state = refused.value.details.current_state
        assert refused.value.status_code == 412 and refused.value.error_code == "heartbeat_precondition_failed"
        assert (state.state, state.lease_extended, state.ttl_seconds) == ("active", False, beat.ttl_seconds)
        assert state.last_heartbeat is not None
    extended = work.heartbeat(item.id, environment_id=environment.id, expected_last_heartbeat=beat.last_heartbeat)
    assert extended.lease_extended is True, "a refused heartbeat changes nothing"


def test_a_lease_that_lapses_goes_back_to_the_queue(server, client, environment, session, worker):
    """A worker that dies after its ack, with or without a heartbeat, does not keep the session for ever."""
    first = claim(worker, environment.id)
    work = worker.beta.environments.work
    work.ack(first.id, environment_id=environment.id)
    second = claim(worker, environment.id)
    assert second.data.id == session.id
    work.ack(second.id, environment_id=environment.id)
    work.heartbeat(second.id, environment_id=environment.id, expected_last_heartbeat="NO_HEARTBEAT")
    third = claim(worker, environment.id)
    assert third.data.id == session.id


def test_unacked_work_is_reclaimed(client, environment, session, worker):
    item = claim(worker, environment.id)
    work = worker.beta.environments.work
    assert work.poll(environment.id, reclaim_older_than_ms=60_000) is None
    time.sleep(0.05)
    again = eventually(lambda: work.poll(environment.id, reclaim_older_than_ms=10), "the reclaimed item")
    assert again.data.id == item.data.id


def test_poll_options(environment, worker):
    work = worker.beta.environments.work
    assert work.poll(environment.id) is None, "an empty poll is None, not an empty string"
    assert work.poll(environment.id, block_ms=1) is None
    for bad in (0, 1000):
        with pytest.raises(anthropic.BadRequestError):
            work.poll(environment.id, block_ms=bad)


def test_who_may_do_what(server, client, environment, session, worker):
    """API keys do not hold leases; environment keys do not administer; tokens reach one session."""
    item = claim(worker, environment.id)
    worker.beta.environments.work.ack(item.id, environment_id=environment.id)
    with pytest.raises(anthropic.PermissionDeniedError):
        worker.beta.environments.work.retrieve(item.id, environment_id=environment.id)
    with pytest.raises(anthropic.PermissionDeniedError):
        worker.beta.environments.work.update(item.id, environment_id=environment.id, metadata={})
    other = client.beta.sessions.create(agent=session.agent.id, environment_id=environment.id)
    with server.client(api_key=None, auth_token=token_of(item)) as hands:
        assert hands.beta.sessions.retrieve(session.id).id == session.id
        with pytest.raises(anthropic.NotFoundError):
            hands.beta.sessions.retrieve(other.id)
        with pytest.raises(anthropic.APIStatusError):
            hands.beta.environments.work.poll(environment.id)
    for call in (
        lambda: client.beta.environments.work.stop(ABSENT, environment_id=environment.id),
        lambda: worker.beta.environments.work.ack(ABSENT, environment_id=environment.id),
        lambda: worker.beta.environments.work.heartbeat(ABSENT, environment_id=environment.id),
    ):
        with pytest.raises(anthropic.NotFoundError):
            call()
