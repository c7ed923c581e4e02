"""Certificates of the mesh at a real coordinator: with an admission and with a renewal, for attested keys."""

from __future__ import annotations

import base64
import dataclasses
import json
import time
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from coordinator.authority import MeshCa, mesh_ca
from coordinator.keys import ClusterKeys, derive
from coordinator.ledger import BEGAN_KEY, OVER
from runtime.guest import GuestAgent
from tests.coordinator.world import (
    API_COMPOSE,
    COORDINATOR_COMPOSE,
    OWNER,
    Applicant,
    Cluster,
    Running,
    cluster,
    cvm,
    make_boot,
)
from tests.support import eventually
from tests.topology.support import after, opened
from topology.envelope import Signed
from topology.public import Public


async def keys_of(lead: Running) -> ClusterKeys:
    """What the coordinators derive."""
    async with GuestAgent(lead.folder / "dstack.sock") as guest:
        return derive(await guest.key("cvm-mesh/coordinator/v1", "tests"), "tests")


async def authority(lead: Running, signed: Signed) -> MeshCa:
    """The CA of that manifest."""
    return mesh_ca(await keys_of(lead), signed.manifest.epoch, signed.digest)


def applicant(lead: Running, mesh: Cluster, seed: str = "api-0", **changes: Any) -> Applicant:
    """An honest CVM of `api`."""
    return Applicant(url=lead.url, manifest=mesh.manifest, who=cvm(API_COMPOSE, seed), **changes)


def leaf_of(answer: Any) -> x509.Certificate:
    """The first of the chain."""
    return x509.load_pem_x509_certificates(answer["leaf_pem"].encode())[0]


def is_for(answer: Any, asker: Applicant) -> bool:
    """Whether the leaf is for the key that was attested."""
    found = leaf_of(answer).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(found).decode() == asker.boot.leaf


async def renewed(asker: Applicant, lease: str, **held: Any) -> Any:
    """The answer to a renewal."""
    status, answer = await asker.post("renew", {"lease": lease, **held})
    assert status == 200, answer
    return answer


async def records_are_known(lead: Running) -> None:
    """As a lease after they began: whoever runs is in them."""
    await lead.coordinator.consul.put(f"/v1/kv/{BEGAN_KEY}", json.dumps(OVER).encode())
    await eventually(lambda: lead.coordinator.ledger.complete, "the records are not new")


async def test_an_admission_has_a_certificate_for_the_attested_key() -> None:
    """With the slot's names, of the CA of the manifest that is enforced, which is all that is to be trusted."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        asker = applicant(lead, mesh)
        answer = await asker.admitted()
        signed = lead.coordinator.head.signed
        ca = await authority(lead, signed)
        assert (answer["manifest_digest"], answer["authorities_pem"]) == (signed.digest, ca.pem)
        leaf = leaf_of(answer)
        leaf.verify_directly_issued_by(ca.certificate)
        assert is_for(answer, asker)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert list(names) == [x509.UniformResourceIdentifier("spiffe://tests/api"), x509.DNSName("api-0.peer.mesh")]
        left = leaf.not_valid_after_utc.timestamp() - time.time()
        assert abs(left - signed.manifest.leaf_hours * 3600) < 60


async def test_a_renewal_gives_a_certificate_when_it_is_time_and_for_no_other_key() -> None:
    """Half a life before its end. A key has to be attested: then it is that one's turn."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        asker = applicant(lead, mesh)
        first = await asker.admitted()
        await records_are_known(lead)
        held = {"leaf_digest": first["manifest_digest"], "leaf_expires_at": int(time.time() + 5 * 3600)}
        answer = await renewed(asker, first["lease"], **held)
        assert answer["leaf_pem"] is None
        assert (answer["manifest_digest"], answer["authorities_pem"], answer["all_trust"]) == (
            first["manifest_digest"],
            first["authorities_pem"],
            True,
        )
        for due in ({**held, "leaf_expires_at": int(time.time() + 3 * 3600)}, {**held, "leaf_digest": "00" * 32}, {}):
            assert is_for(await renewed(asker, first["lease"], **due), asker)
        status, refused = await asker.post("renew", {"lease": first["lease"], "leaf": make_boot().leaf})
        assert (status, refused["code"]) == (400, "BAD_REQUEST")
        # A sidecar that was started anew in the same boot.
        again = dataclasses.replace(asker, boot=dataclasses.replace(asker.boot, leaf=make_boot().leaf))
        second = await again.admitted()
        assert is_for(second, again)
        assert is_for(await renewed(again, second["lease"]), again)


