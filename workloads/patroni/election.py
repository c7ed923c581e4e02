"""Who may lead where Consul does not remember the cluster. Pure.

Consul forgets a cluster when all coordinators lose their disks. Nothing in an empty Consul says who led, or which
member has the last acknowledged write: Patroni would give the leader key to whoever asks first. Then a member leads
only if every member that the manifest lists has said what it has, and none has more. An operator can allow one member
to lead without that (`./mesh database lead`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from workloads.patroni.terms import Position, lsn

TAG = "mesh_history"
"""The tag in Patroni's status (`GET /patroni`, key `tags`) in which a member says what it has."""
_MAX_TAG = 256
_TERM = re.compile(r"[0-9a-f]{32}|")


class Kind(StrEnum):
    """What a member's data directory is."""

    EMPTY = "empty"
    """There is no database in it."""
    UNSETTLED = "unsettled"
    """There is one, and it is not known yet how far its log reaches: PostgreSQL is down, starting, or replaying."""
    STANDBY = "standby"
    """PostgreSQL has replayed all of the log that it has."""
    PRIMARY = "primary"


_NOWHERE = Position(timeline=0, lsn=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What a member has."""

    kind: Kind
    position: Position = _NOWHERE
    term: str = ""
    """ID of the term that began its timeline; empty where that is not known."""

    def __str__(self) -> str:
        if self.kind in (Kind.EMPTY, Kind.UNSETTLED):
            return self.kind
        return f"{self.kind} at {lsn(self.position.lsn)} on timeline {self.position.timeline}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a member may lead, or make a new cluster, and why."""

    allowed: bool
    reason: str
    silent: bool = False
    """Somebody has not answered, and nothing else is in the way."""


def tag(holding: Holding) -> str:
    """The text of the tag."""
    at = holding.position
    return json.dumps([holding.kind, holding.term, at.timeline, at.lsn], separators=(",", ":"))


def answer(status: Any) -> Holding:
    """What a member has, by its answer to `GET /patroni` (JSON, decoded). ValueError where it does not say."""
    tags = status.get("tags") if isinstance(status, dict) else None
    text = tags.get(TAG) if isinstance(tags, dict) else None
    if not isinstance(text, str) or len(text) > _MAX_TAG:
        raise ValueError(f"the answer has no tag {TAG}; the member is starting, or runs another version")
    try:
        kind, term, timeline, position = json.loads(text)
        holding = Holding(kind=Kind(kind), position=Position(timeline=int(timeline), lsn=int(position)), term=str(term))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"the tag {TAG} cannot be read: {text!r}") from error
    if not _TERM.fullmatch(holding.term) or holding.position.timeline < 0 or holding.position.lsn < 0:
        raise ValueError(f"the tag {TAG} is out of range: {text!r}")
    return holding


def may_lead(
    own: Holding, others: Mapping[str, Holding | None], *, operator: bool = False, paused: bool = False
) -> Verdict:
    """Whether a member with `own` may take the leader key of a cluster that Consul does not remember.

    `others`: every other member that the manifest lists, by peer ID; None for one that did not say what it has.
    `operator`: an operator has said that this member leads, whatever the others have. `paused`: Patroni leaves the
    cluster alone (`patronictl pause`).
    """
    primary = next((p for p, h in others.items() if h is not None and h.kind is Kind.PRIMARY), None)
    if own.kind is Kind.PRIMARY:
        going_on = _may_go_on(own, others)
        # One that is paused was kept by nobody's agreement: without Consul Patroni asks the members, else it stops.
        if not paused or not going_on.allowed:
            return going_on
    if primary is not None:
        return Verdict(allowed=False, reason=f"{primary} is primary")
    if operator:
        return Verdict(allowed=True, reason="an operator said so; what only other members have is lost")
    if own.kind not in (Kind.STANDBY, Kind.PRIMARY):
        return Verdict(allowed=False, reason=f"this member is {own.kind}")
    return _is_first(own, others)


def may_initialize(
    own: Holding, others: Mapping[str, Holding | None], *, operator: bool = False, paused: bool = False
) -> Verdict:
    """Whether a member may make a new cluster, or name its own as the cluster, in a Consul that knows none."""
    if own.kind is not Kind.EMPTY:
        # Naming its system identifier decides which cluster this is: whoever has another one cannot join any more.
        return may_lead(own, others, operator=operator, paused=paused)
    held = next((f"{peer} has a database ({h})" for peer, h in others.items() if h and h.kind is not Kind.EMPTY), None)
    if held is not None:
        return Verdict(allowed=False, reason=held)
    if operator:
        return Verdict(allowed=True, reason="an operator said so; the new cluster is empty")
    silent = _silent(others)
    return silent or Verdict(allowed=True, reason="no member has a database")


def may_replace(own: Holding, others: Mapping[str, Holding | None], *, operator: bool = False) -> Verdict:
    """Whether a member without a database may make Consul forget the one that it knows, for nobody leads it.

    That no running member has it does not say that nobody has: its disk may be kept somewhere. So a person decides.
    """
    verdict = may_initialize(own, others, operator=operator)
    if not verdict.allowed or operator:
        return verdict
    return Verdict(allowed=False, reason="every member's disk is new, and has no database")


def may_succeed(own: Holding, others: Mapping[str, Holding | None], *, operator: bool = False) -> Verdict:
    """Whether a member may lead a synchronous cluster although it is not the synchronous standby: only an operator's
    word allows it, and only to one whose database is there, while no other is primary.
    """
    if own.kind is not Kind.STANDBY:
        return Verdict(allowed=False, reason=f"this member is {own.kind}")
    if operator:
        return may_lead(own, others, operator=True)
    return Verdict(allowed=False, reason="it needs a person's word")


def _may_go_on(own: Holding, others: Mapping[str, Holding | None]) -> Verdict:
    """For a primary: it led before Consul forgot, or has just made the cluster, and nothing stopped it since."""
    for peer, held in others.items():
        if held is not None and held.position.timeline > own.position.timeline:
            return Verdict(allowed=False, reason=f"{peer} is further: {held}")
    return Verdict(allowed=True, reason="it is primary already")


def _silent(others: Mapping[str, Holding | None]) -> Verdict | None:
    missing = sorted(peer for peer, held in others.items() if held is None)
    if not missing:
        return None
    return Verdict(
        allowed=False, silent=True, reason=f"not every member has said what it has; missing: {', '.join(missing)}"
    )


def _is_first(own: Holding, others: Mapping[str, Holding | None]) -> Verdict:
    mine = own.position
    for peer, held in others.items():
        if held is None or held.kind is Kind.EMPTY:
            continue
        at = held.position
        if held.kind is not Kind.UNSETTLED and (at.timeline, at.lsn) > (mine.timeline, mine.lsn):
            return Verdict(allowed=False, reason=f"{peer} has more: {held}; this member: {own}")
        if held.term and own.term and at.timeline == mine.timeline and held.term != own.term:
            return Verdict(
                allowed=False,
                reason=f"{peer} has another history of timeline {at.timeline}: no position tells which one to keep",
            )
    if silent := _silent(others):
        return silent
    unsettled = sorted(peer for peer, held in others.items() if held is not None and held.kind is Kind.UNSETTLED)
    if unsettled:
        return Verdict(allowed=False, reason=f"not known yet how far the log reaches of: {', '.join(unsettled)}")
    return Verdict(allowed=True, reason="every member was asked, and none has more")
