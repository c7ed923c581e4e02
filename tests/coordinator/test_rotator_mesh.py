"""The gossip key of a mesh that runs is replaced: real coordinators, Consul servers and agents."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from admission.broker import Admitted, Broker, Renewed
from admission.trust import by, coordinator_check, nothing
from coordinator import rotator
from coordinator.keys import GETKEY_PATH, ClusterKeys, derive, gossip_key
from coordinator.rotation import KEY
from lab.agent import GuestAgentServer
from runtime.children import Child
from runtime.consul import ConsulClient, ConsulError, api_socket, query_clock
from runtime.gossip import Heard, Ring
from runtime.guest import GuestAgent
from runtime.keyring import KeyringError, Member
from runtime.secret import Secret
from runtime.tasks import TaskScope
from sidecar import identity
from sidecar.admission import Admission, Claim
from sidecar.agent import Agent
from sidecar.certificate_reading import Given
from sidecar.slot import Wish
from tests.coordinator.world import API_COMPOSE, OWNER, TEE, Cluster, cluster, cvm
from tests.sidecar.world import HoldsNothing
from tests.support import eventually, tool
from tests.topology.support import after, opened
from topology.envelope import seal
from topology.manifest import Rotate

pytestmark = pytest.mark.timeout(400)
ALIVE = 1
PATIENCE = 20.0
"""Seconds for which a stage waits for who does not come so far, in the place of a minute: several renewals. Two stages
wait for so long, and `test_rotator` has the real time, by a clock of its own."""
PLANTED = Secret("A" * 43 + "=")


class Cvm(HoldsNothing):
    """An admitted CVM with an agent, which does with gossip keys what a sidecar does."""

    def __init__(self, folder: Path, keys: identity.Keys) -> None:
        self.folder, self.keys = folder, keys
        self.consul = ConsulClient(socket=api_socket(folder))
        self.agent = Agent(Path(tool("consul")), folder, self.consul)
        self.child = Child(self.agent.spec(), self._started)
        self.first: asyncio.Future[Admitted] = asyncio.get_running_loop().create_future()
        self.admission: Admitted | None = None
        self.ring = self.trusts = ""
        self.waits = False
        """It takes no keys."""

    async def admitted(self, admitted: Admitted, _given: Given) -> None:
        self.admission = admitted
        self.consul.use_token(admitted.token)
        self.agent.write(admitted, self.keys)
        if not self.first.done():
            self.first.set_result(admitted)

    async def renewed(self, renewed: Renewed, _given: Given) -> None:
        self.trusts = renewed.manifest_digest
        if renewed.gossip is not None and self.admission is not None and not self.waits:
            self.admission = replace(self.admission, gossip=renewed.gossip)
            self.agent.write(self.admission, self.keys)
            await self._take()

    async def _started(self) -> None:
        await self.agent.up()
        await self._take()

    async def _take(self) -> None:
        self.ring = ""
        with contextlib.suppress(ConsulError, KeyringError):
            self.ring = await self.agent.take_ring()

    def certificate(self) -> tuple[None, str]:
        return None, self.trusts

    def gossip_ring(self) -> str:
        return self.ring

    def not_admitted(self, reason: str) -> None:
        """Of no interest."""

    @property
    def member(self) -> Member:
        assert self.admission is not None
        return Member(self.admission.peer_id, self.admission.address)

    @property
    def sealed_with(self) -> str:
        """The key that its agent would start with."""
        return str(json.loads((self.folder / "consul/config/agent.json").read_text())["encrypt"])


@contextlib.asynccontextmanager
async def admitted(made: Cluster, peer_id: str, scope: TaskScope) -> AsyncIterator[Cvm]:
    """A CVM of `api` that has joined."""
    folder = made.root / peer_id
    folder.mkdir()
    server = GuestAgentServer(TEE, cvm(API_COMPOSE, peer_id))
    await server.start(folder / "dstack.sock")
    keys = identity.load_or_make(folder)
    it = Cvm(folder, keys)
    verify = coordinator_check(by(opened(made.manifest)), nothing, made.pccs_url, TEE.root_der, time.time)
    brokers = tuple(Broker(url, verify) for url in (f"https://127.0.0.1:{port}" for port in made.ports))
    async with GuestAgent(folder / "dstack.sock") as guest:
        claim = Claim(
            cluster="tests", group="api", wish=Wish(pinned=peer_id), identities=lambda: made.manifest.identities("api"),
            info=await guest.info(), keys=keys,
        )  # fmt: skip
        admission = Admission(lambda: brokers, guest, claim, it)
        running = [scope.start(f"admission of {peer_id}", admission.run())]
        try:
            async with asyncio.timeout(30):
                await it.first
                running.append(scope.start(f"agent of {peer_id}", it.child.run()))
                await it.agent.joined()
            yield it
        finally:
            for task in running:
                task.cancel()
            await asyncio.wait(running)
            await admission.close()
            await it.agent.close()
            await it.consul.close()
            await server.stop()


@contextlib.asynccontextmanager
async def mesh(coordinators: int = 1) -> AsyncIterator[tuple[Cluster, Cvm, Cvm, ClusterKeys]]:
    """Coordinators, two CVMs that have joined, and the cluster's keys."""
    async with cluster(coordinators) as made, TaskScope() as scope:
        for n in range(coordinators):
            await made.start(n)
        for n in range(coordinators):
            await made.ready(n, 60)
        async with GuestAgent(made.running[0].folder / "dstack.sock") as guest:
            keys = derive(await guest.key(GETKEY_PATH, "tests"), "tests")
        async with admitted(made, "api-0", scope) as one, admitted(made, "api-1", scope) as two:
            yield made, one, two, keys


