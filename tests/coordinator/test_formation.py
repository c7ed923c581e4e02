"""Restarts of real coordinators with real Consul servers: what was acknowledged stays while a majority of disks lives.

A writer puts keys, one after the other, through whichever coordinator takes them, and notes those that were
acknowledged. Coordinators are lost by SIGKILL, in the middle of that. Most of the time goes by in elections and in the
coordinators' own waits, so cases of one kind run side by side, each in a cluster of its own.

Long because it is a list: each way to lose coordinators and disks is a case of its own, under one writer.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from admission.protocol import MeshPeer
from coordinator.disk import PEERS, Disk
from coordinator.formation import Formation
from coordinator.marker import Owner
from coordinator.proposal import shown
from coordinator.registry import Registry
from runtime.consul import ConsulClient, ConsulError
from runtime.tasks import TaskScope
from tests.coordinator.world import OWNER, Applicant, Cluster, Running, cluster, make_manifest, wireguard_key
from tests.support import eventually, need_root_or_userns
from tests.topology.support import after, opened
from topology.allowed import image_id
from topology.envelope import Signed

pytestmark = pytest.mark.timeout(240)

READY_SECONDS = 60.0


class Writer:
    """Writes keys until it is told to stop; `acknowledged` are those that Consul took."""

    def __init__(self, mesh: Cluster) -> None:
        self._mesh = mesh
        self._clients: dict[int, ConsulClient] = {}
        self._next = 0
        self.acknowledged: list[str] = []

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._once()
            await asyncio.sleep(0.005)

    async def _once(self) -> None:
        for running in list(self._mesh.running.values()):
            key = f"written/{self._next}"
            self._next += 1
            with contextlib.suppress(ConsulError, AssertionError):
                if await running.coordinator.consul.put(f"/v1/kv/{key}", key.encode()) is True:
                    self.acknowledged.append(key)
                    return

    async def more(self, count: int = 20) -> None:
        """Waits until `count` further keys were acknowledged."""
        goal = len(self.acknowledged) + count
        await eventually(lambda: len(self.acknowledged) >= goal, f"{count} more keys are acknowledged", READY_SECONDS)


@contextlib.asynccontextmanager
async def writing(coordinators: int) -> AsyncIterator[tuple[Cluster, Writer]]:
    """A cluster of `coordinators` that is ready, with a writer at work."""
    async with cluster(coordinators) as mesh:
        await boot(mesh, range(coordinators))
        writer = Writer(mesh)
        task = mesh.scope.start("writer", writer.run())
        try:
            await writer.more()
            yield mesh, writer
        finally:
            task.cancel()
            await asyncio.wait([task])


async def boot(mesh: Cluster, numbers: range | tuple[int, ...]) -> None:
    """Boots these coordinators and waits until they are ready."""
    for n in numbers:
        await mesh.start(n)
    for n in numbers:
        await mesh.ready(n, READY_SECONDS)


async def kept(running: Running) -> set[str]:
    """The written keys that a coordinator has now, read from the leader."""
    _, keys = await running.coordinator.consul.get("/v1/kv/written/", params={"keys": "", "consistent": ""})
    return set(keys or ())


async def nothing_lost(mesh: Cluster, writer: Writer) -> None:
    """All coordinators are in one cluster, and each acknowledged key is there."""
    await writer.more()
    acknowledged = set(writer.acknowledged)
    for running in mesh.running.values():
        lost = acknowledged - await kept(running)
        assert not lost, f"{len(lost)} of {len(acknowledged)} acknowledged keys are lost"
    _, peers = await mesh.running[0].coordinator.consul.get("/v1/status/peers")
    assert len(peers) == len(mesh.running)


async def together(*cases: Coroutine[Any, Any, None]) -> None:
    """Runs `cases` side by side; fails with the first that fails."""
    async with TaskScope() as scope:
        for n, case in enumerate(cases):
            scope.start(f"case {n}: {case.__qualname__}", case)


def reasons(running: Running) -> str:
    """What its status says."""
    found = running.coordinator.document()["reasons"]
    assert isinstance(found, list)
    return "; ".join(found)


def began_empty(running: Running) -> bool:
    """Whether its status says so."""
    found = running.coordinator.document()["disk"]
    assert isinstance(found, dict)
    return bool(found["began_empty"])


def test_who_was_there_before_is_judged_by_the_manifest_in_force(tmp_path: Path) -> None:
    """By all that it allows, and again when it changes: while nobody leads the records nothing else takes them out."""
    manifest = make_manifest()
    group, image = manifest.groups["api"], manifest.references[0].os_images[0]
    slot = group.peers[0]
    measured = image_id(image.mrtd, image.rtmr0, image.rtmr1, image.rtmr2)
    held = MeshPeer(
        peer_id=slot.peer_id,
        public_key=wireguard_key(),
        address=slot.address,
        kind="workload",
        compose_hash=group.compose_hashes[0],
        image=measured,
        app_id=group.app_id,
    )
    disk = Disk(tmp_path / "d", Owner(cluster="tests", app_id="ab" * 20, peer_id="coordinator-0"))
    disk.claim()
    other = replace(group, compose_hashes=("ff" * 32,))
    enforced = [manifest]
    registry = Registry(lambda: None)
    formation = Formation(
        disk,
        None,  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        own=replace(held, peer_id="coordinator-0", kind="coordinator"),
        manifest=lambda: enforced[-1],
        dismissed=lambda: None,
        registry=registry,
    )
    for kept, found in ((held, (held,)), (replace(held, compose_hash="ff" * 32), ()), (replace(held, image="old"), ())):
        (tmp_path / "d" / PEERS).write_text(json.dumps([dataclasses.asdict(kept)]))
        formation.recall()
        assert registry.peers() == found
    (tmp_path / "d" / PEERS).write_text(json.dumps([dataclasses.asdict(held)]))
    formation.recall()
    enforced.append(replace(manifest, groups={**manifest.groups, "api": other}))
    formation.remember()
    assert registry.peers() == ()


async def test_restarts_lose_nothing() -> None:
    """A cluster of one and one of three lose all servers at once; three are restarted one each 1 s, and each 8 s."""
    await together(all_lost_at_once(1), all_lost_at_once(3), restarted(1.0), restarted(8.0))


async def all_lost_at_once(coordinators: int) -> None:
    """SIGKILL of all servers in the middle of writes: each key that was acknowledged is there, each slot is held. Of
    three, one may lose its disk with that: the others fill it, and the cluster has no server too many.
    """
    async with writing(coordinators) as (mesh, writer):
        first = Applicant(url=mesh.running[0].url, manifest=mesh.manifest)
        admission = await mesh.retry(first, 20)
        for n in range(coordinators):
            await mesh.lose(n)
        await boot(mesh, range(coordinators))
        again = Applicant(url=mesh.running[0].url, manifest=mesh.manifest)
        status, answer = await again.post("renew", {"lease": admission["lease"]})
        assert status == 200, answer
        await nothing_lost(mesh, writer)
        if coordinators == 1:
            return
        for n in range(coordinators):
            await mesh.lose(n)
        mesh.lose_disk(0)
        await boot(mesh, range(coordinators))
        await nothing_lost(mesh, writer)
        assert [began_empty(mesh.running[n]) for n in range(3)] == [True, False, False]


async def test_a_server_with_records_waits_for_those_that_it_knew() -> None:
    """After a boot the server starts when a tunnel to somebody admitted is up again: one that leads before would take
    them out of the catalog. It does not wait for ever.
    """
    async with cluster() as mesh:
        await boot(mesh, range(1))
        await mesh.retry(Applicant(url=mesh.running[0].url, manifest=mesh.manifest), 20)
        # The coordinator writes the file first without any workload's peer.
        kept = mesh.disk(0) / "peers.json"
        await eventually(lambda: kept.exists() and "api-0" in kept.read_text(), "the admitted peer is kept")
        await mesh.lose(0)
        running = await mesh.start(0, away=True)
        await eventually(lambda: "waits for the tunnels" in reasons(running), "it says for what it waits")
        assert {peer.peer_id for peer in running.link.peers} == {"api-0"}
        assert running.coordinator.document()["children"]["consul"]["pid"] is None  # type: ignore[index]
        running.link.away = False
        await mesh.ready(0, READY_SECONDS)
        await mesh.lose(0)
        await mesh.start(0, away=True)
        await mesh.ready(0, READY_SECONDS)


async def restarted(spacing: float) -> None:
    """Three coordinators, one each `spacing` seconds whatever state the others are in: no acknowledged key is lost."""
    async with writing(3) as (mesh, writer):
        for n in range(3):
            await mesh.lose(n)
            await mesh.start(n)
            # The spacing is what is tested: nobody waits for what the others have reached.
            await asyncio.sleep(spacing)
        for n in range(3):
            await mesh.ready(n, READY_SECONDS)
        await nothing_lost(mesh, writer)


async def test_lost_disks_neither_vote_nor_found_a_second_cluster() -> None:
    """One, two or all disks are lost; each case says what must hold."""
    await together(two_empty_disks_found_nothing(), a_lost_disk_gives_no_vote(), all_disks_lost())


async def two_empty_disks_found_nothing() -> None:
    """The only disk with records is away: the others wait and say for whom. It comes back, and waits for the owners'
    word: all that it has is theirs to give up.
    """
    async with writing(3) as (mesh, _):
        for n in range(3):
            await mesh.lose(n)
        mesh.lose_disk(0)
        mesh.lose_disk(1)
        for n in (0, 1):
            await mesh.start(n)
        for n in (0, 1):
            await eventually(
                lambda n=n: "coordinator-2 (not reached)" in reasons(mesh.running[n]),  # type: ignore[misc]
                "it says for whom it waits",
            )
            assert mesh.running[n].coordinator.document()["children"]["consul"]["pid"] is None  # type: ignore[index]
        await mesh.start(2)
        said = "coordinator-0, coordinator-1 say that the disk is empty"
        await eventually(lambda: said in reasons(mesh.running[2]), "so does it", READY_SECONDS)
        for n in (0, 1):
            said = "coordinator-2 (has records, and no leader)"
            await eventually(lambda n=n, said=said: said in reasons(mesh.running[n]), "they wait on", READY_SECONDS)  # type: ignore[misc]
            assert mesh.running[n].coordinator.document()["children"]["consul"]["pid"] is None  # type: ignore[index]


async def a_lost_disk_gives_no_vote() -> None:
    """Keys are acknowledged while one server is away. Then one that has them loses its disk, the other is away, and
    the one that lags comes back: without those keys it must not lead, whoever answers at the lost one's address.
    """
    async with writing(3) as (mesh, writer):
        await mesh.lose(2)
        await writer.more(50)
        for n in (0, 1):
            await mesh.lose(n)
        mesh.lose_disk(0)
        for n in (0, 2):
            await mesh.start(n)
        await eventually(lambda: "not reached" in reasons(mesh.running[0]), "the empty one waits", READY_SECONDS)
        await eventually(lambda: "no leader" in reasons(mesh.running[2]), "the lagging one waits", READY_SECONDS)
        assert not mesh.running[2].coordinator.document()["ready"]
        await mesh.start(1)
        for n in range(3):
            await mesh.ready(n, READY_SECONDS)
        await nothing_lost(mesh, writer)


async def all_disks_lost() -> None:
    """Nothing is left to be kept: a new cluster, and each status says that it began empty."""
    async with writing(3) as (mesh, writer):
        for n in range(3):
            await mesh.lose(n)
            mesh.lose_disk(n)
        await boot(mesh, range(3))
        await writer.more()
        assert all(began_empty(running) for running in mesh.running.values())


async def test_records_go_on_alone_by_the_owners_word_only() -> None:
    """Whoever says that the others are lost: their disks, a manifest that was there at the boot, an operator."""
    await together(two_disks_are_lost(), dropped_voters_are_away())


def listing(mesh: Cluster, head: Signed, *numbers: int, **changes: Any) -> Signed:
    """The manifest after `head` with these coordinators only."""
    peers = tuple(mesh.manifest.coordinators.peers[n] for n in numbers)
    return opened(after(head, coordinators=replace(mesh.manifest.coordinators, peers=peers), **changes), OWNER)


async def lose_around(mesh: Cluster, writer: Writer) -> None:
    """Loses all three; coordinator-0 has everything that was acknowledged."""
    await mesh.lose(1)
    # Each of these needed it, and whatever came before.
    await writer.more()
    await mesh.lose(2)
    await mesh.lose(0)


async def two_disks_are_lost() -> None:
    """Two of three, as when a host boots two others of the app with empty disks: the third waits. The owners drop
    them, and list them again: nothing that the third had is lost, and there are three again.
    """
    async with writing(3) as (mesh, writer):
        await lose_around(mesh, writer)
        mesh.lose_disk(1)
        mesh.lose_disk(2)
        first, *_ = [await mesh.start(n) for n in range(3)]
        await eventually(lambda: "coordinator-1, coordinator-2 say" in reasons(first), "it says why", READY_SECONDS)
        for n in (1, 2):
            await eventually(lambda n=n: "(has records, and no leader)" in reasons(mesh.running[n]), "it waits", 20)  # type: ignore[misc]
        status, answer = await manifest(first, "GET")
        head = opened(mesh.manifest, OWNER)
        assert (status, answer["code"], answer["head"]) == (503, "NOT_READY", dataclasses.asdict(shown(head)))
        for refused, wanted in (
            (listing(mesh, head, 0, 1, 2, leaf_hours=9), (503, "NOT_READY")),
            (listing(mesh, listing(mesh, head, 0), 0), (409, "MANIFEST_STALE")),
            (listing(mesh, head, 1, 2), (422, "MANIFEST_REFUSED")),
        ):
            status, answer = await manifest(first, "POST", refused.envelope)
            assert (status, answer["code"]) == wanted
        assert first.coordinator.head.signed == head
        fewer = listing(mesh, head, 0)
        assert (await manifest(first, "POST", fewer.envelope))[0] == 200
        await mesh.ready(0, READY_SECONDS)
        await writer.more()
        assert set(writer.acknowledged) <= await kept(first)
        again = listing(mesh, fewer, 0, 1, 2)
        assert (await manifest(first, "POST", again.envelope))[0] == 200
        for n in range(3):
            await mesh.ready(n, READY_SECONDS)
        await nothing_lost(mesh, writer)
        assert {running.coordinator.head.signed.digest for running in mesh.running.values()} == {again.digest}


async def manifest(running: Running, method: str, envelope: str = "") -> tuple[int, dict[str, Any]]:
    """A coordinator's answer about its manifest."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session,
        session.request(
            method, f"{running.url}/v1/manifest", json={"envelope": envelope} if envelope else None
        ) as response,
    ):
        return response.status, await response.json()


