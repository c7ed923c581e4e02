"""Coordinators that know nobody: CVMs that run claim their slots before newcomers get one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from coordinator import broker
from lab.tee import DevTee
from tests.coordinator.world import API_COMPOSE, Applicant, Cluster, Running, cluster, cvm
from tests.support import eventually


@dataclass(kw_only=True)
class NewApplicant(Applicant):
    """A CVM that holds no slot and says so, as a sidecar does that takes what it is proposed."""

    def evidence(self, raw: bytes, nonce: str) -> dict[str, Any]:
        return super().evidence(raw, nonce) | {"proposed": True}


def running(lead: Running, seed: str = "api-0") -> Applicant:
    """A CVM of `api` that claims a slot."""
    return Applicant(url=lead.url, manifest=lead.coordinator.head.manifest, who=cvm(API_COMPOSE, seed))


def newcomer(lead: Running, seed: str = "api-1", **changes: Any) -> NewApplicant:
    """A CVM of `api` that has just booted."""
    return NewApplicant(url=lead.url, manifest=lead.coordinator.head.manifest, who=cvm(API_COMPOSE, seed), **changes)


async def started(mesh: Cluster) -> Running:
    """Coordinator 0, ready."""
    await mesh.start()
    return await mesh.ready()


async def waits(lead: Running, applicant: Applicant) -> None:
    """Returns when the coordinator keeps `applicant` waiting."""
    ledger = lead.coordinator.ledger
    await eventually(lambda: applicant.who.instance_id in ledger.newcomers, f"{applicant.who.instance_id} waits")


async def test_a_running_cvm_keeps_its_slot_when_a_booted_one_asks_first() -> None:
    """After a start without records the newcomer waits, whatever slot it is proposed, until the holder has come."""
    async with cluster() as mesh:
        lead = await started(mesh)
        new = newcomer(lead)
        asked = mesh.scope.start("newcomer", new.attest())
        await waits(lead, new)
        assert lead.coordinator.ledger.slots == {}
        admission = await running(lead).admitted("api-0")
        assert admission["peer_id"] == "api-0"
        # It was proposed api-0, which the holder then claimed: it asks once more, and nobody keeps it.
        status, answer = await asked
        if status != 200:
            assert answer["code"] == "SLOT_TAKEN", answer
            status, answer = await new.attest()
        assert (status, answer["peer_id"]) == (200, "api-1")


async def test_a_newcomer_is_told_what_it_waits_for() -> None:
    """Its attestation is answered NOT_READY after a while, with the reason."""
    async with cluster() as mesh:
        lead = await started(mesh)
        status, answer = await newcomer(lead).attest()
        assert (status, answer["code"]) == (503, "NOT_READY")
        assert "CVMs of api that hold a slot come first" in answer["reason"]
        assert lead.coordinator.ledger.slots == {}


async def test_a_fresh_mesh_does_not_wait() -> None:
    """Once as many newcomers ask as there are slots, all get one, in the attestation that they have under way."""
    async with cluster() as mesh:
        lead = await started(mesh)
        first = newcomer(lead, "api-0")
        asked = mesh.scope.start("newcomer", first.attest())
        await waits(lead, first)
        answers = [await newcomer(lead, "api-1").attest(), await asked]
        assert sorted((status, answer.get("peer_id")) for status, answer in answers) == [(200, "api-0"), (200, "api-1")]
        await eventually(lambda: lead.coordinator.document()["admitted"] == ["api-0", "api-1"], "both are admitted")


async def test_strangers_do_not_end_the_wait() -> None:
    """Who cannot show a genuine quote of the group is not counted, however many ask."""
    async with cluster() as mesh:
        lead = await started(mesh)
        new = newcomer(lead, "api-0")
        asked = mesh.scope.start("newcomer", new.attest())
        await waits(lead, new)
        other = DevTee(b"another root")
        for seed in ("x", "y", "z"):
            stranger = newcomer(lead, seed, tee=other)
            stranger.who = cvm(API_COMPOSE, seed, tee=other)
            status, answer = await stranger.attest()
            assert (status, answer["code"]) == (400, "QUOTE_INVALID")
        status, answer = await asked
        assert (status, answer["code"]) == (503, "NOT_READY")
        assert lead.coordinator.ledger.slots == {}


async def test_the_wait_ends_after_a_lease() -> None:
    """A newcomer alone gets a slot when running CVMs have had their time, and what was noted of it is removed."""
    async with cluster() as mesh:
        lead = await started(mesh)
        admission = await mesh.retry(newcomer(lead), broker.LEASE_SECONDS + 10)
        assert admission["peer_id"] == "api-0"
        await eventually(lambda: lead.coordinator.ledger.newcomers == {}, "the note is gone", 10)


async def test_newcomers_at_different_coordinators_are_counted_together() -> None:
    """Each of three coordinators has one of the group's two newcomers, or none: nobody waits for a lease."""
    async with cluster(3) as mesh:
        for n in range(3):
            await mesh.start(n)
        leads = [await mesh.ready(n, 60.0) for n in range(3)]
        news = [newcomer(leads[0], "api-0"), newcomer(leads[2], "api-1")]
        answers = await asyncio.gather(*(mesh.retry(new, broker.LEASE_SECONDS - 5) for new in news))
        assert sorted(answer["peer_id"] for answer in answers) == ["api-0", "api-1"]
