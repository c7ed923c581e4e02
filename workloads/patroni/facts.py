"""What a member's Patroni says of its PostgreSQL in `GET /patroni`, for a person. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from workloads.patroni import election, terms
from workloads.patroni.election import Holding, Kind

_WORDS = re.compile(r"[a-z_ ]{1,64}")
"""Patroni's roles and states, such as `replica`, `creating replica`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Of one member."""

    role: str
    state: str
    """`streaming` for a replica that does, otherwise PostgreSQL's state."""
    timeline: int | None = None
    position: int | None = None
    """LSN up to which it has the log: written, or received from the leader."""
    heard: int | None = None
    """When its Patroni last had an answer of Consul; unix seconds."""
    held: Holding | None = None
    """What it would say in an election; None before it knows."""

    @property
    def leads(self) -> bool:
        """Whether it takes writes."""
        return self.role == "primary" and self.position is not None

    def line(self, leader: Facts | None) -> str:
        """For a person; with how far it is behind `leader`, where somebody leads."""
        if self.position is None:
            return f"{self.role}, {self.state}{f', {self.held}' if self.held is not None else ''}"
        timeline = "unknown" if self.timeline is None else str(self.timeline)
        text = f"{self.role}, {self.state}, timeline {timeline}, log at {terms.lsn(self.position)}"
        if self.leads or leader is None or leader.position is None:
            return text
        return f"{text}, {max(0, leader.position - self.position)} bytes behind"


def read(answer: Any) -> Facts:
    """The answer to `GET /patroni`, decoded from JSON. ValueError where it is none of Patroni's."""
    if not isinstance(answer, dict):
        raise ValueError("Patroni's answer is no object")
    held = _holding(answer)
    found = answer.get("xlog")
    log: dict[Any, Any] = found if isinstance(found, dict) else {}
    position = _count(log.get("location")) or _count(log.get("received_location"))
    timeline = _count(answer.get("timeline"))
    if held is not None and held.kind in (Kind.STANDBY, Kind.PRIMARY):
        position, timeline = position or held.position.lsn, timeline or held.position.timeline
    return Facts(
        role=_word(answer.get("role")),
        state=_word(answer.get("replication_state") or answer.get("state")),
        timeline=timeline,
        position=position,
        heard=_count(answer.get("dcs_last_seen")),
        held=held,
    )


def _holding(answer: Any) -> Holding | None:
    try:
        return election.answer(answer)
    except ValueError:
        return None


def _word(value: Any) -> str:
    if not isinstance(value, str) or not _WORDS.fullmatch(value):
        raise ValueError(f"{str(value)[:64]!r} is no role and no state of Patroni's")
    return value


def _count(value: Any) -> int | None:
    """A positive number of 64 bits, or None."""
    return value if type(value) is int and 0 < value < 1 << 63 else None
