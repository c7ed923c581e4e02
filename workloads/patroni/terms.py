"""The terms of a database cluster: who led which timeline, and from where in the log. Pure.

A timeline number alone does not identify a history. PostgreSQL counts timelines up by one in each data directory, so
two members that are promoted without knowing of each other give the same number to different histories. `pg_rewind` and
streaming replication compare numbers only, and take the two for one. Therefore each promotion draws a random term ID.

The list of terms is kept in two places: in Consul, written by the leader, and in each member's data directory
(`workloads.patroni.record`). Where two lists give one timeline different IDs, the two data directories are a fork.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from enum import Enum
from itertools import pairwise
from typing import Any

MAX_TERMS = 64
"""Terms in a list: the newest ones. A member that is more promotions behind than this is compared by `pg_rewind` alone,
as without terms."""
MAX_BYTES = 32768
"""Of a list as text; 64 terms need some 10 KB. A longer text is not read."""
_ID = re.compile(r"[0-9a-f]{32}")
_PEER = re.compile(r"[a-z0-9-]{1,63}")
_MAX_LSN = 1 << 64
_MAX_TIMELINE = 1 << 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One promotion, and the timeline that it began."""

    id: str
    """128 random bits, 32 hex digits."""
    timeline: int
    begin: int
    """LSN (byte position in the log) at which the timeline begins; 0 for the first timeline of a cluster."""
    leader: str
    """Peer ID of the member that was promoted."""


Terms = tuple[Term, ...]
"""Oldest first; timelines rise. Empty: nothing is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far the log of a data directory reaches."""

    timeline: int
    lsn: int


class Remedy(Enum):
    """What makes a forked member follow again."""

    REWIND = "pg_rewind"
    COPY = "a fresh copy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """A data directory has what its leader's history does not have."""

    remedy: Remedy
    reason: str


def parse(text: str) -> Terms:
    """The list out of its text. ValueError says what is wrong with it."""
    if len(text) > MAX_BYTES:
        raise ValueError(f"a list of terms has {len(text)} bytes, expected at most {MAX_BYTES}")
    try:
        tree = json.loads(text)
    except RecursionError as error:
        raise ValueError("a list of terms is nested too deeply") from error
    if not isinstance(tree, list) or len(tree) > MAX_TERMS:
        raise ValueError(f"expected a JSON list of at most {MAX_TERMS} terms")
    found = tuple(_term(item) for item in tree)
    if any(one.timeline >= other.timeline for one, other in pairwise(found)):
        raise ValueError("a list of terms is out of order: expected rising timelines")
    return found


def _term(item: Any) -> Term:
    if not isinstance(item, dict):
        raise ValueError(f"a term is {type(item).__name__}, expected an object")
    identity, leader = item.get("id"), item.get("leader")
    if not isinstance(identity, str) or not _ID.fullmatch(identity):
        raise ValueError("a term has no valid id; expected 32 hex digits")
    if not isinstance(leader, str) or not _PEER.fullmatch(leader):
        raise ValueError("a term has no valid leader; expected a peer ID")
    timeline, begin = _count(item, "timeline", _MAX_TIMELINE), _count(item, "begin", _MAX_LSN)
    if timeline == 0:
        raise ValueError("a term has timeline 0; PostgreSQL counts from 1")
    return Term(id=identity, timeline=timeline, begin=begin, leader=leader)


def _count(item: dict[Any, Any], name: str, limit: int) -> int:
    value = item.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < limit:
        raise ValueError(f"a term's {name} is {value!r}, expected a number from 0 to below {limit}")
    return value


def dump(terms: Terms) -> str:
    """The text that `parse` reads."""
    return json.dumps([asdict(term) for term in terms], separators=(",", ":"))


def extend(terms: Terms, term: Term) -> Terms:
    """The list of a member that `term` promoted. Terms of its timeline or later are of others, whose log it lacks."""
    return (*(old for old in terms if old.timeline < term.timeline), term)[-MAX_TERMS:]


def knows(terms: Terms, own: Terms) -> bool:
    """Whether `terms` has the newest term of `own`: what was kept there is no older than what a member has."""
    return bool(own) and own[-1] in terms


def compare(own: Terms, at: Position | None, leader: Terms) -> Fork | None:
    """How a member's data differ from its leader's history; None where nothing says that they do.

    `at`: how far the member's log reaches, if that is known. `leader`: the leader's terms.
    """
    theirs = {term.timeline: term for term in leader}
    for term in own:
        other = theirs.get(term.timeline)
        if other is not None and other.id != term.id:
            # The number is the same, so pg_rewind would find nothing to do, whatever the two timelines hold.
            return Fork(
                remedy=Remedy.COPY,
                reason=f"timeline {term.timeline} was begun here by {term.leader} (term {term.id[:8]}), "
                f"and for the leader by {other.leader} (term {other.id[:8]})",
            )
    if not leader:
        return None
    for term in own:
        if term.timeline not in theirs and term.timeline > leader[0].timeline:
            return Fork(
                remedy=Remedy.REWIND,
                reason=f"timeline {term.timeline} of {term.leader} is none of the leader's history",
            )
    return None if at is None else _beyond(at, leader)


def _beyond(at: Position, leader: Terms) -> Fork | None:
    after = next((term for term in leader if term.timeline > at.timeline), None)
    if after is not None and at.lsn > after.begin:
        return Fork(
            remedy=Remedy.REWIND,
            reason=f"the log on timeline {at.timeline} reaches {lsn(at.lsn)}, beyond {lsn(after.begin)}, where "
            f"{after.leader} began timeline {after.timeline}",
        )
    if after is None and at.timeline > leader[-1].timeline:
        return Fork(
            remedy=Remedy.REWIND,
            reason=f"the log is on timeline {at.timeline}, and the leader's on {leader[-1].timeline}",
        )
    return None


def lsn(position: int) -> str:
    """A position as PostgreSQL writes it: `0/3000148`."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"
