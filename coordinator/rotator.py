"""Carries `coordinator.rotation` out: reads the record, goes by it with our own server and with whom we admit, and
moves it on while our server leads. IO: Consul, and gossip.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Callable
from typing import Any

from admission.protocol import MeshPeer
from coordinator.broker import Broker
from coordinator.keys import ClusterKeys, gossip_key
from coordinator.ledger import Ledger
from coordinator.rotation import KEY, Fact, Record, decode, encode, members, moved_on, ring, settled, waits_for
from coordinator.server_process import ServerProcess
from coordinator.slots import all_trust
from runtime.consul import SERVER_PORT, ConsulError, reading
from runtime.gossip import Heard, Ring
from runtime.keyring import KeyringError, Member
from runtime.secret import Secret
from runtime.tasks import TaskScope

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks at the record."""
RENEWED_SECONDS = 6.0
"""A stage lasts so long at least: a CVM hears of it with its next renewal, within 5 s, and an agent that is asked for a
key that it has not yet logs an error. After the last one, until all are to be done."""
PATIENCE_SECONDS = 60.0
"""Who renews its lease and has not come so far after so long is not waited for: its agent hangs, or no way leads to it.
It takes part again by the keys of a later renewal. Four leases."""
CERTAIN_SECONDS = 5.0
"""After the record was read, CVMs are told by it. No two stages pass within so long."""
AT_ONCE = 32
"""Members that are asked at the same time."""


