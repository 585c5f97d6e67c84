"""The SDK's auto-pager over lists of several pages."""

from __future__ import annotations

from harness import history, message, pages, wait_idle


def test_agents(client):
    made = [client.beta.agents.create(model="scripted:greeter", name=f"page-{number}").id for number in range(7)]
    first = client.beta.agents.list(limit=3)
    assert len(first.data) == 3 and first.next_page
    collected = [agent.id for agent in client.beta.agents.list(limit=3)]
    assert [it for it in collected if it in made] == made[::-1], "each once, newest first"
    assert len(collected) == len(set(collected))


def test_a_page_does_not_shift_when_something_is_added(client):
    made = [client.beta.agents.create(model="scripted:greeter", name=f"shift-{number}").id for number in range(4)]
    first = client.beta.agents.list(limit=2)
    client.beta.agents.create(model="scripted:greeter", name="late")
    assert [agent.id for agent in first.data] == made[:1:-1]
    assert [agent.id for agent in first.get_next_page().data] == made[1::-1]


def test_sessions_both_ways(client, environment, make_agent):
    agent = make_agent("greeter")
    made = [client.beta.sessions.create(agent=agent.id, environment_id=environment.id).id for _ in range(5)]
    read = list(pages(client.beta.sessions.list(agent_id=agent.id, limit=2)))
    assert [[session.id for session in page.data] for page in read] == [made[4:2:-1], made[2:0:-1], made[:1]]
    assert read[0].prev_page is None and read[-1].next_page is None
    back = client.beta.sessions.list(agent_id=agent.id, limit=2, page=read[1].prev_page)
    assert [session.id for session in back.data] == made[4:2:-1]


def test_events(client, environment, make_agent):
    session = client.beta.sessions.create(agent=make_agent("greeter").id, environment_id=environment.id)
    for turn in range(3):
        before = len(history(client, session.id))
        client.beta.sessions.events.send(session.id, events=[message(f"turn {turn}")])
        wait_idle(client, session.id, "end_turn", after=before)
    whole = [event.id for event in history(client, session.id)]
    read = list(pages(client.beta.sessions.events.list(session.id, limit=5)))
    assert len(read) >= 4 and read[-1].next_page is None
    assert [event.id for page in read for event in page.data] == whole
    backwards = [event.id for event in client.beta.sessions.events.list(session.id, limit=5, order="desc")]
    assert backwards == whole[::-1]


def test_environments_and_work(server, client, make_agent):
    environments = [client.beta.environments.create(name=f"page-{n}", config={"type": "self_hosted"}) for n in range(3)]
    listed = [it.id for it in client.beta.environments.list(limit=2)]
    assert {it.id for it in environments} <= set(listed) and len(listed) == len(set(listed))
    agent, home = make_agent("hands"), environments[0].id
    for _ in range(3):
        session = client.beta.sessions.create(agent=agent.id, environment_id=home, initial_events=[message("work")])
        wait_idle(client, session.id, "requires_action")
    with server.worker_client(home) as worker:
        items = [item.id for item in worker.beta.environments.work.list(home, limit=2)]
    assert len(items) == len(set(items)) == 3
