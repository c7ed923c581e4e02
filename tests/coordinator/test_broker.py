"""Every refusal of the admission API, with its code, against a real coordinator; and what a refusal leaves behind:
nothing.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from admission.protocol import BootKeys
from lab.tee import DevTee, runtime_event
from tests.coordinator.world import (
    API_COMPOSE,
    CLIENT_COMPOSE,
    TEE,
    Applicant,
    Cluster,
    Running,
    cluster,
    cvm,
    encode,
    tls_key,
    wireguard_key,
)
from tests.topology.support import after, opened

P384 = base64.b64encode(
    ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
).decode()


class Lab:
    """One coordinator that is ready, and honest applicants to bend."""

    def __init__(self, mesh: Cluster, lead: Running) -> None:
        self.mesh = mesh
        self.lead = lead

    def applicant(self, seed: str = "api-0", **changes: Any) -> Applicant:
        """An honest CVM of `api`."""
        return Applicant(
            url=self.lead.url, manifest=self.mesh.manifest, **{"who": cvm(API_COMPOSE, seed)} | changes
        )  # fmt: skip

    def nothing_admitted(self) -> None:
        """Fails the test when anybody is."""
        assert self.lead.coordinator.document()["admitted"] == []
        assert self.lead.link.peers == ()


@pytest_asyncio.fixture
async def lab() -> AsyncIterator[Lab]:
    """A coordinator for one test."""
    async with cluster() as mesh:
        await mesh.start()
        yield Lab(mesh, await mesh.ready())


async def refused(lab: Lab, applicant: Applicant, code: str, words: str, **binding: Any) -> None:
    """Expects that `applicant` is refused with `code`, for a reason with `words`."""
    status, answer = await applicant.attest(**binding)
    assert status != 200
    assert (answer["code"], words in answer["reason"]) == (code, True), answer
    lab.nothing_admitted()


async def sent(applicant: Applicant, **changes: Any) -> tuple[int, Any]:
    """An attestation whose body was changed after it was made."""
    _, challenge = await applicant.challenge()
    body = applicant.evidence(encode(applicant.binding(challenge["peer_id"])), challenge["nonce"])
    return await applicant.post("attest", body | {name: change(body[name]) for name, change in changes.items()})


async def test_evidence_that_is_not_genuine(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """A tampered quote, trailing bytes and another root are QUOTE_INVALID, and the log has the claims and the
    reason.
    """
    for change in (
        lambda text: text[:1200] + ("0" if text[1200] != "0" else "1") + text[1201:],
        lambda text: text + "00",
        lambda text: text[:200],
    ):
        status, answer = await sent(lab.applicant(), quote=change)
        assert (status, answer["code"]) == (400, "QUOTE_INVALID"), answer
    other = DevTee(b"another root")
    forged = lab.applicant(who=cvm(API_COMPOSE, "api-0", tee=other), tee=other)
    await refused(lab, forged, "QUOTE_INVALID", "verify")
    record = next(r for r in caplog.records if r.message == "request refused" and r.levelno == logging.WARNING)
    assert record.__dict__["code"] == "QUOTE_INVALID"
    assert f"instance_id={lab.applicant().who.instance_id}" in record.__dict__["claims"]


async def test_what_the_quote_says_must_be_the_binding(lab: Lab) -> None:
    """A binding other than the quoted one is REPORT_DATA_MISMATCH."""
    applicant = lab.applicant()
    changed = encode(applicant.binding("api-1")).hex()
    status, answer = await sent(applicant, binding=lambda _: changed)
    assert (status, answer["code"]) == (403, "REPORT_DATA_MISMATCH"), answer
    lab.nothing_admitted()


async def test_the_event_log_must_be_that_of_the_boot(lab: Lab) -> None:
    """Events after system-ready, or twice, are refused even where the registers agree."""
    for name in ("app-id", "some-application-event"):
        who = cvm(API_COMPOSE, "api-0")
        late = who.with_events(runtime_event(name, bytes(20)))
        status, answer = await lab.applicant(who=late).attest()
        assert (status, answer["code"]) in ((400, "QUOTE_INVALID"), (403, "ADMISSION_REJECTED")), answer
    status, answer = await sent(lab.applicant(), event_log=lambda text: json.dumps(json.loads(text) * 2))
    assert answer["code"] == "QUOTE_INVALID", answer
    lab.nothing_admitted()


async def test_who_is_not_in_the_manifest(lab: Lab) -> None:
    """Wrong compose hash, app, group of the peer, and a development image are ADMISSION_REJECTED."""
    own = lab.applicant().who
    compose = cvm('{"name":"api","docker_compose_file":"evil"}', "api-0", app_id=own.app_id)
    await refused(lab, lab.applicant(who=compose), "ADMISSION_REJECTED", "compose hash")
    app = cvm(API_COMPOSE, "api-0", app_id="11" * 20)
    await refused(lab, lab.applicant(who=app), "ADMISSION_REJECTED", "the app is")
    client = cvm(CLIENT_COMPOSE, "client-0")
    await refused(lab, lab.applicant(who=client), "ADMISSION_REJECTED", "the app is")
    development = cvm(API_COMPOSE, "api-0", development=True)
    await refused(lab, lab.applicant(who=development), "ADMISSION_REJECTED", "development image")


async def test_a_key_provider_that_is_not_the_manifests(lab: Lab) -> None:
    """Keys from another KMS are KMS_POLICY_MISMATCH."""
    manifest = lab.lead.coordinator.broker.rules.manifest
    [reference] = manifest.references
    provider = dataclasses.replace(reference.key_provider, id=reference.key_provider.id[:-2] + "00")
    references = (dataclasses.replace(reference, key_provider=provider),)
    head = lab.lead.coordinator.head
    head.adopt(opened(after(head.signed, references=references)), time.time())
    await refused(lab, lab.applicant(), "KMS_POLICY_MISMATCH", "key provider")


@pytest.mark.parametrize(
    "change",
    [
        {"version": 1},
        {"cluster": "other"},
        {"peer_id": "api-7"},
        {"peer_id": "coordinator-0"},
        {"identities": ("spiffe://tests/node",)},
        {"identities": ("spiffe://tests/node", "spiffe://tests/api", "spiffe://tests/db")},
        {"app_id": "11" * 20},
        {"instance_id": "22" * 20},
        {"compose_hash": "33" * 32},
        {"issued_at": 1_700_000_000},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_each_field_of_the_binding_is_compared(lab: Lab, change: dict[str, Any]) -> None:
    """A binding that was quoted honestly but says something untrue is ADMISSION_REJECTED."""
    await refused(lab, lab.applicant(), "ADMISSION_REJECTED", "", **change)


async def test_a_clock_that_is_far_off_is_refused(lab: Lab) -> None:
    """Certificates are dated back by an hour, so some minutes either way harm nobody."""
    now = int(time.time())
    for offset in (-330, 330):
        await refused(lab, lab.applicant(), "ADMISSION_REJECTED", "300 s either way", issued_at=now + offset)
    for offset in (-270, 270):
        status, answer = await lab.applicant(f"api{offset}").attest(issued_at=now + offset)
        assert status == 200, answer


@pytest.mark.parametrize(
    "boot",
    [
        BootKeys(wireguard="no base64!", tls=tls_key(), leaf=tls_key()),
        *(
            BootKeys(wireguard=base64.b64encode(bytes.fromhex(point)).decode(), tls=tls_key(), leaf=tls_key())
            for point in (
                "00" * 32,
                "01" + "00" * 31,
                "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
                "ec" + "ff" * 30 + "7f",
                "ed" + "ff" * 30 + "7f",
                # Nine, the base point, spelled with the bit that X25519 ignores.
                "09" + "00" * 30 + "80",
            )
        ),
        BootKeys(wireguard=base64.b64encode(b"short").decode(), tls=tls_key(), leaf=tls_key()),
        BootKeys(wireguard=wireguard_key(), tls=base64.b64encode(b"no key").decode(), leaf=tls_key()),
        BootKeys(wireguard=wireguard_key(), tls=tls_key(), leaf="no base64!"),
        BootKeys(wireguard=wireguard_key(), tls=tls_key(), leaf=P384),
        BootKeys(wireguard=wireguard_key(), tls=tls_key(), leaf=tls_key(), public=P384),
    ],
    ids=[
        "base64",
        "zero",
        "one",
        "order 8",
        "minus one",
        "field",
        "spelling",
        "short",
        "tls",
        "leaf",
        "P-384",
        "public",
    ],
)
async def test_boot_keys_must_be_keys(lab: Lab, boot: BootKeys) -> None:
    """Malformed keys are BAD_REQUEST."""
    await refused(lab, lab.applicant(), "BAD_REQUEST", "binding.boot", boot=boot)


async def test_what_clients_outside_see_is_not_the_cvms_own_key(lab: Lab) -> None:
    """One key for both would make whoever gets hold of the public one a CVM of the mesh."""
    key = tls_key()
    boot = BootKeys(wireguard=wireguard_key(), tls=tls_key(), leaf=key, public=key)
    await refused(lab, lab.applicant(), "ADMISSION_REJECTED", "boot.public", boot=boot)


async def test_anothers_wireguard_key_is_refused(lab: Lab) -> None:
    """A key that a coordinator has already would take its packets away."""
    boot = BootKeys(wireguard=lab.lead.link.public_key, tls=tls_key(), leaf=tls_key())
    await refused(lab, lab.applicant(), "ADMISSION_REJECTED", "coordinator-0", boot=boot)


async def test_a_nonce_is_for_one_use(lab: Lab) -> None:
    """The same attestation again, and an invented nonce, are NONCE_INVALID."""
    applicant = lab.applicant()
    _, challenge = await applicant.challenge()
    body = applicant.evidence(encode(applicant.binding(challenge["peer_id"])), challenge["nonce"])
    assert (await applicant.post("attest", body))[0] == 200
    for nonce in (challenge["nonce"], "00" * 32):
        status, answer = await applicant.post("attest", body | {"nonce": nonce})
        assert (status, answer["code"]) == (400, "NONCE_INVALID")


async def test_a_nonce_is_used_up_by_a_failed_attestation(lab: Lab) -> None:
    """Nobody tries twice on one nonce."""
    applicant = lab.applicant()
    _, challenge = await applicant.challenge()
    body = applicant.evidence(encode(applicant.binding(challenge["peer_id"])), challenge["nonce"])
    assert (await applicant.post("attest", body | {"quote": body["quote"] + "00"}))[1]["code"] == "QUOTE_INVALID"
    assert (await applicant.post("attest", body))[1]["code"] == "NONCE_INVALID"
    lab.nothing_admitted()


async def test_a_second_holder_is_refused_while_the_first_lives(lab: Lab) -> None:
    """Another instance, and another boot of the same one, get SLOT_TAKEN for a held slot; the holder itself is
    admitted again.
    """
    first = lab.applicant()
    await first.admitted("api-0")
    assert (await lab.applicant("other").attest("api-0"))[1]["code"] == "SLOT_TAKEN"
    reboot = lab.applicant()
    status, answer = await reboot.attest("api-0")
    assert (status, answer["code"]) == (409, "SLOT_TAKEN")
    status, answer = await reboot.attest("api-1")
    assert (status, answer["code"]) == (409, "SLOT_TAKEN"), "one instance holds one slot"
    assert (await first.admitted("api-0"))["peer_id"] == "api-0"


async def test_slots_run_out(lab: Lab) -> None:
    """When all slots of a group are held, a further instance is told so."""
    for seed in ("one", "two"):
        await lab.applicant(seed).admitted()
    status, answer = await lab.applicant("three").attest()
    assert (status, answer["code"]) == (409, "SLOT_TAKEN")
    assert "raise its replicas" in answer["reason"]


async def test_two_at_once_are_proposed_different_slots(lab: Lab) -> None:
    """A proposal is not repeated to another instance while the first may still attest."""
    answers = await asyncio.gather(*(lab.applicant(seed).challenge() for seed in ("one", "two")))
    assert {answer["peer_id"] for _, answer in answers} == {"api-0", "api-1"}


async def test_release_frees_the_slot_at_once(lab: Lab) -> None:
    """After a clean stop another instance has the slot; releasing again changes nothing; the token is gone."""
    applicant = lab.applicant()
    admission = await applicant.admitted("api-0")
    assert (await applicant.post("release", {"lease": admission["lease"]}))[0] == 200
    lab.nothing_admitted()
    await lab.applicant("other").admitted("api-0")
    assert (await applicant.post("release", {"lease": admission["lease"]}))[0] == 200
    assert lab.lead.coordinator.document()["admitted"] == ["api-0"]
    status, answer = await applicant.post("renew", {"lease": admission["lease"]})
    assert (status, answer["code"]) == (401, "LEASE_INVALID")


async def test_renewals(lab: Lab) -> None:
    """A lease is renewed without a new token while the old one is young; garbage is LEASE_INVALID."""
    applicant = lab.applicant()
    admission = await applicant.admitted()
    status, renewal = await applicant.post("renew", {"lease": admission["lease"]})
    assert status == 200
    assert (renewal["token"], renewal["manifest_epoch"]) == (None, 1)
    status, answer = await applicant.post("renew", {"lease": "no.lease"})
    assert (status, answer["code"]) == (401, "LEASE_INVALID")


@pytest.mark.parametrize("os_version", ["0.5.7", "0.6.0"])
async def test_both_os_versions_are_admitted(lab: Lab, os_version: str) -> None:
    """Evidence of OS 0.5.7 and of 0.6.0 is good."""
    assert TEE is not None
    await lab.applicant(who=cvm(API_COMPOSE, "api-0", os_version=os_version)).admitted()
