"""Who may follow a leader that shuts down. Pure.

In synchronous mode Patroni promotes only a member that the `sync` key names. A leader in its first seconds has named
nobody yet, and the one that it named may be dead: an orderly stop would then leave a cluster in which nobody may lead,
although a replica has everything. The end of the log is known after a clean stop. A member that has it has every
acknowledged write, so it may be named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The end of the log of a primary that was shut down."""

    lsn: int
    """Of its shutdown checkpoint."""
    timeline: int


def has_everything(status: object, end: End) -> bool:
    """Whether a member whose REST API answers `GET /patroni` with `status` has the log up to `end` and may lead.

    The answer comes from another party: whatever it cannot mean counts as no.
    """
    if not isinstance(status, Mapping) or status.get("role") in ("primary", "master"):
        return False
    tags = status.get("tags")
    if isinstance(tags, Mapping) and tags.get("nofailover"):
        return False
    wal = status.get("wal") or status.get("xlog")
    if not isinstance(wal, Mapping) or status.get("timeline") != end.timeline:
        return False
    places = (wal.get("received_location"), wal.get("replayed_location"))
    return any(isinstance(place, int) and place > end.lsn for place in places)


def successor(named: Iterable[str], answers: Mapping[str, Any], end: End) -> str | None:
    """The member to name in the `sync` key; None: one that is named there has everything already, or nobody has.

    `named`: the standbys in the `sync` key. `answers`: name to what a member's REST API said; the silent are missing.
    """
    able = sorted(name for name, status in answers.items() if has_everything(status, end))
    if not able or set(able) & set(named):
        return None
    return able[0]
