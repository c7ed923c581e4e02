"""Ends the sessions of CVMs that are gone. IO: Consul.

A session of Consul's falls with the health checks that it names, by default with `serfHealth` of its node. But any
token that may write a service may put a failing check of that ID on another's node, and so take another's lock away.
Sessions that are to be safe from that name no check, and would outlive their CVM by their TTL, 10 to 20 s. For them,
gossip itself is asked here, which no token can write to: a session ends when the Raft leader's Serf calls its node
failed or left. That is what decides over `serfHealth`, too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from runtime.consul import ConsulClient, ConsulError, reading

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
"""Between two looks at the members: a part of the time to the next leader. The local server answers from memory."""
LOOK_SECONDS = 2.0
"""Between two looks at the sessions while a node stays lost: for another Raft leader, or one that could not write."""
GONE = frozenset({3, 4})
"""`serf.StatusLeft` and `serf.StatusFailed`, as `/v1/agent/members` gives them (hashicorp/serf, serf/serf.go)."""


def lost(members: Any) -> frozenset[str]:
    """Names of the nodes that gossip calls failed or left, by the answer of `/v1/agent/members`. Pure.

    A node that is not listed is unknown, not lost: servers that have just started have not heard of everybody yet.
    """
    gone: set[str] = set()
    there: set[str] = set()
    for member in members if isinstance(members, list) else ():
        if isinstance(member, dict) and isinstance(member.get("Name"), str):
            (gone if member.get("Status") in GONE else there).add(member["Name"])
    return frozenset(gone - there)


def to_end(sessions: Any, nodes: frozenset[str]) -> list[str]:
    """IDs of the sessions of `nodes` that name no check, by the answer of `/v1/session/list`. Pure.

    Consul itself ends those that name one.
    """
    return [
        str(session["ID"])
        for session in (sessions if isinstance(sessions, list) else ())
        if isinstance(session, dict)
        and session.get("ID")
        and session.get("Node") in nodes
        and not session.get("NodeChecks")
        and not session.get("ServiceChecks")
    ]


class SessionEnder:
    """Ends sessions while the Consul server of this coordinator leads."""

    def __init__(self, consul: ConsulClient, own_rpc: str, clock: Callable[[], float]) -> None:
        """`own_rpc`: ADDRESS:PORT of this server's RPC. `clock`: monotonic seconds."""
        self._consul = consul
        self._own_rpc = own_rpc
        self._clock = clock
        self._lost: frozenset[str] = frozenset()
        self._looked_at = float("-inf")

    async def run(self) -> None:
        """Until cancelled. A server that does not answer is asked again."""
        while True:
            try:
                await self.look()
            except ConsulError as error:
                log.debug("sessions of lost nodes wait", extra={"reason": str(error)})
            await asyncio.sleep(POLL_SECONDS)

    async def look(self) -> None:
        """One look, and what follows from it. ConsulError."""
        _, members = await self._consul.get("/v1/agent/members")
        with reading("the list of members"):
            now_lost = lost(members)
        if not now_lost - self._lost and (not now_lost or self._clock() - self._looked_at < LOOK_SECONDS):
            self._lost = now_lost
            return
        self._looked_at = self._clock()
        _, leader = await self._consul.get("/v1/status/leader")
        if leader == self._own_rpc:
            # As this server has it: the Raft leader lacks nothing that was acknowledged.
            _, sessions = await self._consul.get("/v1/session/list")
            with reading("the list of sessions"):
                ended = to_end(sessions, now_lost)
            for session in ended:
                await self._consul.put(f"/v1/session/destroy/{session}")
                log.info("session of a lost node ended", extra={"session": session, "lost": sorted(now_lost)})
        # Not before it is done: what failed is tried again at the next look.
        self._lost = now_lost