async def test_public_listeners_have_the_manifests_names_for_the_key_that_was_attested_for_them() -> None:
    """With the admission, and with each leaf that a renewal brings. Who attested no such key
    has none.
    """
    async with cluster() as mesh:
        api = mesh.manifest.groups["api"]
        web = dataclasses.replace(
            api.backends["api"], ingress="tls", public=Public(port=443, sans=("web.example", "203.0.113.34"))
        )
        group = dataclasses.replace(api, backends={"api": web})
        mesh.manifest = dataclasses.replace(mesh.manifest, groups={**mesh.manifest.groups, "api": group})
        await mesh.start()
        lead = await mesh.ready()
        boot = dataclasses.replace(make_boot(), public=make_boot().leaf)
        asker = applicant(lead, mesh, boot=boot)
        first = await asker.admitted()
        for answer in (first, await renewed(asker, first["lease"])):
            [(name, pem)] = answer["public_pems"].items()
            leaf = x509.load_pem_x509_certificates(pem.encode())[0]
            spki = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            assert (name, base64.b64encode(spki).decode()) == ("api", boot.public)
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert [str(each.value) for each in names] == ["web.example", "203.0.113.34"]
        held = {"leaf_digest": first["manifest_digest"], "leaf_expires_at": int(time.time() + 7 * 3600)}
        assert (await renewed(asker, first["lease"], **held))["public_pems"] == {}
        other = applicant(lead, mesh, "api-1")
        assert (await renewed(other, (await other.admitted())["lease"]))["public_pems"] == {}


async def test_a_workload_without_a_leaf_key_is_refused() -> None:
    """It could serve nobody."""
    async with cluster() as mesh:
        await mesh.start()
        status, refused = await applicant(await mesh.ready(), mesh).attest(boot=make_boot(leaf=False))
        assert (status, refused["code"]) == (403, "ADMISSION_REJECTED"), refused


async def test_a_coordinator_has_no_leaf_key_and_gets_no_certificate() -> None:
    """It has no Envoy; one that brings a key is refused."""
    async with cluster(3) as mesh:
        lead = await mesh.start()
        await eventually(lambda: lead.coordinator.port != 0, "it listens")
        who = cvm(COORDINATOR_COMPOSE, "coordinator-1")
        sibling = Applicant(url=lead.url, manifest=mesh.manifest, group="coordinator", who=who)
        status, refused = await sibling.attest("coordinator-1", boot=make_boot())
        assert (status, refused["code"]) == (403, "ADMISSION_REJECTED"), refused
        answer = await sibling.admitted("coordinator-1")
        assert (answer["leaf_pem"], answer["authorities_pem"], answer["manifest_digest"]) == ("", "", "")


async def test_a_manifest_that_is_adopted_changes_the_authority_and_keeps_the_one_before_for_the_window() -> None:
    """All trust the new one once each holder that lives has said so; who comes later is told of both."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        one, two = applicant(lead, mesh), applicant(lead, mesh, "api-1")
        leases = [(await asker.admitted())["lease"] for asker in (one, two)]
        before = lead.coordinator.head.signed
        assert (await renewed(one, leases[0]))["all_trust"] is False, "others may run that are not in the records yet"
        await records_are_known(lead)
        newer = opened(after(before), OWNER)
        lead.coordinator.head.take(newer.envelope, time.time())
        pems = [(await authority(lead, signed)).pem for signed in (newer, before)]
        answer = await renewed(one, leases[0], leaf_digest=before.digest, leaf_expires_at=int(time.time() + 8 * 3600))
        leaf_of(answer).verify_directly_issued_by((await authority(lead, newer)).certificate)
        assert answer["authorities_pem"] == "".join(pems)
        assert answer["all_trust"] is False
        assert (await renewed(one, leases[0], trusts=newer.digest))["all_trust"] is False
        assert (await renewed(two, leases[1], trusts=before.digest))["all_trust"] is False
        await renewed(two, leases[1], trusts=newer.digest)
        # An answer of Consul's that was under way may show the record of before for a moment.
        ledger = lead.coordinator.ledger
        await eventually(lambda: {it.trusts for it in ledger.slots.values()} == {newer.digest}, "both trust it")
        assert (await renewed(two, leases[1], trusts=newer.digest))["all_trust"] is True
        assert (await renewed(one, leases[0]))["all_trust"] is True
        late = applicant(lead, mesh, "api-1", boot=two.boot)
        assert (await late.admitted())["authorities_pem"] == "".join(pems)
        head = lead.coordinator.head
        head.settle(time.time() - newer.manifest.overlap_seconds)
        assert (await renewed(one, leases[0]))["authorities_pem"] == pems[0]


async def test_a_coordinator_that_restarts_does_not_open_the_window_again() -> None:
    """The records say when the manifest was adopted."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        newer = after(lead.coordinator.head.signed)
        await mesh.lose(0)
        began = int(time.time())
        await mesh.start(0, newer)
        lead = await mesh.ready()
        adopted_at = lead.coordinator.head.adopted_at
        assert began <= adopted_at <= time.time()
        await mesh.lose(0)
        # The clock has another second now.
        while int(time.time()) <= adopted_at:
            pass
        await mesh.start(0, newer)
        assert (await mesh.ready()).coordinator.head.adopted_at == adopted_at
