"""Has half-open connections of this machine end. IO: the kernel's table of connections, a raw socket."""

from __future__ import annotations

import itertools
import socket
from pathlib import Path

from peer.half_open import established, segment

TABLE = Path("/proc/net/tcp")
MAX_ROWS = 65536
"""Rows of the table that are read: a program that opens connections without end must not keep us."""


def end(remotes: frozenset[str], table: Path = TABLE) -> int:
    """Has the half-open connections to `remotes` (addresses) end with a reset; how many connections were asked.
    OSError where this process has no CAP_NET_RAW.
    """
    with table.open(encoding="ascii", errors="replace") as file:
        found = established(itertools.islice(file, MAX_ROWS), remotes)
    if not found:
        return 0
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for connection in found:
            raw.sendto(segment(connection), (connection.local, 0))
    return len(found)
