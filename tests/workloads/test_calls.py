"""Calls between services: fresh connections, reasons, deadlines."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from contextlib import suppress

import pytest

from tests.workloads.support import serving, silent, url
from workloads import calls
from workloads.server import Answer, Request, document, text


def test_fetch_returns_the_text() -> None:
    """The body of a 200."""
    with serving({"GET /hello": lambda _: text("hello from w-0\n")}) as made:
        assert calls.fetch(f"{url(made)}/hello") == "hello from w-0\n"


def test_fetch_takes_the_query_and_the_method_along() -> None:
    """A POST with a query."""
    with serving({"POST /vote": lambda request: document(request.query)}) as made:
        assert calls.fetch(f"{url(made)}/vote?a=%3Ab%3A", method="POST") == '{"a": ":b:"}\n'


def test_fetch_says_why_it_failed() -> None:
    """Another status, a refused connection, a silent server, a name that does not exist."""
    with (
        serving({"GET /bad": lambda _: document({"error": "no"}, 503)}) as made,
        pytest.raises(calls.CallError) as caught,
    ):
        calls.fetch(f"{url(made)}/bad")
    assert str(caught.value) == 'HTTP 503: {"error": "no"}'
    with pytest.raises(calls.CallError, match="ConnectionRefusedError"):
        calls.fetch(f"{url(made)}/bad")
    with silent() as quiet, pytest.raises(calls.CallError, match="TimeoutError"):
        calls.fetch(quiet, timeout=0.05)
    with pytest.raises(calls.CallError, match="gaierror"):
        calls.fetch("http://no-such-name.invalid:1/")


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_server_that_trickles_does_not_hold_the_call(head: bytes) -> None:
    """A byte now and then, before or in the body: the time is for all of the answer."""
    ended = threading.Event()

    def trickle(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        with peer, suppress(OSError):
            peer.sendall(head)
            for _ in range(200):
                if ended.wait(0.05):
                    break
                peer.sendall(b"H")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=trickle, args=(listener,), daemon=True)
        thread.start()
        before = time.monotonic()
        try:
            with pytest.raises(calls.CallError, match="TimeoutError"):
                calls.fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout=0.5)
            assert time.monotonic() - before < 5
        finally:
            ended.set()
            thread.join(10)


def test_a_fan_out_counts_each_answer() -> None:
    """The template's counts; every call has a connection of its own."""
    turn = itertools.count()
    seen: list[int] = []

    def hello(_: Request) -> Answer:
        number = next(turn)
        seen.append(threading.get_ident())
        return text(f"hello from w-{number % 2}\n")

    with serving({"GET /hello": hello}) as made:
        assert calls.fan_out(f"{url(made)}/hello", 8) == {"hello from w-0": 4, "hello from w-1": 4}
    assert len(seen) == 8


def test_a_fan_out_counts_failures_by_reason() -> None:
    """Refused calls are results too."""
    with silent() as gone:
        pass
    assert calls.fan_out(gone, 3) == {"error: ConnectionRefusedError: [Errno 111] Connection refused": 3}


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
