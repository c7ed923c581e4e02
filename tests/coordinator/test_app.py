"""A whole coordinator: real Consul, simulated TEE."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import aiohttp
import pytest

from coordinator import app
from coordinator.config import parse
from coordinator.identity import Machine
from evidence.bundle import decode
from evidence.outside import Cause, Trusted, UnprovenError, verify
from evidence.statement import evidence_digest
from meshctl.attestation import fetch_whole
from runtime.consul import ConsulClient
from runtime.guest import GuestInfo, TlsKey
from runtime.secret import Secret
from tests.coordinator.setting import proposed
from tests.coordinator.world import (
    COORDINATOR_COMPOSE,
    OWNER,
    OWNER_KEY,
    OWNERS,
    TEE,
    Applicant,
    Running,
    cluster,
    cvm,
    encode,
    make_manifest,
)
from tests.topology.support import after, opened
from topology.handover import Handover


async def test_a_cvm_is_admitted() -> None:
    """An honest CVM gets its slot, its address, a token that works, and is in the registry and on the link."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        api = Applicant(url=lead.url, manifest=mesh.manifest)
        admission = await api.admitted()
        assert admission["peer_id"] == "api-0"
        assert [peer.peer_id for peer in lead.link.peers] == ["api-0"]
        async with ConsulClient(Secret(admission["consul"]["token"]), socket=lead.consul) as consul:
            _, entries = await consul.get("/v1/kv/mesh/peers/", params={"recurse": ""})
            assert [entry["Key"] for entry in entries] == ["mesh/peers/api-0", "mesh/peers/coordinator-0"]
        assert lead.coordinator.document()["admitted"] == ["api-0"]


async def attested(lead: Running, nonce: bytes) -> bytes:
    """What anybody gets."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session,
        session.post(f"{lead.url}/v1/attest", json={"nonce": nonce.hex()}) as answer,
    ):
        assert answer.status == 200, await answer.text()
        return await answer.read()


async def test_anyone_verifies_it_and_sees_who_is_admitted() -> None:
    """Manifest, owner, authorities; and by which evidence each CVM came in, also after a restart, until it leaves."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        head = opened(mesh.manifest, OWNER)
        reader = Trusted(
            manifest=head.manifest, digest=head.digest, owners=OWNERS, development_root=TEE.root_der
        )  # fmt: skip
        api = Applicant(url=lead.url, manifest=mesh.manifest)
        _, challenge = await api.challenge()
        sent = api.evidence(encode(api.binding(challenge["peer_id"])), challenge["nonce"])
        status, admission = await api.post("attest", sent)
        assert status == 200, admission
        del sent["manifest"]
        for nonce in (bytes(32), b"n" * 32):
            bundle = decode(await attested(lead, nonce))
            found = await verify(bundle, reader, nonce=nonce, seen=None, now=time.time())
            assert [(each.peer_id, each.evidence_sha256) for each in found.members] == [
                ("api-0", evidence_digest(**sent))
            ]
            await mesh.lose(0)
            await mesh.start()
            lead = await mesh.ready()
        released = await Applicant(url=lead.url, manifest=mesh.manifest).post("release", {"lease": admission["lease"]})
        assert released[0] == 200
        found = await verify(decode(await attested(lead, nonce)), reader, nonce=nonce, seen=None, now=time.time())
        assert found.members == ()


async def test_a_history_that_grew_is_verified_whole() -> None:
    """After the owner has set another manifest, by who saw the one before; and the older one is nobody's any more."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        first = opened(mesh.manifest, OWNER)
        second = opened(after(first, leaf_hours=9), OWNER)
        before, now = (
            Trusted(manifest=each.manifest, digest=each.digest, owners=OWNERS, development_root=TEE.root_der)
            for each in (first, second)
        )
        nonce = bytes(32)
        seen = (await verify(decode(await attested(lead, nonce)), before, nonce=nonce, seen=None, now=time.time())).seen
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session,
            session.post(f"{lead.url}/v1/manifest", json={"envelope": second.envelope}) as answer,
        ):
            assert answer.status == 200, await answer.text()
        bundle = decode(await attested(lead, nonce))
        found = await verify(bundle, now, nonce=nonce, seen=seen, now=time.time())
        assert [each.digest for each in found.history] == [first.digest, second.digest]
        with pytest.raises(UnprovenError) as caught:
            await verify(bundle, before, nonce=nonce, seen=None, now=time.time())
        assert caught.value.cause is Cause.DIGEST


async def test_a_bundle_has_the_last_manifests_and_the_rest_is_asked_for() -> None:
    """However long the history is, a bundle is not; what `./mesh verify` keeps is whole."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        chain = [opened(mesh.manifest, OWNER)]
        for n in range(3):
            # Two of them are more than a bundle takes.
            api = dataclasses.replace(mesh.manifest.groups["api"], env={"NOTE": str(n) * 150_000})
            chain.append(opened(after(chain[-1], groups={**mesh.manifest.groups, "api": api}), OWNER))
            status, answer = await proposed(lead, chain[-1].envelope)
            assert status == 200, answer
        reader = Trusted(
            manifest=chain[-1].manifest, digest=chain[-1].digest, owners=OWNERS, development_root=TEE.root_der
        )
        nonce = b"n" * 32
        found = decode(await attested(lead, nonce))
        assert found.history == (chain[-1].envelope,)
        with pytest.raises(UnprovenError) as caught:
            await verify(found, reader, nonce=nonce, seen=None, now=time.time())
        assert caught.value.cause is Cause.CHAIN
        kept = decode(await fetch_whole(lead.url, nonce))
        assert [
            each.digest for each in (await verify(kept, reader, nonce=nonce, seen=None, now=time.time())).history
        ] == [each.digest for each in chain]


def test_a_former_coordinator_is_none_of_those_that_have_the_mesh_now(tmp_path: Path) -> None:
    """Where the manifest has one only, and nobody said who it is: that one is of another app."""
    head = opened(make_manifest(), OWNER)
    former, lead = head.manifest.coordinators, cvm(COORDINATOR_COMPOSE, "coordinator-0")
    given = Handover(from_app_id=former.app_id, until=2_000_000_000, urls=("https://former",))
    new = opened(after(head, coordinators=dataclasses.replace(former, app_id="77" * 20, handover=given)), OWNER)
    config = parse({"MESH_CLUSTER": "tests", "MESH_OWNERS": OWNER_KEY, "MESH_DATA_DIR": str(tmp_path)})
    info = GuestInfo(app_id=lead.app_id, instance_id=lead.instance_id, compose_hash=lead.compose_hash)
    machine = Machine(info=info, seed=Secret("00" * 32), tls=TlsKey(key_pem=Secret(""), chain_pem=""))
    assert [app._lists(config, each, machine) for each in (head, new)] == [True, False]
