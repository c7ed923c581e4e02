"""A coordinator that was given no manifest: it serves nothing but to take one, and goes on from its disk later."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from admission.broker import Broker
from admission.client import RefusedError
from admission.protocol import ChallengeRequest, Code
from admission.trust import by, coordinator_check, nothing
from coordinator.config import Config
from coordinator.identity import Machine
from coordinator.proposal import shown
from coordinator.refusal import RefusalError
from coordinator.waiting import PHASE, Waiting
from runtime.guest import TlsKey
from runtime.secret import Secret
from tests.coordinator.setting import enforce, proposed, put
from tests.coordinator.test_chronicle import kept
from tests.coordinator.test_config import GOOD, parse
from tests.coordinator.test_head import INFO, of_newer_program
from tests.coordinator.world import OWNER, TEE, Applicant, Cluster, Running, cluster, make_manifest
from tests.support import eventually
from tests.topology.support import after, opened
from topology.envelope import Signed, seal
from topology.owners import Owners, key_of

FIRST = opened(make_manifest(), OWNER)


async def waits(mesh: Cluster, n: int = 0) -> Running:
    """Coordinator `n`, booted without a manifest, once it says that it waits for one and listens."""
    running = await mesh.start(n, given=False)

    def says() -> bool:
        return running.coordinator.document()["phase"] == PHASE and running.coordinator.port > 0

    await eventually(says, "it waits for a manifest")
    return running


async def asked(lead: Running, method: str, path: str) -> tuple[int, Any]:
    """Status and code of an answer."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session,
        session.request(method, f"{lead.url}{path}") as response,
    ):
        return response.status, (await response.json())["code"]


async def test_it_takes_the_first_manifest_and_has_it_on_its_disk_from_then_on() -> None:
    """Until then it serves nothing, and says why; what the owners did not sign, or is not about it, is refused."""
    async with cluster() as mesh:
        lead = await waits(mesh)
        document = lead.coordinator.document()
        assert (document["ready"], document["manifest_epoch"], document["manifest_digest"]) == (False, None, None)
        for method, path in (
            ("GET", "/healthz"),
            ("GET", "/v1/manifest"),
            ("POST", "/v1/admission/challenge"),
            ("GET", "/v1/rendezvous/keys"),
        ):
            assert await asked(lead, method, path) == (503, "NO_MANIFEST"), path
        other = dataclasses.replace(mesh.manifest.coordinators, compose_hashes=("22" * 32,))
        for envelope, wanted in (
            ("garbage", 400),
            (seal(mesh.manifest, Ed25519PrivateKey.generate()), 403),
            (seal(dataclasses.replace(mesh.manifest, cluster="other"), OWNER), 422),
            (seal(dataclasses.replace(mesh.manifest, coordinators=other), OWNER), 422),
        ):
            assert (await proposed(lead, envelope))[0] == wanted
        first = opened(mesh.manifest, OWNER)
        assert await proposed(lead, first.envelope) == (200, dataclasses.asdict(shown(first)))
        await mesh.ready()
        assert enforce([lead], first.digest)
        await Applicant(url=lead.url, manifest=mesh.manifest).admitted()
        await kept(mesh, first, 0)
        await mesh.lose(0)
        again = await mesh.start(given=False)
        await mesh.ready()
        assert enforce([again], first.digest)


async def test_three_are_each_given_it_and_found_the_mesh_together() -> None:
    """One that lost its disk is given an older one later, and has the newest from the others."""
    async with cluster(3) as mesh:
        leads = [await waits(mesh, n) for n in range(3)]
        first = opened(mesh.manifest, OWNER)
        for lead in leads:
            assert (await proposed(lead, first.envelope))[0] == 200
        for n in range(3):
            await mesh.ready(n, 40.0)
        second = opened(after(first, leaf_hours=9), OWNER)
        await put(leads[0], second.envelope)
        await mesh.lose(2)
        mesh.lose_disk(2)
        late = await waits(mesh, 2)
        assert (await proposed(late, first.envelope))[0] == 200
        await mesh.ready(2, 40.0)
        assert enforce([late], second.digest)


async def test_one_that_lost_its_disk_has_the_manifest_from_its_siblings() -> None:
    """Nobody has to set it again: they give it what they enforce, which the owners signed."""
    async with cluster(3) as mesh:
        for n in range(3):
            await mesh.start(n)
        for n in range(3):
            await mesh.ready(n, 40.0)
        newest = opened(after(mesh.running[0].coordinator.head.signed, leaf_hours=9), OWNER)
        await put(mesh.running[0], newest.envelope)
        await mesh.lose(2)
        mesh.lose_disk(2)
        await mesh.start(2, given=False)
        late = await mesh.ready(2, 40.0)
        assert enforce([late], newest.digest)


