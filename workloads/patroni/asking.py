"""Asks the other members what they have, all at once. IO: HTTP to Patroni's REST interface of each.

The members are those that the manifest lists, at the addresses of their routes: Consul has no say in who is asked.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from workloads.patroni import election
from workloads.patroni.election import Holding

log = logging.getLogger(__name__)

SECONDS = 2.0
"""For one member's answer: the time that Patroni gives a member in an election (ha.py, fetch_node_status)."""
MAX_BYTES = 65536
"""Of an answer; Patroni's has some 1,000 bytes, and some 200 more for each replica of a primary."""
MAX_MEMBERS = 64
"""Asked at once, one thread each."""


def ask_all(members: Mapping[str, tuple[str, int]]) -> dict[str, Holding | None]:
    """What each member has, by peer ID; None for one that did not say. `members`: host and port of each."""
    if not members:
        return {}
    with ThreadPoolExecutor(min(len(members), MAX_MEMBERS)) as threads:
        return dict(zip(members, threads.map(lambda item: _ask(*item), members.items()), strict=True))


def _ask(peer_id: str, address: tuple[str, int]) -> Holding | None:
    try:
        return election.answer(json.loads(_get(address)))
    except (OSError, ValueError, RecursionError) as error:
        log.debug("%s did not say what it has: %s", peer_id, error)
        return None


def _get(address: tuple[str, int]) -> bytes:
    """The body of `GET /patroni`. By a socket of its own, since the time for the whole answer is bounded."""
    end = time.monotonic() + SECONDS
    with socket.create_connection(address, timeout=SECONDS) as connection:
        # HTTP/1.0: the answer ends with the connection.
        connection.sendall(b"GET /patroni HTTP/1.0\r\n\r\n")
        text = b""
        while True:
            connection.settimeout(max(end - time.monotonic(), 0.001))
            part = connection.recv(65536)
            text += part
            if not part:
                break
            if len(text) > MAX_BYTES or time.monotonic() > end:
                raise ValueError(f"the answer has more than {MAX_BYTES} bytes, or takes longer than {SECONDS:g} s")
    return text.partition(b"\r\n\r\n")[2]
