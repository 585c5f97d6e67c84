"""One server for all programs of the suite; those that need another one start it themselves."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from anthropic import Anthropic

from harness import Child, Server

_count = itertools.count(1)
# A test that waits for something that never comes must not hold up the suite; in seconds.
_LIMIT = 150


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Ends a test that takes far too long, wherever it waits."""

    def expire(*_: object) -> None:
        pytest.fail(f"not finished after {_LIMIT} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(_LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server") / "state", "--lease-ttl", "10")
    yield running
    running.stop()


@pytest.fixture
def client(server: Server) -> Iterator[Anthropic]:
    with server.client() as client:
        yield client


@pytest.fixture
def environment(client: Anthropic) -> Any:
    """A fresh self-hosted environment."""
    return client.beta.environments.create(name=f"compat-{next(_count)}", config={"type": "self_hosted"})


@pytest.fixture
def make_agent(client: Anthropic) -> Callable[..., Any]:
    """Creates an agent that a script plays, with the built-in tools unless told otherwise."""

    def make(script: str, **options: Any) -> Any:
        options = {"tools": [{"type": "agent_toolset_20260401"}], **options}
        return client.beta.agents.create(model=f"scripted:{script}", name=f"{script}-{next(_count)}", **options)

    return make


@pytest.fixture
def children() -> Iterator[list[Child]]:
    """Children to be ended with the test, however it ends."""
    started: list[Child] = []
    yield started
    for child in started:
        child.stop()
