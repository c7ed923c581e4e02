"""Coordinators that a manifest adds or drops, with real Consul servers: the mesh goes on, and nothing that was
acknowledged is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from admission.protocol import PEERS_PREFIX
from runtime.consul import ConsulError
from tests.coordinator import setting
from tests.coordinator.setting import proposed
from tests.coordinator.test_formation import READY_SECONDS, Writer, boot, kept, nothing_lost, reasons, together, writing
from tests.coordinator.world import COORDINATOR_COMPOSE, OWNER, Applicant, Cluster, Running, cluster, cvm
from tests.support import eventually
from tests.topology.support import after, opened
from topology.envelope import Signed
from topology.manifest import Manifest

pytestmark = pytest.mark.timeout(240)


def listing(mesh: Cluster, *numbers: int) -> Manifest:
    """The mesh's manifest with these coordinators only."""
    peers = tuple(mesh.manifest.coordinators.peers[n] for n in numbers)
    return replace(mesh.manifest, coordinators=replace(mesh.manifest.coordinators, peers=peers))


async def put(mesh: Cluster, at: int, *numbers: int, **changes: Any) -> Signed:
    """Sets a manifest that lists these coordinators, at coordinator `at`."""
    head = mesh.running[at].coordinator.head.signed
    found = opened(after(head, coordinators=listing(mesh, *numbers).coordinators, **changes), OWNER)
    status, answer = await proposed(mesh.running[at], found.envelope)
    assert status == 200, answer
    return found


async def raft(running: Running) -> set[str]:
    """Mesh addresses in the leader's Raft configuration."""
    with contextlib.suppress(ConsulError):
        _, tree = await running.coordinator.consul.get("/v1/operator/raft/configuration")
        return {str(each["Address"]).rpartition(":")[0] for each in tree["Servers"]}
    return set()


async def becomes(running: Running, wanted: set[str]) -> None:
    """Waits until Raft has these servers, and no other."""
    async with asyncio.timeout(READY_SECONDS):
        while await raft(running) != wanted:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.05)


def addresses(mesh: Cluster, *numbers: int) -> set[str]:
    """Mesh addresses of these coordinators."""
    return {mesh.manifest.coordinators.peers[n].address for n in numbers}


async def out(mesh: Cluster, stays: Running, *numbers: int, reason: str = "does not list") -> None:
    """Coordinators `numbers` are off link, registry, lists and gossip of one that stays; each that runs says why it
    admits nobody, and its Consul server has ended.
    """
    names = {f"coordinator-{n}" for n in numbers}
    await eventually(lambda: not names & {peer.peer_id for peer in stays.link.peers}, "they are off the link")
    assert not names & {holder.peer_id for holder in stays.coordinator.broker.admitted()}
    async with asyncio.timeout(READY_SECONDS):
        for path, name in (
            ("/v1/agent/members", "Name"),
            ("/v1/catalog/nodes", "Node"),
            (f"/v1/kv/{PEERS_PREFIX}?recurse", "Key"),
        ):
            while names & {each[name].rpartition("/")[2] for each in await listed(stays, path)}:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    for n in numbers:
        if (gone := mesh.running.get(n)) is None:
            continue
        await eventually(lambda gone=gone: reason in reasons(gone), "it says why", 20)  # type: ignore[misc]
        assert gone.coordinator.document()["ready"] is False
        await eventually(
            lambda gone=gone: gone.coordinator.document()["children"]["consul"]["pid"] is None,  # type: ignore[misc]
            "its Consul server has ended",
        )
        status, answer = await Applicant(url=gone.url, manifest=mesh.manifest).challenge()
        assert (status, answer["code"]) == (503, "NOT_READY")
        assert reason in answer["reason"]


async def listed(running: Running, path: str) -> list[dict[str, Any]]:
    """Consul's answer, with which `?recurse` is a parameter."""
    bare, _, query = path.partition("?")
    _, found = await running.coordinator.consul.get(bare, params={query: ""} if query else None)
    return list(found)


async def test_coordinators_come_and_go_with_the_manifest() -> None:
    """From one to three, and from three to one: whoever leads, whether those that go are alive, one is dead, or comes
    back much later. Each key that was acknowledged stays.
    """
    await together(grows_and_shrinks(), the_leader_goes(), one_that_goes_is_dead(), one_hears_of_it_late())


@contextlib.asynccontextmanager
async def grown() -> AsyncIterator[tuple[Cluster, Writer]]:
    """One coordinator with a writer, to which two were added while it ran: they wait for a manifest, and get it from
    the first one.
    """
    async with cluster(3) as mesh:
        await mesh.start(0, listing(mesh, 0))
        await mesh.ready(0, READY_SECONDS)
        writer = Writer(mesh)
        task = mesh.scope.start("writer", writer.run())
        try:
            await writer.more()
            for n in (1, 2):
                await mesh.start(n, given=False)
            await put(mesh, 0, 0, 1, 2)
            for n in range(3):
                await mesh.ready(n, READY_SECONDS)
            await becomes(mesh.running[0], addresses(mesh, 0, 1, 2))
            yield mesh, writer
        finally:
            task.cancel()
            await asyncio.wait([task])


