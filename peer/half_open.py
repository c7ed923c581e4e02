"""Half-open connections (RFC 9293, 3.5.1): their other end has restarted and knows nothing of them.

An end that only waits sends nothing, so it learns of the restart by its keep-alives: 15 s for a Go program such as the
Consul agent, whose watches are deaf until then. Here the kernel is made to send at once: it answers a segment outside
of the window by an acknowledgement (RFC 9293, 3.10.7.4), and the other end answers that with a reset where it does not
know the connection. Where it does, nothing happens. The segment seems to come from the other end; it is empty, and goes
to this machine's own kernel only.

Pure; `peer.half_open_ends` does it.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import NamedTuple

_OPEN = frozenset({"01", "08"})
"""TCP_ESTABLISHED, TCP_CLOSE_WAIT: include/net/tcp_states.h."""
_TCP, _ACK = 6, 0x10


class Connection(NamedTuple):
    """One connection of this machine; addresses are IPv4."""

    local: str
    local_port: int
    remote: str
    remote_port: int


def established(rows: Iterable[str], remotes: frozenset[str]) -> list[Connection]:
    """The open connections to `remotes` in rows of /proc/net/tcp. Rows that cannot be read are left out."""
    wanted = {_as_printed(remote): remote for remote in remotes}
    found = []
    for row in rows:
        words = row.split(maxsplit=4)
        if len(words) < 4 or words[3] not in _OPEN or words[2][:8] not in wanted:
            continue
        with contextlib.suppress(ValueError):
            own = str(IPv4Address(struct.pack("=I", int(words[1][:8], 16))))
            found.append(Connection(own, int(words[1][9:], 16), wanted[words[2][:8]], int(words[2][9:], 16)))
    return found


def _as_printed(address: str) -> str:
    """An address as the kernel prints it: a 32-bit word in this machine's byte order."""
    return f"{struct.unpack('=I', IPv4Address(address).packed)[0]:08X}"


def segment(connection: Connection) -> bytes:
    """An empty segment from the other end, with sequence and acknowledgement numbers 0, as a whole IPv4 packet.

    It is outside of the window but for one connection in 65,536 or fewer, on which it does nothing.
    """
    source, target = IPv4Address(connection.remote).packed, IPv4Address(connection.local).packed
    ports = struct.pack("!HH", connection.remote_port, connection.local_port)
    rest = struct.pack("!IIBBH", 0, 0, 5 << 4, _ACK, 0)
    pseudo = source + target + struct.pack("!BBH", 0, _TCP, 20)
    tcp = ports + rest + struct.pack("!HH", _checksum(pseudo + ports + rest), 0)
    # The kernel fills in length, identification and checksum (raw(7), IP_HDRINCL).
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, _TCP, 0, source, target) + tcp


def _checksum(data: bytes) -> int:
    """Of RFC 1071; `data` has an even length."""
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