async def dropped_voters_are_away() -> None:
    """The manifest goes from three coordinators to one while that one is away and the others acknowledge writes. It
    boots with it and waits for them by name: they may come back. When they are gone for good, it goes on alone once
    the owners set that manifest again.
    """
    async with writing(3) as (mesh, writer):
        peers = mesh.manifest.coordinators.peers
        alone = listing(mesh, opened(mesh.manifest, OWNER), 0)
        await lose_around(mesh, writer)
        running = await mesh.start(0, alone.manifest)
        for peer in peers[1:]:
            await eventually(lambda peer=peer: peer.address in reasons(running), "it names them", READY_SECONDS)  # type: ignore[misc]
        assert (await manifest(running, "POST", alone.envelope))[0] == 200
        await mesh.ready(0, READY_SECONDS)
        await writer.more()
        assert set(writer.acknowledged) <= await kept(running)


def spoil(folder: Path, how: str) -> None:
    """Damages the disk `folder`."""
    log = folder / "consul" / "raft" / "wal" / "wal-meta.db"
    if how == "truncated log":
        log.write_bytes(b"")
    elif how == "garbage in the log":
        log.write_bytes(b"\x5a" * log.stat().st_size)
    else:
        shutil.copy(folder / "mesh.json", folder / "copy.json")
        (folder / "mesh.json").unlink()