async def test_one_that_lost_its_disk_is_given_the_manifest_by_a_cvm() -> None:
    """That runs and asks for its admission: it verifies the coordinator by what it holds, and sends that first."""
    async with cluster() as mesh:
        lead = await waits(mesh)
        held = opened(after(opened(mesh.manifest, OWNER)), OWNER)
        verify = coordinator_check(by(held), nothing, mesh.pccs_url, TEE.root_der, time.time)
        for newest in ("", held.envelope):
            broker = Broker(lead.url, verify, lambda newest=newest: newest)  # type: ignore[misc]
            with pytest.raises(RefusedError) as caught:
                await broker.challenge(ChallengeRequest(group="api", instance_id="aa" * 20))
            assert caught.value.code is Code.NO_MANIFEST
            await broker.close()
        await mesh.ready()
        assert enforce([lead], held.digest)


async def test_it_stops_when_told() -> None:
    """Without a manifest."""
    async with cluster() as mesh:
        lead = await waits(mesh)
        lead.stop.set()
        await lead.task
        assert lead.coordinator.document()["phase"] == "stopped"
        mesh.running.clear()


def waiting(**changes: str) -> Waiting:
    """One that listens nowhere."""
    config: Config = parse(GOOD | changes)
    assert config.signed is None
    return Waiting(config, Machine(info=INFO, seed=Secret("11"), tls=TlsKey(key_pem=Secret(""), chain_pem="")))


def refused(one: Waiting, signed: Signed | str) -> RefusalError:
    """How it refuses."""
    with pytest.raises(RefusalError) as caught:
        one.take(signed if isinstance(signed, str) else signed.envelope)
    return caught.value


def test_the_first_of_two_counts() -> None:
    """The other one is told it; the same again is no other."""
    one = waiting()
    assert one.take(FIRST.envelope) == shown(FIRST)
    assert one.take(FIRST.envelope) == shown(FIRST)
    refusal = refused(one, opened(make_manifest(epoch=1, network="127.91.0"), OWNER))
    assert (refusal.code, refusal.more["head"]) == (Code.MANIFEST_STALE, dataclasses.asdict(shown(FIRST)))


def test_a_manifest_that_contradicts_the_environment_is_refused() -> None:
    """With the variable: it could not go on with both."""
    assert "MESH_PEER_ID" in refused(waiting(MESH_PEER_ID="coordinator-7"), FIRST).reason
    three = opened(make_manifest(coordinators=3), OWNER)
    assert "MESH_PEER_ID" in refused(waiting(), three).reason, "it cannot tell which of them it is"


def test_owners_that_were_replaced_lead_to_the_first() -> None:
    """By the manifests in which they were; without them it is not signed by those that count here."""
    new = Ed25519PrivateKey.generate()
    handover = opened(after(FIRST, owners=Owners(keys=(key_of(new),))), OWNER)
    last = opened(after(opened(after(handover), new)), new)
    assert refused(waiting(), last).code is Code.MANIFEST_NOT_SIGNED
    assert waiting().take(last.envelope, (FIRST.envelope, handover.envelope)) == shown(last)
    with pytest.raises(RefusalError) as caught:
        waiting().take(last.envelope, (FIRST.envelope,) * 33)
    assert caught.value.code is Code.BAD_REQUEST


async def test_one_with_former_owners_in_its_compose_file_begins_from_a_sibling() -> None:
    """Which has the history that leads from them to those that count by now."""
    new = Ed25519PrivateKey.generate()
    async with cluster(3) as mesh:
        for n in range(3):
            await mesh.start(n)
        for n in range(3):
            await mesh.ready(n, 40.0)
        head = mesh.running[0].coordinator.head.signed
        handover = opened(after(head, owners=Owners(keys=(key_of(new),))), OWNER, new)
        await put(mesh.running[0], handover.envelope)
        newest = opened(after(handover, leaf_hours=9), new)
        await put(mesh.running[0], newest.envelope)
        await mesh.lose(2)
        mesh.lose_disk(2)
        await mesh.start(2, given=False)
        late = await mesh.ready(2, 40.0)
        assert enforce([late], newest.digest)


def test_what_needs_a_newer_program_is_no_beginning() -> None:
    """It is said that it does."""
    refusal = refused(waiting(), of_newer_program(FIRST.manifest, version=3))
    assert refusal.code is Code.MANIFEST_REFUSED
    assert "needs a newer program" in refusal.reason
