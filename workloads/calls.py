"""Calls from one service to another by its route name. IO: HTTP over a fresh connection for each call.

A fresh connection, because a kept one stays with the instance it reached first, and a fan-out is to show them all.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit, urlunsplit

TIMEOUT = 3.0
"""Seconds for one call (the template's)."""
_MAX_ANSWER = 64 << 10
"""Bytes of an answer that are read."""


class CallError(Exception):
    """The call failed; the message is one line with the reason."""


def fetch(url: str, timeout: float = TIMEOUT, method: str = "GET") -> str:
    """The text at `url`. CallError when it cannot be had or is no 200."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port or 80, timeout=timeout)
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