async def test_a_damaged_disk_is_named_and_the_others_go_on() -> None:
    """Status says what is wrong with which folder; the coordinator's process stays, and the other two take writes.
    Emptied, as the reason says, the disk gets the records of its siblings.
    """
    damages = {
        "truncated log": "its Raft data is gone or damaged",
        "garbage in the log": "Consul does not stay up (last end: exit code",
        "no marker": "but no mesh.json",
    }
    async with writing(3) as (mesh, writer):
        for how, said in damages.items():
            await mesh.lose(2)
            spoil(mesh.disk(2), how)
            running = await mesh.start(2)
            await eventually(
                lambda running=running, said=said: said in reasons(running),  # type: ignore[misc]
                f"after {how}, status says {said!r}",
                READY_SECONDS,
            )
            assert str(mesh.disk(2)) in reasons(running)
            assert not running.task.done()
            assert running.coordinator.document()["ready"] is False
            await writer.more()
            await mesh.lose(2)
            mesh.lose_disk(2)
            await boot(mesh, (2,))
        await nothing_lost(mesh, writer)


@contextlib.contextmanager
def mounted(*arguments: str, target: Path, read_only: bool = False) -> Iterator[None]:
    """A mount for the block."""
    need_root_or_userns()
    target.mkdir(exist_ok=True)
    subprocess.run(["mount", *arguments, str(target)], check=True)
    if read_only:
        # A bind mount takes its flags in a second step only (mount(8)).
        subprocess.run(["mount", "-o", "remount,bind,ro", str(target)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(target)], check=True)


