"""Sidecars' admissions against real coordinators that forget, and manifests that lose a slot: who ends up where."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from admission.broker import Admitted, Broker, Renewed
from admission.protocol import MANIFEST_KEY
from admission.trust import by, coordinator_check, nothing
from lab.agent import GuestAgentServer
from runtime.guest import GuestAgent
from runtime.tasks import TaskScope
from sidecar import identity
from sidecar.admission import Admission, Claim
from sidecar.certificate_reading import Given
from sidecar.slot import Wish
from tests.coordinator.world import API_COMPOSE, OWNER, TEE, Cluster, cluster, cvm
from tests.sidecar.world import HoldsNothing
from tests.support import eventually
from tests.topology.support import after, opened
from topology import manifest as manifests
from topology.envelope import seal
from topology.manifest import Manifest

NO_WISH = Wish()


@dataclass
class Cvm(HoldsNothing):
    """A CVM of `api` as far as its admission goes; its `admission.Listener`."""

    instance_id: str
    task: asyncio.Task[None] | None = None
    slots: list[str] = field(default_factory=list)
    """Peer IDs that it was admitted as, in order, each once in a row."""
    reason: str = ""
    """Why it is not admitted, as last told."""

    async def admitted(self, admitted: Admitted, _given: Given) -> None:
        self.reason = ""
        if self.slots[-1:] != [admitted.peer_id]:
            self.slots.append(admitted.peer_id)

    async def renewed(self, renewed: Renewed, _given: Given) -> None:
        """Of no interest."""

    def not_admitted(self, reason: str) -> None:
        self.reason = reason


class World:
    """A cluster of one coordinator, and CVMs of `api`."""

    def __init__(self, made: Cluster, folder: Path, stack: contextlib.AsyncExitStack, scope: TaskScope) -> None:
        self.made, self._folder, self._stack, self._scope = made, folder, stack, scope

    async def boot(self, seed: str, wish: Wish = NO_WISH) -> Cvm:
        """A CVM that asks for a slot of its group, or as `wish` has it."""
        folder = self._folder / seed
        folder.mkdir()
        who = cvm(API_COMPOSE, seed)
        server = GuestAgentServer(TEE, who)
        await server.start(folder / "dstack.sock")
        self._stack.push_async_callback(server.stop)
        guest = await self._stack.enter_async_context(GuestAgent(folder / "dstack.sock"))
        verify = coordinator_check(by(opened(self.made.manifest)), nothing, self.made.pccs_url, TEE.root_der, time.time)
        found = Cvm(who.instance_id)
        claim = Claim(
            cluster="tests", group="api", wish=wish, identities=lambda: self.made.manifest.identities("api"),
            info=await guest.info(), keys=identity.load_or_make(folder),
        )  # fmt: skip
        brokers = (Broker(f"https://127.0.0.1:{self.made.ports[0]}", verify),)
        admission = Admission(lambda: brokers, guest, claim, found)
        self._stack.push_async_callback(admission.close)
        found.task = self._scope.start(seed, admission.run())
        self._stack.callback(found.task.cancel)
        return found

    async def forget(self, manifest: Manifest) -> None:
        """All coordinators are lost, and come back knowing nobody, with `manifest`."""
        await self.made.lose(0)
        await self.made.start(0, manifest)
        await self.made.ready(0)


@contextlib.asynccontextmanager
async def world(replicas: int) -> AsyncIterator[World]:
    """A cluster whose group `api` has so many slots; its coordinator is ready."""
    with tempfile.TemporaryDirectory(prefix="mesh-test-", dir="/dev/shm") as text:
        async with cluster() as made, TaskScope() as scope, contextlib.AsyncExitStack() as stack:
            made.manifest = with_slots(made.manifest, replicas)
            await made.start()
            await made.ready()
            yield World(made, Path(text), stack, scope)


def with_slots(manifest: Manifest, replicas: int) -> Manifest:
    """`manifest` with so many slots of `api`."""
    network = manifest.groups["api"].peers[0].address.rpartition(".")[0]
    peers = tuple(manifests.PeerEntry(peer_id=f"api-{n}", address=f"{network}.{20 + n}") for n in range(replicas))
    groups = {**manifest.groups, "api": dataclasses.replace(manifest.groups["api"], peers=peers)}
    return dataclasses.replace(manifest, groups=groups)


async def settled(cvms: list[Cvm], seconds: float) -> None:
    """Waits until each CVM is admitted, in slots that differ."""
    await eventually(
        lambda: all(one.slots and not one.reason for one in cvms) and len({one.slots[-1] for one in cvms}) == len(cvms),
        f"each has a slot of its own: {cvms}",
        seconds,
    )


@pytest.mark.parametrize("gone", [0, 1, 2])
async def test_from_three_to_two_replicas_both_that_stay_have_a_slot(gone: int) -> None:
    """Whichever slot the CVM had that went: of those that stay, one in a slot that the manifest has keeps it, and one
    in the slot that it lacks moves to the free one. Coordinators forget everything meanwhile.
    """
    async with world(3) as it:
        cvms = [await it.boot(f"api-{n}") for n in range(3)]
        await settled(cvms, 20)
        slots = sorted(one.slots[-1] for one in cvms)
        assert slots == ["api-0", "api-1", "api-2"]
        (leaves,) = (one for one in cvms if one.slots[-1] == f"api-{gone}")
        stay = [one for one in cvms if one is not leaves]
        assert leaves.task is not None
        leaves.task.cancel()
        await it.forget(after(opened(it.made.manifest), groups=with_slots(it.made.manifest, 2).groups))
        lead = it.made.running[0].coordinator
        await eventually(lambda: lead.document()["admitted"] == ["api-0", "api-1"], f"both serve: {stay}", 30)
        await settled(stay, 20)
        for one in stay:
            assert len(one.slots) == 1 or one.slots[0] == "api-2", "only who had to move did"


async def test_a_newer_manifest_without_its_slot_moves_a_cvm() -> None:
    """Coordinators that go on and adopt it free the slot; the CVM takes the one of the CVM that went, once that one is
    known to be gone.
    """
    async with world(3) as it:
        cvms = [await it.boot(f"api-{n}") for n in range(3)]
        await settled(cvms, 20)
        by_slot = {one.slots[-1]: one for one in cvms}
        leaves = by_slot["api-1"].task
        assert leaves is not None
        leaves.cancel()
        lead = it.made.running[0].coordinator
        newer = after(lead.head.signed, groups=with_slots(it.made.manifest, 2).groups)
        envelope = seal(newer, OWNER)
        await lead.consul.put(f"/v1/kv/{MANIFEST_KEY}", envelope.encode())
        await eventually(lambda: by_slot["api-2"].slots == ["api-2", "api-1"], f"it moved: {cvms}", 60)
        assert by_slot["api-0"].slots == ["api-0"]


async def test_a_cvm_whose_slot_another_took_gets_another_one() -> None:
    """It is refused for a lease, is told why it is not admitted, and has the other slot of its group afterwards."""
    async with world(2) as it:
        rival = await it.boot("api-1", Wish(pinned="api-0"))
        await settled([rival], 20)
        moved = await it.boot("api-0", Wish(held="api-0"))
        await eventually(lambda: "SLOT_TAKEN: api-0 is held by another instance" in moved.reason, "it is told", 20)
        assert moved.slots == []
        await eventually(lambda: moved.slots == ["api-1"], f"it has the other slot: {moved}", 60)
        assert rival.slots == ["api-0"]
