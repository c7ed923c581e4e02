"""The listening TCP sockets of this network namespace, from /proc. IO."""

from __future__ import annotations

import contextlib
from pathlib import Path

from sidecar.backends import Listener, parse

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
MAX_LISTENERS = 4096
"""Read of one table; a CVM has some dozens. It bounds what a program that opens sockets by the thousand can cost."""


def read(tables: tuple[Path, ...] = TABLES) -> list[Listener]:
    """Every listening socket, IPv4 first. A table that cannot be read is left out.

    The kernel prints listening sockets before all others (net/ipv4/tcp_ipv4.c, `tcp_get_idx`), so reading ends at the
    first other one: thousands of connections cost nothing.
    """
    found: list[Listener] = []
    for path in tables:
        with contextlib.suppress(OSError), path.open(encoding="ascii", errors="replace") as file:
            file.readline()
            for _ in range(MAX_LISTENERS):
                listener = parse(file.readline())
                if listener is None:
                    break
                found.append(listener)
    return found