async def test_a_read_only_disk_is_named_and_taken_once_it_can_be_written() -> None:
    """The coordinator says so and stays; it goes on by itself when the disk is mended; the others never stopped."""
    async with writing(3) as (mesh, writer):
        await mesh.lose(2)
        disk = mesh.disk(2)
        with mounted("--bind", str(disk), target=disk, read_only=True):
            running = await mesh.start(2)
            await eventually(lambda: "is mounted read-only" in reasons(running), "status says it", READY_SECONDS)
            await writer.more()
        await mesh.ready(2, READY_SECONDS)
        await nothing_lost(mesh, writer)


async def test_a_full_disk_is_named_and_the_others_go_on() -> None:
    """While it fills up, status says so, and writes go on."""
    async with cluster(3) as mesh:
        with mounted("-t", "tmpfs", "-o", "size=256m", "none", target=mesh.disk(2)):
            await boot(mesh, range(3))
            assert reasons(mesh.running[2]) == ""
            with contextlib.suppress(OSError):
                (mesh.disk(2) / "ballast").write_bytes(bytes(256 << 20))
            await eventually(lambda: "is full: 0 MiB free" in reasons(mesh.running[2]), "status says it", 20)
            for n in (0, 1):
                assert reasons(mesh.running[n]) == ""
                assert await mesh.running[n].coordinator.consul.put("/v1/kv/written", b"x") is True
            await mesh.lose(2)
