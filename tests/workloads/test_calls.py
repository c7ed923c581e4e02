"""Calls between services: fresh connections, reasons, deadlines."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from workloads import calls
from workloads.server import Answer, Paths, Server, document, text


@contextmanager
def serving(paths: Paths) -> Iterator[str]:
    """A server with `paths`; yields its base URL."""
    made = Server(("127.0.0.1", 0), paths)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_port}"
    finally:
        made.shutdown()
        made.server_close()
        thread.join(10)


@contextmanager
def silent() -> Iterator[str]:
    """A listener that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/hello"


def test_fetch_returns_the_text() -> None:
    """The body of a 200."""
    with serving({"/hello": lambda: text("hello from w-0\n")}) as url:
        assert calls.fetch(f"{url}/hello") == "hello from w-0\n"


def test_fetch_says_why_it_failed() -> None:
    """Another status, a refused connection, a silent server, a name that does not exist."""
    with serving({"/bad": lambda: document({"error": "no"}, 503)}) as url, pytest.raises(calls.CallError) as caught:
        calls.fetch(f"{url}/bad")
    assert str(caught.value) == 'HTTP 503: {"error": "no"}'
    with pytest.raises(calls.CallError, match="ConnectionRefusedError"):
        calls.fetch(f"{url}/bad")
    with silent() as quiet, pytest.raises(calls.CallError, match="TimeoutError"):
        calls.fetch(quiet, timeout=0.05)
    with pytest.raises(calls.CallError, match="gaierror"):
        calls.fetch("http://no-such-name.invalid:1/")


def test_a_fan_out_counts_each_answer() -> None:
    """The template's counts; every call has a connection of its own."""
    turn = itertools.count()
    seen: list[int] = []

    def hello() -> Answer:
        number = next(turn)
        seen.append(threading.get_ident())
        return text(f"hello from w-{number % 2}\n")

    with serving({"/hello": hello}) as url:
        assert calls.fan_out(f"{url}/hello", 8) == {"hello from w-0": 4, "hello from w-1": 4}
    assert len(seen) == 8


def test_a_fan_out_counts_failures_by_reason() -> None:
    """Refused calls are results too."""
    with silent() as url:
        pass
    assert calls.fan_out(url, 3) == {"error: ConnectionRefusedError: [Errno 111] Connection refused": 3}


def test_a_fan_out_does_not_wait_for_what_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up that blocks, which no socket timeout ends, is a result after the deadline."""
    release = threading.Event()

    def hang(url: str, timeout: float) -> str:
        release.wait(30)
        return "late"

    monkeypatch.setattr(calls, "fetch", hang)
    try:
        assert calls.fan_out("http://x/", 2, timeout=0.05) == {"error: no answer within 0.05 s": 2}
    finally:
        release.set()
