"""A reply of a machine's resolver, read before anybody else is given it: whether it is well formed, how long it may be
kept, where its TTLs are. Pure.

What stub resolvers make of a broken record is up to their authors; the mesh passes none on. The data of the types that
programs look up is checked, every other type's data only has its length.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from dns.message import HEADER, MAX_LABEL, MAX_NAME, OPT, Rcode

MAX_TTL = 3600
"""Seconds an answer is kept at most: a mistake of its owner's lasts no longer here (RFC 2181 8 lets us cap)."""
MAX_NEGATIVE_TTL = 900
"""Seconds a denial is kept at most; RFC 2308 5 allows hours, but a name that has just been made is to be found."""
_A, _NS, _CNAME, _SOA, _PTR, _MX, _TXT, _AAAA, _SRV, _DNAME = 1, 2, 5, 6, 12, 15, 16, 28, 33, 39
_SVCB, _HTTPS = 64, 65
_RECORD = struct.Struct("!HHIH")
_COUNTS = struct.Struct("!HHHH")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A reply that is well formed."""

    wire: bytes
    """The reply without its OPT, which is between neighbours only (RFC 6891 6.1.1), and without octets behind it."""
    ttls: tuple[int, ...]
    """Where in `wire` the TTLs are."""
    lifetime: int
    """Seconds for which it may be kept; 0: not at all."""
    rcode: int
    """With the upper bits that an OPT has."""


def read(wire: bytes, question_end: int) -> Reading | None:
    """The reply in `wire`, whose one question was checked and ends at `question_end`; None when it is malformed."""
    if len(wire) < question_end or wire[4:6] != b"\0\1":
        return None
    _, answers, authority, additional = _COUNTS.unpack_from(wire, 4)
    names = _Names(wire)
    ttls: list[int] = []
    shortest = MAX_TTL
    rcode = wire[3] & 0xF
    denial: int | None = None
    end, offset = question_end, question_end
    for index in range(answers + authority + additional):
        body = names.after(offset)
        if body is None or body + _RECORD.size > len(wire):
            return None
        rtype, _, ttl, size = _RECORD.unpack_from(wire, body)
        start = body + _RECORD.size
        stop = start + size
        if stop > len(wire) or not _is_well_formed(wire, names, rtype, start, stop):
            return None
        if rtype == OPT:
            # Only here does it make sense, once, and owned by the root.
            if index < answers + authority or body != offset + 1 or end < offset:
                return None
            rcode |= ttl >> 20 & 0xFF0
        else:
            # What stands behind an OPT goes with it: the names in it may point to where nothing is any more.
            if end == offset:
                end = stop
                ttls.append(body + 4)
            # RFC 2181 8: a TTL with its first bit set is none.
            shortest = min(shortest, ttl if ttl < 1 << 31 else 0)
            if rtype == _SOA and answers <= index < answers + authority:
                denial = min(MAX_NEGATIVE_TTL, int.from_bytes(wire[stop - 4 : stop], "big"))
        offset = stop
    kept = wire[:10] + (len(ttls) - answers - authority).to_bytes(2, "big") + wire[HEADER:end]
    lifetime = _lifetime(rcode, answers, shortest, denial)
    return Reading(wire=kept, ttls=tuple(ttls), lifetime=0 if wire[2] & 0x02 else lifetime, rcode=rcode)


def _lifetime(rcode: int, answers: int, shortest: int, denial: int | None) -> int:
    if rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN):
        return 0
    if answers and rcode == Rcode.NOERROR:
        return shortest
    # RFC 2308 5: a denial without SOA is not kept.
    return min(shortest, denial) if denial is not None else 0


class _Names:
    """Names of one message. Those that were read are known, so that pointers cost one step each, whatever they make."""

    def __init__(self, wire: bytes) -> None:
        self._wire = wire
        self._sizes: dict[int, int] = {}
        """Offset of a label or pointer to the octets that the name from there on has, written out."""

    def after(self, offset: int) -> int | None:
        """The offset after the name at `offset`; None when it is malformed. A pointer points back, and to a name that
        has been read or can be."""
        wire = self._wire
        passed: list[tuple[int, int]] = []
        end: int | None = None
        size = 0
        lowest = offset
        while True:
            if offset in self._sizes:
                size = self._sizes[offset]
                end = end if end is not None else self._end_of(offset)
                break
            if offset >= len(wire) or len(passed) > MAX_NAME:
                return None
            length = wire[offset]
            if length == 0:
                size = 1
                end = end if end is not None else offset + 1
                break
            if length >= 0xC0:
                if offset + 2 > len(wire):
                    return None
                end = end if end is not None else offset + 2
                passed.append((offset, 0))
                offset = int.from_bytes(wire[offset : offset + 2], "big") & 0x3FFF
                if not HEADER <= offset < lowest:
                    return None
                lowest = offset
                continue
            if length > MAX_LABEL or offset + 1 + length > len(wire):
                return None
            passed.append((offset, 1 + length))
            offset += 1 + length
        for start, octets in reversed(passed):
            size += octets
            self._sizes[start] = size
        return end if size <= MAX_NAME else None

    def _end_of(self, offset: int) -> int:
        """Where a name that was read before ends, which is no pointer's target here."""
        wire = self._wire
        while 0 < (length := wire[offset]) < 0xC0:
            offset += 1 + length
        return offset + (2 if length else 1)


def _is_well_formed(wire: bytes, names: _Names, rtype: int, start: int, stop: int) -> bool:
    check = _CHECKS.get(rtype)
    return check is None or check(wire, names, start, stop)


def _octets(count: int) -> Callable[[bytes, _Names, int, int], bool]:
    return lambda wire, names, start, stop: stop - start == count  # noqa: ARG005  # one shape for all checks


def _name(before: int, count: int = 1, behind: int = 0) -> Callable[[bytes, _Names, int, int], bool]:
    """Data that is `before` octets, names, and `behind` octets."""

    def check(wire: bytes, names: _Names, start: int, stop: int) -> bool:  # noqa: ARG001  # likewise
        offset: int | None = start + before
        for _ in range(count):
            offset = names.after(offset) if offset is not None and offset < stop else None
        return offset is not None and offset + behind == stop

    return check


def _texts(wire: bytes, names: _Names, start: int, stop: int) -> bool:  # noqa: ARG001  # likewise
    offset = start
    while offset < stop:
        offset += 1 + wire[offset]
    return start < offset == stop


def _service(wire: bytes, names: _Names, start: int, stop: int) -> bool:
    """Priority, target, and parameters that fill the rest (RFC 9460 2.2)."""
    offset = names.after(start + 2) if start + 2 < stop else None
    while offset is not None and offset + 4 <= stop:
        offset += 4 + int.from_bytes(wire[offset + 2 : offset + 4], "big")
    return offset == stop


_CHECKS: dict[int, Callable[[bytes, _Names, int, int], bool]] = {
    _A: _octets(4),
    _AAAA: _octets(16),
    _NS: _name(0),
    _CNAME: _name(0),
    _PTR: _name(0),
    _DNAME: _name(0),
    _MX: _name(2),
    _SRV: _name(6),
    _SOA: _name(0, 2, 20),
    _TXT: _texts,
    _SVCB: _service,
    _HTTPS: _service,
}
