"""Calls from one service to another by its route name. IO: HTTP over a fresh connection for each call.

A fresh connection, because a kept one stays with the instance it reached first, and a fan-out is to show them all.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

TIMEOUT = 3.0
"""Seconds for one call (the template's)."""
_MAX_ANSWER = 64 << 10
"""Bytes of an answer that are read."""


class _Until(socket.socket):
    """A connected socket whose reads end at one moment, `end` of time.monotonic(), however many there are."""

    def __init__(self, connected: socket.socket, end: float) -> None:
        super().__init__(fileno=connected.detach())
        self._end = end

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self.settimeout(left)
        return super().recv_into(buffer, nbytes, flags)


class _Connection(HTTPConnection):
    """One whose whole answer has to be there within its timeout."""

    def connect(self) -> None:
        assert self.timeout is not None
        end = time.monotonic() + self.timeout
        super().connect()
        self.sock = _Until(self.sock, end)
        self.sock.settimeout(max(end - time.monotonic(), 0.001))


class CallError(Exception):
    """The call failed; the message is one line with the reason."""


def fetch(url: str, timeout: float = TIMEOUT, method: str = "GET") -> str:
    """The text at `url`. CallError when it cannot be had within `timeout` seconds, or is no 200. The wait for a name
    server is not counted.
    """
    parts = urlsplit(url)
    connection = _Connection(parts.hostname or "", parts.port or 80, timeout=timeout)
    target = urlunsplit(("", "", parts.path or "/", parts.query, ""))
    try:
        connection.request(method, target, headers={"Connection": "close"})
        answer = connection.getresponse()
        body = answer.read(_MAX_ANSWER).decode(errors="replace")
    except (OSError, HTTPException) as error:
        raise CallError(f"{type(error).__name__}: {error}") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise CallError(f"HTTP {answer.status}: {' '.join(body.split())[:200]}")
    return body


def fan_out(url: str, samples: int, timeout: float = TIMEOUT) -> dict[str, int]:
    """How often each answer came from `samples` parallel calls to `url`; failures count as `error: <reason>`.

    Returns within `timeout` seconds even where a name server or a slow answer holds a call up.
    """
    answers: list[str | None] = [None] * samples

    def call(index: int) -> None:
        try:
            answers[index] = fetch(url, timeout).strip()
        except CallError as error:
            answers[index] = f"error: {error}"

    threads = [threading.Thread(target=call, args=(index,), daemon=True) for index in range(samples)]
    end = time.monotonic() + timeout
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    late = f"error: no answer within {timeout:g} s"
    return dict(Counter(late if answer is None else answer for answer in answers))
