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
