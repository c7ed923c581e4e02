"""Answers of the machine's resolvers, for as long as they hold, and beyond while no resolver answers. Pure.

Bounded by count and by octets: what was used longest ago goes first, so an application that asks for a million names
costs others a look-up each and never memory.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from dns.records import Reading

MAX_ENTRIES = 4096
MAX_OCTETS = 4 << 20
"""4 MiB of answers at most; 4,096 of a usual 120 octets are half of one."""
MAX_ENTRY = 8192
"""Octets of one answer: larger ones, which come by TCP, are rare enough to be asked for each time."""
MAX_STALE = 86400.0
"""Seconds after its end for which an answer stands in for resolvers that are away: RFC 8767 5 suggests one to three
days."""
STALE_TTL = 30
"""Seconds that a client may keep such an answer (RFC 8767 4)."""


@dataclass(slots=True)
class Stored:
    """One answer."""

    reading: Reading
    since: float
    until: float
    retry_at: float = 0.0
    """While it is stale: when resolvers are asked again. Before that it is given at once."""


class Cache:
    """Answers by question."""

    def __init__(self, entries: int = MAX_ENTRIES, octets: int = MAX_OCTETS) -> None:
        self._max_entries = entries
        self._max_octets = octets
        self._octets = 0
        self._stored: dict[Hashable, Stored] = {}

    def __len__(self) -> int:
        return len(self._stored)

    @property
    def octets(self) -> int:
        """Of all answers."""
        return self._octets

    def get(self, key: Hashable, now: float) -> Stored | None:
        """What there is for the question, also if it is stale; not what is too old even for that."""
        found = self._stored.pop(key, None)
        if found is None:
            return None
        if now >= found.until + MAX_STALE:
            self._octets -= len(found.reading.wire)
            return None
        # At the end again: the first one is the one used longest ago.
        self._stored[key] = found
        return found

    def put(self, key: Hashable, reading: Reading, now: float) -> None:
        """Keeps an answer in place of the one before; one that may not be kept takes that away all the same."""
        before = self._stored.pop(key, None)
        if before is not None:
            self._octets -= len(before.reading.wire)
        if not reading.lifetime or len(reading.wire) > MAX_ENTRY:
            return
        self._stored[key] = Stored(reading=reading, since=now, until=now + reading.lifetime)
        self._octets += len(reading.wire)
        while len(self._stored) > self._max_entries or self._octets > self._max_octets:
            oldest = next(iter(self._stored))
            self._octets -= len(self._stored.pop(oldest).reading.wire)

    def clear(self) -> None:
        """Forgets everything: other resolvers may know other answers."""
        self._stored.clear()
        self._octets = 0


def aged(stored: Stored, now: float) -> bytes:
    """The answer with the TTLs that are left of it, STALE_TTL when it is past its end; not authoritative any more."""
    wire = bytearray(stored.reading.wire)
    wire[2] &= 0xFB
    age = int(now - stored.since)
    stale = now >= stored.until
    for offset in stored.reading.ttls:
        left = STALE_TTL if stale else max(0, int.from_bytes(wire[offset : offset + 4], "big") - age)
        wire[offset : offset + 4] = left.to_bytes(4, "big")
    return bytes(wire)
