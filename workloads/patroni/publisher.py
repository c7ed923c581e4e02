"""Keeps Consul told what a member is. IO: Consul.

One task does all the writing, so that two changes never overtake each other; whoever has to know waits until the agent,
or the catalog, has it.

That a leader serves is said twice. First in its leader key, one write that every sidecar hears of at once; a moment
later by the tag, through the agent's registration, for whoever goes by tags. Where the key cannot be written, the tag
is all there is, and does not wait. Nor does anything that still leads callers here; what a leader that has lost its key
has to say does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace
from typing import Any

from runtime import leader_key
from runtime.consul import ConsulClient, ConsulError
from workloads.patroni import roles
from workloads.patroni.roles import Place, Public

log = logging.getLogger(__name__)

BEAT_SECONDS = 3.0
"""Between two renewals of the checks' time to live."""
RETRY_SECONDS = 0.1
LATER_SECONDS = 1.0
"""From the leader key to what only follows it: the tag of a new leader, and all that an old one has to say. Each is
news to every sidecar, and keeps them and the servers as busy as the key did, in the moment in which all that has lost
its leader connects again. That long a new leader has the tag of a replica, and readers: it answers them too.
"""
LOOK_SECONDS = 0.25
"""For the question whose the leader key is, asked before bad news is told: without an answer it is told at once."""
KEY_SECONDS = 1.0
"""For what is said in the leader key, and for the question whose it is before a stop, which the servers have to answer:
what the local agent is told must not wait."""


