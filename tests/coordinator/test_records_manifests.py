"""How a manifest comes into the records, from an owner, a sibling or another coordinator, and is enforced."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from admission.protocol import MANIFEST_KEY, MANIFESTS_PREFIX, Code, MeshPeer
from coordinator import governance, proposal
from coordinator.head import Head
from coordinator.history import name_of
from coordinator.records import Records
from coordinator.refusal import RefusalError
from runtime.consul import ConsulError
from runtime.guest import GuestInfo
from tests.coordinator.setting import all_enforce, enforce, proposed
from tests.coordinator.world import (
    COORDINATOR_COMPOSE,
    OWNER,
    OWNERS,
    cluster,
    cvm,
    make_manifest,
)
from tests.support import eventually
from tests.topology.support import after, opened
from topology.envelope import Signed, seal


async def test_any_coordinator_takes_the_next_manifest_and_the_others_follow() -> None:
    """Right after one another, each at another coordinator; the same again changes nothing."""
    async with cluster(3) as mesh:
        for n in range(3):
            await mesh.start(n)
        leads = [await mesh.ready(n) for n in range(3)]
        head = leads[0].coordinator.head.signed
        for lead in leads:
            newer = opened(after(head, leaf_hours=head.manifest.leaf_hours + 1), OWNER)
            status, answer = await proposed(lead, newer.envelope)
            assert (status, answer) == (200, dataclasses.asdict(proposal.shown(newer)))
            assert enforce([lead], newer.digest)
            assert await proposed(lead, newer.envelope) == (200, answer)
            head = newer
        await all_enforce(leads, head.digest)
        _, entries = await leads[0].coordinator.consul.get(f"/v1/kv/{MANIFEST_KEY}")
        # Repeating wrote nothing: the first entry, and three changes.
        assert governance.held(entries).envelope == head.envelope
        assert [lead.coordinator.document()["manifest_notes"] for lead in leads] == [[], [], []]


async def test_manifests_in_between_are_read_from_the_records() -> None:
    """A watch brings the last of several alone. It is enforced once those before it are found, and not before; nor is
    one that follows a fork.
    """
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        head, consul = lead.coordinator.head, lead.coordinator.consul
        first = head.signed
        second = opened(after(first, leaf_hours=9), OWNER)
        third = opened(after(second), OWNER)
        await consul.put(f"/v1/kv/{MANIFEST_KEY}", third.envelope.encode())
        await eventually(lambda: head.behind, "it knows that some are missing")
        assert head.signed == first
        await consul.put(f"/v1/kv/{MANIFESTS_PREFIX}{name_of(second)}", second.envelope.encode())
        await all_enforce([lead], third.digest)
        assert head.notes == ()


async def test_of_two_owners_at_once_one_is_told_the_others_manifest() -> None:
    """At two coordinators, again and again: never both, and never neither."""
    async with cluster(3) as mesh:
        for n in range(3):
            await mesh.start(n)
        leads = [await mesh.ready(n) for n in range(3)]
        head = leads[0].coordinator.head.signed
        for _ in range(5):
            rivals = [opened(after(head, leaf_hours=hours), OWNER) for hours in (20, 30)]
            answers = await asyncio.gather(
                *(proposed(lead, rival.envelope) for lead, rival in zip(leads[:2], rivals, strict=True))
            )
            assert sorted(status for status, _ in answers) == [200, 409]
            won, lost = sorted(answers, key=lambda answer: answer[0])
            assert lost[1]["head"] == won[1]
            head = next(rival for rival in rivals if rival.envelope == won[1]["envelope"])
            await all_enforce(leads, head.digest)


async def test_what_is_not_to_be_set_reaches_no_records() -> None:
    """Not signed, too old, of another app: nothing is written, and the head goes on."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        head = lead.coordinator.head.signed
        _, before = await lead.coordinator.consul.get(f"/v1/kv/{MANIFEST_KEY}")
        other = dataclasses.replace(head.manifest.coordinators, compose_hashes=("22" * 32,))
        for envelope, wanted in (
            (seal(after(head), Ed25519PrivateKey.generate()), 403),
            (seal(after(head, coordinators=other), OWNER), 422),
            (seal(after(opened(after(head))), OWNER), 409),
            ("garbage", 400),
        ):
            assert (await proposed(lead, envelope))[0] == wanted
        assert (await lead.coordinator.consul.get(f"/v1/kv/{MANIFEST_KEY}"))[1] == before
        assert enforce([lead], head.digest)


class Kv:
    """The manifest's entry in the records, or why it cannot be read."""

    def __init__(self) -> None:
        self.fails: Exception | None = None
        self.envelope: str | None = None

    async def get(self, path: str, **_: object) -> tuple[int, list[dict[str, object]]]:
        """As ConsulClient."""
        assert path == f"/v1/kv/{MANIFEST_KEY}"
        if self.fails is not None:
            raise self.fails
        if self.envelope is None:
            return 1, []
        return 1, [{"Value": base64.b64encode(self.envelope.encode()).decode(), "ModifyIndex": 1, "Flags": 0}]


def unfounded(kv: Any, first: Signed) -> tuple[Records, Head]:
    """Records of which nothing but `kv` is there, of a coordinator that enforces `first`."""
    lead = cvm(COORDINATOR_COMPOSE, "coordinator-0")
    info = GuestInfo(app_id=lead.app_id, instance_id=lead.instance_id, compose_hash=lead.compose_hash)
    place = first.manifest.coordinators.peers[0]
    own = MeshPeer(peer_id=place.peer_id, public_key="k", address=place.address, kind="coordinator")
    head = Head(first, info, own, check_signatures=True, keep=lambda _: None, changed=lambda: None)
    head.settle(1.0)
    parts: Any = SimpleNamespace(client=kv)
    nothing: Any = None
    return Records(parts, nothing, own=own, owners=OWNERS, head=head, chronicle=nothing, documents=nothing), head


def test_what_a_sibling_enforces_is_carried_out_as_what_the_records_have() -> None:
    """Whom it ends is put out, and what is missing before it is looked for."""
    first = opened(make_manifest(), OWNER)
    it, head = unfounded(Kv(), first)
    second = opened(after(first, leaf_hours=9), OWNER)
    it.sibling_enforces(opened(after(second), OWNER).envelope)
    assert (it._behind.is_set(), it._adopted.is_set(), it._swept.is_set()) == (True, False, False)
    it.sibling_enforces(second.envelope)
    assert (it._adopted.is_set(), it._swept.is_set(), head.signed) == (True, True, second)


async def test_what_is_in_force_is_confirmed_by_the_records() -> None:
    """With nobody to ask, or nothing there, it is not certain; a newer manifest is enforced first."""
    kv, first = Kv(), opened(make_manifest(), OWNER)
    it, head = unfounded(kv, first)

    async def refusal() -> str:
        with pytest.raises(RefusalError) as caught:
            await it.confirm()
        assert caught.value.code is Code.NOT_READY
        return caught.value.reason

    kv.fails = ConsulError(500, "No cluster leader")
    assert "do not confirm which manifest is in force: " in await refusal()
    kv.fails = None
    assert "another manifest" in await refusal()
    for envelope in (first.envelope, seal(first.manifest, Ed25519PrivateKey.generate(), OWNER)):
        kv.envelope = envelope
        await it.confirm()
    second = opened(after(first, leaf_hours=9), OWNER)
    kv.envelope = second.envelope
    await it.confirm()
    assert head.signed.digest == second.digest
    kv.envelope = first.envelope
    assert "another manifest" in await refusal()