async def grows_and_shrinks() -> None:
    """By `set` alone. One that was dropped comes back as any other, with its disk; also after it was booted anew."""
    async with grown() as (mesh, writer):
        await nothing_lost(mesh, writer)
        first = mesh.running[0]
        before = first.coordinator.document()["children"]["consul"]["pid"]  # type: ignore[index]
        await put(mesh, 0, 0)
        await becomes(first, addresses(mesh, 0))
        await out(mesh, first, 1, 2)
        await writer.more()
        assert set(writer.acknowledged) <= await kept(first)
        assert first.coordinator.document()["children"]["consul"]["pid"] == before  # type: ignore[index]
        await mesh.lose(2)
        again = await mesh.start(2, given=False)
        await eventually(lambda: "does not list coordinator-2" in reasons(again), "it says that it was dropped", 20)
        await put(mesh, 0, 0, 1, 2)
        for n in range(3):
            await mesh.ready(n, READY_SECONDS)
        await becomes(first, addresses(mesh, 0, 1, 2))
        await nothing_lost(mesh, writer)


async def leader(mesh: Cluster) -> int:
    """Which coordinator leads."""
    _, told = await mesh.running[0].coordinator.consul.get("/v1/status/leader")
    places = [peer.address for peer in mesh.manifest.coordinators.peers]
    return places.index(str(told).rpartition(":")[0])


async def the_leader_goes() -> None:
    """And another one: the third has the lead handed over, and is alone then."""
    async with writing(3) as (mesh, writer):
        lead = await leader(mesh)
        stays = (lead + 1) % 3
        await put(mesh, stays, stays)
        await becomes(mesh.running[stays], addresses(mesh, stays))
        await out(mesh, mesh.running[stays], *({0, 1, 2} - {stays}))
        await writer.more()
        assert set(writer.acknowledged) <= await kept(mesh.running[stays])


async def one_that_goes_is_dead() -> None:
    """It is out before the living one, whose vote is needed for that; and when it boots, it is nobody's sibling."""
    async with writing(3) as (mesh, writer):
        lead = await leader(mesh)
        stays, dead = (lead + 1) % 3, (lead + 2) % 3
        await mesh.lose(dead)
        await writer.more()
        await put(mesh, stays, stays)
        await becomes(mesh.running[stays], addresses(mesh, stays))
        await out(mesh, mesh.running[stays], 0 if 0 not in (stays, dead) else lead, dead)
        late = await mesh.start(dead)
        await out(mesh, mesh.running[stays], dead)
        assert "ADMISSION_REJECTED" in str(late.coordinator.document()["siblings"])
        await becomes(mesh.running[stays], addresses(mesh, stays))
        await writer.more()
        assert set(writer.acknowledged) <= await kept(mesh.running[stays])


async def one_hears_of_it_late() -> None:
    """The one that stays is away when the others acknowledge writes, and boots with the manifest that drops them: they
    hear of it from this one, which has their records before they go.
    """
    async with writing(3) as (mesh, writer):
        await mesh.lose(0)
        await writer.more()
        fewer = after(opened(mesh.manifest, OWNER), coordinators=listing(mesh, 0).coordinators)
        first = await mesh.start(0, fewer)
        await mesh.ready(0, READY_SECONDS)
        await becomes(first, addresses(mesh, 0))
        await out(mesh, first, 1, 2)
        await writer.more()
        assert set(writer.acknowledged) <= await kept(first)


async def test_a_coordinator_whose_compose_file_is_dropped_leaves() -> None:
    """Though its peer ID is listed. It was away then: its server is out, and it is told when it comes. Booted with the
    file that is right it is taken in again.
    """
    older = COORDINATOR_COMPOSE.replace('"coordinator"', '"older"')
    async with cluster(3) as mesh:
        leads = mesh.manifest.coordinators
        both = replace(leads, compose_hashes=(*leads.compose_hashes, cvm(older, "x").compose_hash))
        mesh.manifest = replace(mesh.manifest, coordinators=both)
        for n in range(3):
            await mesh.start(n, compose=older if n == 2 else COORDINATOR_COMPOSE)
        for n in range(3):
            await mesh.ready(n, READY_SECONDS)
        await becomes(mesh.running[0], addresses(mesh, 0, 1, 2))
        head = mesh.running[0].coordinator.head.signed
        newer = opened(after(head, coordinators=leads), OWNER)
        await mesh.lose(2)
        await setting.put(mesh.running[0], newer.envelope)
        await becomes(mesh.running[0], addresses(mesh, 0, 1))
        await mesh.start(2, compose=older)
        await out(mesh, mesh.running[0], 2, reason="this CVM has")
        await mesh.lose(2)
        await boot(mesh, (2,))
        await becomes(mesh.running[0], addresses(mesh, 0, 1, 2))


async def test_who_brings_a_manifest_that_drops_a_coordinator_is_heard_there() -> None:
    """By one that stays it would be set; a dropped one that refused it would go on by the one before."""
    async with cluster(3) as mesh:
        await boot(mesh, range(3))
        head = mesh.running[2].coordinator.head.signed
        fewer = opened(after(head, coordinators=listing(mesh, 0, 1).coordinators), OWNER)
        status, answer = await proposed(mesh.running[2], fewer.envelope)
        assert (status, answer["code"]) == (422, "MANIFEST_REFUSED")
        await Applicant(url=mesh.running[2].url, manifest=mesh.manifest, offers=fewer.envelope).attest()
        await becomes(mesh.running[0], addresses(mesh, 0, 1))
        await out(mesh, mesh.running[0], 2)
        for n in (0, 1):
            assert mesh.running[n].coordinator.head.signed == fewer
