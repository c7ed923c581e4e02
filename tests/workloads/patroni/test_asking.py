"""Members that answer, that do not, and that answer strangely, on loopback."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from workloads.patroni import asking
from workloads.patroni.election import TAG, Holding, Kind, tag
from workloads.patroni.terms import Position

HELD = Holding(kind=Kind.STANDBY, position=Position(timeline=2, lsn=77))
GOOD = json.dumps({"state": "running", "tags": {TAG: tag(HELD)}}).encode()
HEAD = b"HTTP/1.0 503 Service Unavailable\r\nContent-Type: application/json\r\n\r\n"


@contextmanager
def member(answer: bytes, *, ends: bool = True, times: int = 1) -> Iterator[tuple[str, int]]:
    """One that answers so `times` times, and ends each connection or keeps it."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def serve() -> None:
            for _ in range(times):
                with server.accept()[0] as connection:
                    try:
                        connection.recv(4096)
                        connection.sendall(answer)
                        if not ends:
                            connection.recv(1)
                    except OSError:
                        return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()
        thread.join(10)


def test_every_member_is_asked() -> None:
    """Each answer is told by its member; one that refuses the connection is silent. The status code says nothing."""
    with member(HEAD + GOOD) as one, closing(socket.create_server(("127.0.0.1", 0))) as gone:
        address = gone.getsockname()
        gone.close()
        assert asking.ask_all({"p0": one, "p1": address}) == {"p0": HELD, "p1": None}
    assert asking.ask_all({}) == {}


@pytest.mark.parametrize(
    "answer",
    [b"", b"x", HEAD, HEAD + b"[" * 5000, HEAD + b"\xff", HEAD + b"{}", HEAD + b" " * (asking.MAX_BYTES + 1) + GOOD],
)
def test_strange_answer_is_silence(answer: bytes) -> None:
    """What another member sends, however long or deep, is an answer or none."""
    with member(answer) as address:
        assert asking.ask_all({"p0": address}) == {"p0": None}


def test_member_that_keeps_the_connection_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time for a whole answer is bounded: one that never ends is none."""
    monkeypatch.setattr(asking, "SECONDS", 0.2)
    with member(HEAD + GOOD, ends=False) as address:
        assert asking.ask_all({"p0": address}) == {"p0": None}
