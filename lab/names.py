"""What the CVMs of a lab are called. Pure.

A CVM is a machine of the lab with a name of its own. Once it is admitted, it is a peer of the mesh, and that is what
people and programs mean: `./mesh kill worker-1` takes away the CVM that is worker-1 in the mesh, whichever machine that
is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One machine, and which peer it says or said it is."""

    machine: str
    """Its name in the lab."""
    group: str
    peer_id: str | None
    """As its sidecar said last; None: it was never admitted."""
    current: bool
    """It runs, and its sidecar said so in this boot."""
    at: float
    """When it said so; unix seconds."""


def machine_name(app: str, ordinal: int) -> str:
    """Machine `ordinal` of an app whose CVMs are not told their peer ID. Never the form of a peer ID, which ends with a
    dash and a number.
    """
    return f"{app}-cvm{ordinal}"


def called(machines: Sequence[Seen]) -> dict[str, str]:
    """Name in the lab → what it is called, in the order to show them in: groups as given, peers by number.

    That is the peer ID where it was admitted once. If several say that they are one peer, it is the one that runs, and
    of those the one that was admitted last: the slot was given to it. Any other goes by its name in the lab.
    """
    holders: dict[str, Seen] = {}
    for seen in machines:
        if seen.peer_id is not None:
            other = holders.get(seen.peer_id)
            if other is None or (seen.current, seen.at) > (other.current, other.at):
                holders[seen.peer_id] = seen
    names = {seen.machine: seen.machine for seen in machines}
    names |= {seen.machine: peer_id for peer_id, seen in holders.items()}
    groups = list(dict.fromkeys(seen.group for seen in machines))
    return {
        seen.machine: names[seen.machine]
        for seen in sorted(machines, key=lambda seen: (groups.index(seen.group), _order(names[seen.machine])))
    }


def _order(name: str) -> tuple[bool, int, str]:
    """Peers by number, then machines that are no peer."""
    number = re.search(r"-(\d+)$", name)
    return (number is None, int(number[1]) if number else 0, name)