async def states(made: Cluster, n: int = 0) -> dict[str, int]:
    """Of all members, as the server of coordinator `n` sees them."""
    _, found = await made.running[n].coordinator.consul.get("/v1/agent/members")
    return {each["Name"]: each["Status"] for each in found}


async def until(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> None:
    """As `eventually`, of something that is asked."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - of other processes
            await asyncio.sleep(0.1)
    assert what


def rotate(made: Cluster) -> Any:
    """Sets a manifest with the next gossip key."""
    lead = next(iter(made.running.values())).coordinator
    newer = after(lead.head.signed, rotate=Rotate(gossip=lead.head.manifest.rotate.gossip + 1))
    return lead.consul.put("/v1/kv/mesh/manifest", seal(newer, OWNER).encode())


def pids(*cvms: Cvm) -> list[int | None]:
    """Of their agents."""
    return [each.child.status().pid for each in cvms]


async def test_the_key_changes_while_all_run(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody restarts, and no member is lost from sight at any moment. Afterwards nobody opens what the old key seals,
    nor a key that somebody had put into the rings; agents and coordinators that start anew are members by the new one.
    """
    async with mesh() as (made, one, two, keys):
        old, new = gossip_key(keys, 0), gossip_key(keys, 1)
        assert await one.member.ask(old, (old, new)) == Heard(opens=True, sealed_by=old)
        lead = made.running[0]
        clock_of = ConsulClient(one.keys.recovery_token, socket=api_socket(one.folder))
        await one.member.carry_out(Ring(name="", keys=(old, PLANTED)), (), lambda: query_clock(clock_of))
        await clock_of.close()
        before, server = pids(one, two), lead.coordinator.document()["children"]
        seen: list[dict[str, int]] = []
        await rotate(made)
        began = time.monotonic()

        async def settled() -> bool:
            seen.append(await states(made))
            return lead.coordinator.broker.ring.name == one.ring == two.ring == "1"

        await until(settled, "all have the new key alone")
        print(f"replaced after {time.monotonic() - began:.1f} s")
        wanted = {"coordinator-0": ALIVE, "api-0": ALIVE, "api-1": ALIVE}
        assert [each for each in seen if each != wanted] == []
        assert (pids(one, two), lead.coordinator.document()["children"]) == (before, server)
        for member in (one.member, two.member, Member("coordinator-0", made.manifest.coordinators.peers[0].address)):
            assert await member.ask(old, (old, new)) == Heard(opens=False, sealed_by=new)
            assert (await member.ask(new, (old, new))).opens

        async def swept() -> bool:
            return not (await one.member.ask(PLANTED, (new,))).opens

        await until(swept, "the key that was put in is gone", 30)
        shown = caplog.text + (await lead.coordinator.consul.get(f"/v1/kv/{KEY}"))[1][0]["Value"]
        assert old.reveal() not in shown
        assert new.reveal() not in shown
        await restarts(made, one, new)


async def restarts(made: Cluster, one: Cvm, new: Secret) -> None:
    """An agent, then the only coordinator with its disk."""
    assert one.sealed_with == new.reveal()
    pid = one.child.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: one.child.status().pid not in (None, pid) and one.ring == "1", "it is back")

    async def all_alive() -> bool:
        with contextlib.suppress(ConsulError):
            return set((await states(made)).values()) == {ALIVE}
        return False

    await until(all_alive, "it is a member")
    newest = made.running[0].coordinator.head.manifest
    await made.lose(0)
    await made.start(0, newest)
    await made.ready(0, 60)
    await until(all_alive, "they are members of the server that came back")
    assert made.running[0].coordinator.broker.ring.name == "1"


async def test_who_was_away_takes_part_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator that was away during all of it has the old key only; it gets the records by Raft. A CVM that takes
    no keys while it renews is not waited for longer than its time, and comes back by a later renewal.
    """
    monkeypatch.setattr(rotator, "PATIENCE_SECONDS", PATIENCE)
    async with mesh(3) as (made, one, two, keys):
        old, new = gossip_key(keys, 0), gossip_key(keys, 1)
        leader = (await made.running[0].coordinator.consul.get("/v1/status/leader"))[1].rpartition(":")[0]
        away = next(
            n for n, peer in enumerate(made.manifest.coordinators.peers) if n in made.running and peer.address != leader
        )
        await made.lose(away)
        two.waits = True
        staying = next(iter(made.running))
        await rotate(made)

        async def settled() -> bool:
            return made.running[staying].coordinator.broker.ring.name == one.ring == "1"

        await until(settled, "the others have the new key alone", 200)
        assert (await two.member.ask(old, (old, new))).opens
        two.waits = False
        await eventually(lambda: two.ring == "1", "it has taken the key", 30)
        await made.start(away)
        await made.ready(away, 60)

        async def all_alive() -> bool:
            with contextlib.suppress(ConsulError):
                return (
                    set((await states(made, away)).values()) == set((await states(made, staying)).values()) == {ALIVE}
                )
            return False

        await until(all_alive, "all are members again", 60)
