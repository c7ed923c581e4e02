"""Asks members by HTTP: what each one has, all at once, or the own Patroni. IO: Patroni's REST interface of each.

The members are those that the manifest lists, at the addresses of their routes: Consul has no say in who is asked.
It imports little, since the container's health check starts a Python for it again and again.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from workloads.patroni import election
from workloads.patroni.election import Holding

log = logging.getLogger(__name__)

T = TypeVar("T")

SECONDS = 2.0
"""For one member's answer: the time that Patroni gives a member in an election (ha.py, fetch_node_status)."""
MAX_BYTES = 65536
"""Of an answer; Patroni's has some 1,000 bytes, and some 200 more for each replica of a primary."""
MAX_MEMBERS = 64
"""Asked at once, one thread each."""


def ask_all(members: Mapping[str, tuple[str, int]]) -> dict[str, Holding | None]:
    """What each member has, by peer ID; None for one that did not say. `members`: host and port of each."""
    return ask(members, election.answer)


def ask(members: Mapping[str, tuple[str, int]], read: Callable[[Any], T]) -> dict[str, T | None]:
    """What `read` makes of each member's status (JSON, decoded); None for one that did not answer, or where `read` says
    ValueError.
    """
    if not members:
        return {}
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(min(len(members), MAX_MEMBERS)) as threads:
        answers = threads.map(lambda item: _ask(item[0], item[1], read), members.items())
        return dict(zip(members, answers, strict=True))


def _ask(peer_id: str, address: tuple[str, int], read: Callable[[Any], T]) -> T | None:
    try:
        # The status code says whether the member leads, which is another question.
        return read(json.loads(get(address, "/patroni", SECONDS, MAX_BYTES)[1]))
    except (OSError, ValueError, RecursionError) as error:
        log.debug("%s did not say what it has: %s", peer_id, error)
        return None


def get(address: tuple[str, int], path: str, seconds: float, most: int) -> tuple[int, bytes]:
    """Status code and body of `GET path`, by a socket of its own, since the time for the whole answer is bounded.

    `seconds`: for all of it. `most`: bytes of the answer. OSError where there is none, ValueError where it is too long,
    takes too long, or is no HTTP.
    """
    end = time.monotonic() + seconds
    with socket.create_connection(address, timeout=seconds) as connection:
        # HTTP/1.0: the answer ends with the connection.
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        text = b""
        while True:
            connection.settimeout(max(end - time.monotonic(), 0.001))
            part = connection.recv(65536)
            text += part
            if not part:
                break
            if len(text) > most or time.monotonic() > end:
                raise ValueError(f"the answer has more than {most} bytes, or takes longer than {seconds:g} s")
    head, _, body = text.partition(b"\r\n\r\n")
    protocol, _, rest = head.partition(b" ")
    code = rest[:3]
    if not protocol.startswith(b"HTTP/1.") or not code.isdigit():
        raise ValueError(f"the answer begins with {head[:40]!r}, which is no HTTP/1")
    return int(code), body
