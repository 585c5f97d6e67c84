"""Starts palisade and workers as child processes, and the few moves that every program makes."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from anthropic import Anthropic, DefaultHttpxClient

HERE = Path(__file__).resolve().parent
SCRIPTS = sorted((HERE.parent / "scripts").glob("*.yaml"))
BINARY = Path(
    os.environ.get("PALISADE_BIN", HERE.parents[1] / "target/x86_64-unknown-linux-gnu/release/palisade")
)
# How long anything may take that takes milliseconds on an idle machine.
PATIENCE = 60.0

T = TypeVar("T")


class Child:
    """A child process in its own group, whose output is kept for the message of a failed test."""

    def __init__(self, name: str, command: list[str | Path], **options: Any) -> None:
        self.name = name
        self.lines: list[str] = []
        self._fresh: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            **options,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            self._fresh.put(line)
        self._fresh.put(None)

    def wait_for(self, pattern: str, timeout: float = PATIENCE) -> re.Match[str]:
        """The first line that matches; fails when the process ends or stays silent instead."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                line = self._fresh.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{self.name} did not print {pattern!r} in {timeout:.0f} s:\n{self.tail()}") from None
            if line is None:
                raise AssertionError(f"{self.name} ended with {self.process.wait()}:\n{self.tail()}")
            found = re.search(pattern, line)
            if found:
                return found

    def tail(self, count: int = 40) -> str:
        """Its last lines."""
        return "\n".join(f"  {self.name}| {line}" for line in self.lines[-count:])

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL to it and everything it started in its group."""
        self._signal(signal.SIGKILL)
        self.process.wait(timeout=PATIENCE)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL when it does not heed it."""
        if self.running:
            self._signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                pass
        self.kill()
        self._reader.join(timeout=5)

    def _signal(self, which: int) -> None:
        try:
            os.killpg(self.process.pid, which)
        except ProcessLookupError:
            pass


class Server:
    """A palisade server on loopback with a state directory of its own."""

    def __init__(self, state: Path, *arguments: str) -> None:
        self.state = state
        self.arguments = arguments
        self._start("127.0.0.1:0")

    def _start(self, listen: str) -> None:
        state = self.state
        command: list[str | Path] = [BINARY, "server", "--state-dir", state, "--listen", listen, *self.arguments]
        for script in SCRIPTS:
            command += ["--script", script]
        self.child = Child("server", command)
        try:
            self.base_url = self.child.wait_for(r"listening on (http://127\.0\.0\.1:\d+)").group(1)
            self.api_key = (state / "bootstrap.key").read_text().strip()
        except BaseException:
            self.child.stop()
            raise

    def client(self, **options: Any) -> Anthropic:
        """A client of the official SDK with its defaults; ``options`` override them."""
        return Anthropic(**{"base_url": self.base_url, "api_key": self.api_key, **options})

    def environment_key(self, environment_id: str) -> str:
        """A fresh key of this environment."""
        command = [BINARY, "keys", "create", "--state-dir", self.state, "--environment", environment_id]
        made = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert made.returncode == 0, f"palisade keys create: {made.stderr}"
        return made.stdout.split()[-1]

    def worker_client(self, environment_id: str) -> Anthropic:
        """A client that holds an environment key instead of an API key."""
        return self.client(api_key=None, auth_token=self.environment_key(environment_id))

    def kill_and_restart(self) -> None:
        """SIGKILL, and the same again on the same state and address, so that clients find it where it was."""
        self.child.kill()
        self._start(self.base_url.removeprefix("http://"))

    def stop(self) -> None:
        self.child.stop()


def official_worker(server: Server, environment_id: str, directory: Path) -> Child:
    """The SDK's own environment worker, in its own process; tools work in ``directory/work``."""
    work = directory / "work"
    work.mkdir(parents=True, exist_ok=True)
    key = directory / "environment.key"
    key.write_text(server.environment_key(environment_id))
    program = [sys.executable, HERE / "official_worker.py", server.base_url, environment_id, key, work]
    return Child("official worker", program)


def palisade_worker(server: Server, environment_id: str, directory: Path) -> Child:
    """Our own worker."""
    directory.mkdir(parents=True, exist_ok=True)
    key = directory / "environment.key"
    key.write_text(server.environment_key(environment_id))
    key.chmod(0o600)
    return Child(
        "palisade worker",
        [BINARY, "worker", "--base-url", server.base_url, "--environment", environment_id]
        + ["--environment-key-file", key, "--state-dir", directory / "state"],
    )


def counting_client(server: Server, **options: Any) -> tuple[Anthropic, list[httpx2.Request]]:
    """A client, and the list to which every request that leaves it is appended."""
    requests: list[httpx2.Request] = []
    http = DefaultHttpxClient(event_hooks={"request": [requests.append]})
    return server.client(http_client=http, **options), requests


def eventually(look: Callable[[], T | None], what: str, timeout: float = PATIENCE, child: Child | None = None) -> T:
    """Looks until there is something to see."""
    deadline = time.monotonic() + timeout
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:.0f} s: {what}" + (f"\n{child.tail()}" if child else ""))
        time.sleep(0.05)


def history(client: Anthropic, session_id: str) -> list[Any]:
    """Every event of the session so far."""
    return list(client.beta.sessions.events.list(session_id))


def wait_idle(client: Anthropic, session_id: str, reason: str, after: int = 0, child: Child | None = None) -> list[Any]:
    """The history once its last status is idle for this reason and it has grown beyond ``after`` events."""

    def look() -> list[Any] | None:
        events = history(client, session_id)
        statuses = [event for event in events[after:] if event.type.startswith("session.status_")]
        last = statuses[-1] if statuses else None
        if last is not None and last.type == "session.status_terminated":
            raise AssertionError(f"the session terminated: {[event.type for event in events]}")
        settled = last is not None and last.type == "session.status_idle" and last.stop_reason.type == reason
        return events if settled else None

    try:
        return eventually(look, f"session idle with {reason}", child=child)
    except AssertionError as why:
        seen = "\n".join(f"  {event.to_json(indent=None)[:400]}" for event in history(client, session_id))
        raise AssertionError(f"{why}\nevents:\n{seen}") from None


def of_type(events: list[Any], kind: str) -> list[Any]:
    """The events of this type, in order."""
    return [event for event in events if event.type == kind]


def text_of(event: Any) -> str:
    """The text blocks of an event's content, joined."""
    return "".join(block.text for block in event.content or [] if block.type == "text")


def message(text: str) -> dict[str, Any]:
    """A user message, as sent."""
    return {"type": "user.message", "content": [{"type": "text", "text": text}]}


def assert_gapless(events: list[Any]) -> None:
    """No event twice, and none of the server's own without a time."""
    ids = [event.id for event in events]
    assert len(ids) == len(set(ids)), f"an event is listed twice: {ids}"
    times = [event.processed_at for event in events if event.processed_at is not None]
    assert times == sorted(times), "the list is not in the order of processed_at"


def pages(page: Any) -> Iterator[Any]:
    """Every page from this one on."""
    yield from page.iter_pages()