class Publisher:
    """Publishes this member at `where`."""

    def __init__(self, consul: ConsulClient, where: Place, peer_id: str, key: str) -> None:
        """`key`: the cluster's leader key."""
        self._consul = consul
        self._where = where
        self._peer_id = peer_id
        self._key = f"/v1/kv/{key}"
        self._serves = False
        """What was said in the key last."""
        self._index: int | None = None
        """Of the key, read ahead while a promotion is under way."""
        self._promises = False
        self._later_at = 0.0
        """When what can wait is due (the loop's clock)."""
        self._hurries = False
        self._known: Public | None = None
        self._number = 0
        """Of the registration; a greater one makes the agent tell the servers again."""
        self._changed = asyncio.Event()
        self._written = asyncio.Event()
        self._moved = asyncio.Event()
        self.wanted = Public()
        self.promoted = False
        """The master was a replica until then: what its leader had in the database is there."""

    def want(self, *, member: bool | None = None, database: bool | None = None, role: str | None = "") -> None:
        """Changes what is wanted; None (for a role: "") leaves a part as it is. Returns at once."""
        now = self.wanted
        wanted = replace(
            now,
            member=now.member if member is None else member,
            database=now.database if database is None else database,
            role=now.role if role == "" else role,
        )
        if wanted != now:
            log.info("publishing", extra={"member": wanted.member, "database": wanted.database, "role": wanted.role})
            if wanted.role == roles.MASTER != now.role:
                self.promoted = now.role == roles.REPLICA
            self.wanted = wanted
            self._changed.set()
            self._moved.set()
            self._moved = asyncio.Event()

    def promise(self) -> None:
        """This member is about to serve as the master: what can be done before is done. Returns at once."""
        self._promises = True
        self._changed.set()

    def hurry(self) -> None:
        """Nothing that is wanted waits: this process is about to end. Returns at once."""
        self._hurries = True
        self._changed.set()

    async def leads(self, yes: bool) -> None:
        """Returns once this member is wanted as the master (or, with False, once it is not)."""
        while (self.wanted.role == roles.MASTER) is not yes:
            await self._moved.wait()

    async def reached(self) -> None:
        """Returns once the agent was told what is wanted now."""
        while self._known != self.wanted:
            self._written.clear()
            await self._written.wait()

    async def holds_key(self) -> bool:
        """Whether the leader key is this member's; False where Consul does not say so in time."""
        try:
            async with asyncio.timeout(KEY_SECONDS):
                return await self._own_index() is not None
        except (ConsulError, TimeoutError):
            return False

    async def run(self) -> None:
        """Writes changes as they come, and renews what passes. Ends only by cancellation."""
        while True:
            self._changed.clear()
            wanted = self.wanted
            due = self._known == self._for_now(wanted)
            serves = wanted.role == roles.MASTER
            if self._promises and due:
                # What is to be told already goes first.
                self._promises = False
                await self._read_ahead()
                if self.wanted == wanted:
                    await self._pause(wanted)
                continue
            try:
                if serves and not self._serves:
                    await self._say()
                elif self._serves and not serves:
                    await self._take_back(wanted)
                told = self._for_now(wanted)
                due = due and self._known == told
                if due and not roles.stands(await self._service(), told):
                    log.warning("the registration was replaced; writing it again")
                    self._known, due = None, False
                if due and (disturbed := roles.disturbed(await self._checks(), self._where)):
                    log.warning("checks were replaced or are missing; writing them again", extra={"checks": disturbed})
                    self._known, due = None, False
                    self._number += 1
                calls = roles.beats(self._where, told) if due else self._calls(told)
                for call in calls:
                    # Checks that an earlier registration had (the sidecar's placeholder) go.
                    params = {"replace-existing-checks": "true"} if call.path.endswith("/register") else None
                    await self._consul.put(call.path, call.body, params=params)
            except ConsulError as error:
                self._lost(error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._known = told
            self._written.set()
            if self.wanted == wanted and not self._promises:
                await self._pause(wanted)

    async def _read_ahead(self) -> None:
        with contextlib.suppress(ConsulError, TimeoutError):
            async with asyncio.timeout(KEY_SECONDS):
                self._index = await self._own_index()

    async def _say(self) -> None:
        """Says in the leader key that we serve, if it is ours; tried again at the next beat if that fails."""
        ahead, self._index = self._index, None
        try:
            async with asyncio.timeout(KEY_SECONDS):
                self._serves = await self._flag(ahead, True) or await self._flag(await self._own_index(), True)
        except (ConsulError, TimeoutError) as error:
            log.info("the leader key could not be written", extra={"serves": True, "reason": repr(error)})
        if self._serves:
            self._later_at = self._now() + LATER_SECONDS

    async def _take_back(self, wanted: Public) -> None:
        """Says in the leader key that we serve no more. Where it is ours no longer, or falls with the session of a
        member that has ended, nobody is led here by anything else that we have said.
        """
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                index = await self._own_index() if wanted.member else None
                self._serves = index is not None and not await self._flag(index, False)
        except (ConsulError, TimeoutError) as error:
            log.info("the leader key could not be written", extra={"serves": False, "reason": repr(error)})
            return
        if index is None:
            self._later_at = self._now() + LATER_SECONDS

    async def _own_index(self) -> int | None:
        _, found = await self._consul.get(self._key)
        return roles.own_index(found, self._peer_id)

    async def _flag(self, index: int | None, serves: bool) -> bool:
        """Writes the key that had this index; whether it still had."""
        if index is None:
            return False
        # Leaves the session as it is, and does nothing to a key that was given away or taken meanwhile.
        params = {"cas": str(index), "flags": str(leader_key.flags(serves=serves))}
        return await self._consul.put(self._key, self._peer_id.encode(), params=params) is True

    def _for_now(self, wanted: Public) -> Public:
        """What the agent is to be told now; all of it where nothing can wait."""
        known = self._known
        if known is None or self._hurries or self._now() >= self._later_at:
            return wanted
        if wanted.role == roles.MASTER:
            return replace(wanted, role=known.role) if self._serves else wanted
        return known if known.role == roles.MASTER else wanted

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    async def _service(self) -> Any:
        _, service = await self._consul.get(f"/v1/agent/service/{self._where.service_id}")
        return service

    async def _checks(self) -> Any:
        """What the servers have as this node's checks; None where they do not answer."""
        try:
            async with asyncio.timeout(KEY_SECONDS):
                _, checks = await self._consul.get(f"/v1/health/node/{self._peer_id}")
        except (ConsulError, TimeoutError):
            return None
        return checks

    def _calls(self, wanted: Public) -> tuple[roles.Write, ...]:
        return roles.writes(self._where, self._peer_id, self._known, wanted, self._number)

    def _lost(self, error: ConsulError) -> None:
        # Whatever was written may be gone: an agent that restarted on empty state knows nothing.
        if self._known is not None:
            log.warning("agent refused an update", extra={"reason": str(error)})
        self._known = None

    async def _pause(self, wanted: Public) -> None:
        """Until something changes, what waited is due, or the checks are to be renewed."""
        seconds = BEAT_SECONDS if self._for_now(wanted) == wanted else self._later_at - self._now()
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return
