"""Which of Consul's servers have to leave because the manifest dropped their coordinators, and in which order. Pure.

Each removal is an entry of Raft's log that a majority of the servers that are left has to take. So they leave one after
the other, those that do not answer first: of three, of which one is dead, the dead one goes before the living one. And
a leader that has to leave hands the lead over before: else the others would wait for an election.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One server of Raft's configuration."""

    server_id: str
    address: str
    """Mesh address."""
    leads: bool
    votes: bool
    alive: bool
    """As gossip sees it, and it takes a connection now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove:
    """The leader takes this server out."""

    server: Server


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    """Our own server has the lead handed over to it."""

    server: Server


class Grace:
    """How long each coordinator that was dropped has been so while there was a leader, by peer ID. Time without one
    does not count, for then nobody can remove its server; nor does the count begin anew after it, or a server that
    calls elections would never be out.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._seen: float | None = None

    def look(self, dropped: Collection[str], led: bool, now: float) -> None:
        """`dropped` are so at `now` (any clock, seconds), and there is a leader or not."""
        passed = now - self._seen if led and self._seen is not None else 0.0
        self._seen = now
        self._seconds = {name: self._seconds[name] + passed if name in self._seconds else 0.0 for name in dropped}

    def over(self, name: str, seconds: float) -> bool:
        """Whether `name` has had that many."""
        return self._seconds.get(name, 0.0) >= seconds


def next_step(servers: Collection[Server], staying: Collection[str], own: str) -> Remove | Lead | None:
    """What the coordinator with mesh address `own` does next; None when there is nothing to do, or another one does it.

    `staying`: mesh addresses of the coordinators that the manifest has.
    """
    going = [server for server in servers if server.address not in staying]
    leader = next((server for server in servers if server.leads), None)
    mine = next((server for server in servers if server.address == own), None)
    if not going or leader is None or mine is None or own not in staying:
        return None
    if leader in going:
        return Lead(server=mine) if mine.votes else None
    if leader != mine:
        return None
    return Remove(server=min(going, key=lambda server: (server.alive, server.address)))