class Rotator:
    """For the coordinator `own`."""

    def __init__(
        self,
        server: ServerProcess,
        ledger: Ledger,
        broker: Broker,
        keys: ClusterKeys,
        own: MeshPeer,
        *,
        hindered: Callable[[], bool],
        unix: Callable[[], float],
        monotonic: Callable[[], float],
        member: Callable[[str, str], Member] = Member,
    ) -> None:
        """`hindered`: this coordinator may not enforce its manifest now. `member`: who has that name and mesh address
        in gossip.
        """
        self._server, self._client, self._ledger, self._broker, self._keys = server, server.client, ledger, broker, keys
        self._own_rpc = f"{own.address}:{SERVER_PORT}"
        self._ask, self._member = member, member(own.peer_id, own.address)
        self._hindered, self._unix, self._monotonic = hindered, unix, monotonic
        self._since: tuple[Record, int, float] | None = None
        """A record and a wanted number, and the moment at which they were seen first."""
        self._server_has: tuple[str, int | None] = "", None
        """Name of the ring that our server was given, and the server's PID then."""
        self._given: tuple[Secret, ...] = ()
        """Keys that our server may have."""
        self._swept: Record | None = None
        self._unswept = ""
        """Why foreign keys were not taken out when it was tried last."""
        self._sweep_at = 0.0
        """Monotonic seconds before which it is not tried again."""
        self.problem = ""
        """Why the gossip key is not replaced yet, where it should be; empty otherwise."""

    async def begin(self) -> None:
        """Has a record, for all coordinators, and goes by it. ConsulError."""
        try:
            index, record = await self._read("consistent")
            if record is None:
                await self._write(settled(self._wanted), index)
                _, record = await self._read("consistent")
        except ValueError as error:
            # Of a newer program. The mesh goes on with the manifest's key, and `run` says so.
            log.warning("gossip key not known", extra={"reason": str(error)})
        else:
            self._take(record)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.look()
            except ConsulError as error:
                # Consul is away, which others say; what has to do with members is `_sweep`'s to say.
                log.debug("gossip key waits", extra={"reason": str(error)})
            except (KeyringError, ValueError) as error:
                self.problem = str(error)
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """One look at the record, and what follows from it. ConsulError, KeyringError; ValueError for no record."""
        try:
            index, record = await self._read("consistent")
        except ConsulError:
            # A server that comes back without today's key has no leader, but gets the leader's log.
            _, record = await self._read("stale")
            if record is not None:
                fresh = gossip_key(self._keys, self._wanted)
                await self._give_server(_with(ring(self._keys, record), fresh))
            return
        if record is None:
            return
        self._take(record)
        await self._give_server(self._broker.ring)
        await self._lead(index, record)

    def _take(self, record: Record | None) -> None:
        if record is not None:
            self._broker.ring = ring(self._keys, record)
            self._broker.ring_until = self._monotonic() + CERTAIN_SECONDS

    async def _lead(self, index: int, record: Record) -> None:
        wanted = self._wanted
        if self._since is None or self._since[:2] != (record, wanted):
            self._since = record, wanted, self._monotonic()
        passed = self._monotonic() - self._since[2]
        fact = waits_for(record, wanted)
        if fact is None:
            self.problem = self._unswept
        else:
            self.problem = f"waits for this: {fact.value}" if passed > PATIENCE_SECONDS / 2 else ""
        _, leader = await self._client.get("/v1/status/leader")
        if leader != self._own_rpc or self._hindered():
            self._unswept = ""
            return
        if fact is None:
            if passed >= RENEWED_SECONDS and self._swept != record and self._monotonic() >= self._sweep_at:
                # All members are asked, and Consul calls it a failure when one of them does not answer.
                self._sweep_at = self._monotonic() + PATIENCE_SECONDS
                await self._sweep(record)
            return
        late = await self._late(fact, record, passed)
        if late and passed < PATIENCE_SECONDS:
            return
        following = moved_on(record, wanted)
        if await self._write(following, index):
            extra = {"stage": following.stage, "number": following.number, "not_waited_for": late}
            log.info("gossip key goes on", extra=extra)

    async def _late(self, fact: Fact, record: Record, passed: float) -> list[str]:
        """Who has not come so far."""
        signed, nodes, now = self._broker.rules.signed, self._ledger.nodes, self._unix()
        if fact is Fact.FOLLOWED:
            slots = self._ledger.slots
            return [] if self._ledger.complete and all_trust(slots, nodes, signed.digest, now) else ["some CVM"]
        there = members(signed.manifest, tuple(self._ledger.slots.values()), nodes, now)
        if passed < RENEWED_SECONDS:
            return [name for name, _ in there]
        new, old = gossip_key(self._keys, record.number), gossip_key(self._keys, record.before)
        limit = asyncio.Semaphore(AT_ONCE)

        async def ask(name: str, address: str) -> Heard | None:
            async with limit:
                try:
                    return await self._ask(name, address).ask(new, (new, old))
                except KeyringError as error:
                    log.debug("member not asked", extra={"reason": str(error)})
                    return None

        async with TaskScope() as scope:
            answers = {name: scope.start(f"asks {name}", ask(name, address)) for name, address in there}
        found = {name: task.result() for name, task in answers.items()}
        return sorted(name for name, heard in found.items() if not _fits(heard, fact, new))

    async def _sweep(self, record: Record) -> None:
        """Takes every other key out of all rings: one that somebody put in by gossip while it knew the key of before,
        or that an agent has kept.
        """
        current = gossip_key(self._keys, record.number).reveal()
        try:
            _, answers = await self._client.get("/v1/operator/keyring")
            with reading("the list of gossip keys"):
                foreign = {key for each in answers or () for key in each.get("Keys") or {} if key != current}
            for key in foreign:
                await self._client.delete("/v1/operator/keyring", {"Key": key})
        except ConsulError as error:
            self._unswept = f"foreign keys may still be in some rings, for not every member answers: {error}"
            raise
        self._unswept = ""
        if foreign:
            log.warning("foreign gossip keys removed", extra={"count": len(foreign)})
        self._swept = record

    async def _give_server(self, wanted: Ring) -> None:
        has = wanted.name, self._server.child.status().pid
        if has == self._server_has:
            return
        began = self._server.begins_with
        # Each once: they are given again and again while that fails.
        may_have = self._given if began is None or began in self._given else (*self._given, began)
        former = tuple(key for key in may_have if key not in wanted.keys)
        self._given = (*wanted.keys, *former)
        await self._member.carry_out(wanted, former, self._server.query_clock)
        self._server_has, self._given = has, wanted.keys
        self._server.rewrite()

    @property
    def _wanted(self) -> int:
        return self._broker.rules.manifest.rotate.gossip

    async def _read(self, consistency: str) -> tuple[int, Record | None]:
        """Modify index and record, 0 and None where there is none. ConsulError; ValueError for what is no record."""
        _, entries = await self._client.get(f"/v1/kv/{KEY}", params={consistency: ""})
        if not entries:
            return 0, None
        with reading("the entry of the gossip key"):
            entry: Any = entries[0]
            index, value = int(entry["ModifyIndex"]), base64.b64decode(entry["Value"] or "")
        return index, decode(value)

    async def _write(self, record: Record, index: int) -> bool:
        """Whether nobody else wrote since `index`. ConsulError."""
        return bool(await self._client.put(f"/v1/kv/{KEY}", encode(record), params={"cas": str(index)}))


def _fits(heard: Heard | None, fact: Fact, new: Secret) -> bool:
    if heard is None:
        return False
    return heard.opens if fact is Fact.OPENED else heard.sealed_by == new


def _with(wanted: Ring, key: Secret) -> Ring:
    """`wanted`, with which `key` is opened too."""
    if key in wanted.keys:
        return wanted
    return Ring(name=f"{wanted.name}+", keys=(*wanted.keys, key))
