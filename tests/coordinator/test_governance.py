"""What the manifest makes of Consul; a real server shows that Consul takes it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from admission.protocol import MANIFEST_KEY
from coordinator import governance
from coordinator.governance import StandoffError, weigh
from runtime.consul import ConsulClient, ConsulError
from tests.coordinator.setting import all_enforce, enforce, put
from tests.coordinator.test_head import of_newer_program
from tests.coordinator.world import OWNER, OWNERS, Applicant, Cluster, Running, cluster, make_manifest
from tests.support import eventually
from tests.topology.support import after, opened
from topology.envelope import seal
from topology.owners import Owners, key_of

SECOND = Ed25519PrivateKey.from_private_bytes(bytes(32))
THIRD = Ed25519PrivateKey.from_private_bytes(b"\3" * 32)
FIRST = opened(make_manifest(), OWNER)
NEXT = opened(after(FIRST), OWNER)
TWIN = opened(dataclasses.replace(FIRST.manifest, leaf_hours=9), OWNER)
KV = f"/v1/kv/{MANIFEST_KEY}"


def test_of_the_records_and_the_environment_the_newer_counts() -> None:
    """And of one epoch the one in the records."""
    assert weigh(None, FIRST, OWNERS) is FIRST
    assert weigh(FIRST.envelope, FIRST, OWNERS) is FIRST
    assert weigh(NEXT.envelope, FIRST, OWNERS) == NEXT
    assert weigh(FIRST.envelope, NEXT, OWNERS) is NEXT
    assert weigh(TWIN.envelope, FIRST, OWNERS) == TWIN
    assert weigh(opened(after(TWIN), OWNER).envelope, FIRST, OWNERS).manifest == after(TWIN)


@pytest.mark.parametrize(
    "stored",
    [
        "garbage",
        seal(dataclasses.replace(NEXT.manifest, cluster="other"), OWNER),
        base64.urlsafe_b64encode(b'{"version":1,"epoch":7,"cluster":"tests"}').decode() + ".AA",
    ],
    ids=["garbage", "other cluster", "version 1"],
)
def test_what_is_no_manifest_of_this_cluster_and_format_gives_way(stored: str) -> None:
    """It holds nothing up."""
    assert weigh(stored, FIRST, OWNERS) is FIRST


@pytest.mark.parametrize(
    ("stored", "own", "reason"),
    [
        (of_newer_program(after(FIRST), version=3), FIRST, "needs a newer program"),
        (of_newer_program(after(FIRST), critical=["x"], x=1), FIRST, "needs a newer program"),
        (seal(after(FIRST), SECOND), FIRST, "signed by 0 of the owner keys"),
        (TWIN.envelope, NEXT, "two were signed for one epoch"),
        (
            opened(after(FIRST, owners=Owners(keys=(key_of(SECOND),))), OWNER).envelope,
            opened(after(NEXT), OWNER),
            "signed by 0 of the owner keys",
        ),
    ],
    ids=["version", "critical", "other owners", "forked before", "owners that were replaced"],
)
def test_what_may_be_newer_or_another_history_is_not_passed_over(stored: str, own: object, reason: str) -> None:
    """Neither side is enforced."""
    with pytest.raises(StandoffError, match=reason):
        weigh(stored, own, OWNERS)  # type: ignore[arg-type]


def test_new_owners_take_over() -> None:
    """The old ones sign the change, which a coordinator with the old or the new compose file believes."""
    new = Owners(keys=(key_of(SECOND),))
    change = opened(after(FIRST, owners=new), OWNER, SECOND)
    for owners in (OWNERS, new):
        assert weigh(FIRST.envelope, change, owners) is change
    assert weigh(change.envelope, FIRST, OWNERS) == change
    later = opened(after(change), SECOND)
    assert weigh(change.envelope, later, new) is later


def test_owners_that_were_replaced_overwrite_nothing() -> None:
    """Neither what a host gives a coordinator with an empty disk, nor what such a one has written: the chain that the
    first owners began counts, and its newest is written again.
    """
    new = Owners(keys=(key_of(SECOND),))
    change = opened(after(FIRST, owners=new), OWNER)
    last = opened(after(change), SECOND)
    chain = (FIRST, change, last)
    late = opened(after(FIRST, epoch=9, previous="ee" * 32), OWNER)
    assert weigh(last.envelope, late, OWNERS) is late, "without the history nothing shows it"
    assert weigh(last.envelope, late, OWNERS, chain) is last
    assert weigh(change.envelope, late, OWNERS, chain) is last
    assert weigh(late.envelope, last, OWNERS, chain) is last
    assert weigh(late.envelope, FIRST, OWNERS, chain) is FIRST, "and the records bring it up to the newest"
    later = opened(after(last), SECOND)
    for owners in (OWNERS, new):
        assert weigh(last.envelope, later, owners, chain) is later
        assert weigh(later.envelope, last, owners, chain) == later


def test_owners_that_the_first_manifest_replaced_overwrite_nothing() -> None:
    """Those of the measured compose file signed it, and it names others."""
    first = opened(dataclasses.replace(FIRST.manifest, owners=Owners(keys=(key_of(SECOND),))), OWNER)
    last = opened(after(first), SECOND)
    chain = (first, last)
    late = opened(after(first, epoch=9, owners=OWNERS), OWNER)
    assert weigh(last.envelope, late, OWNERS, chain) is last
    assert weigh(late.envelope, last, OWNERS, chain) is last
    later = opened(after(last), SECOND)
    assert weigh(late.envelope, later, OWNERS, chain) is later


def test_what_follows_another_change_of_owners_overwrites_nothing() -> None:
    """The replaced key signs a second change of owners, of the very epoch; what follows has a greater epoch than what
    is in force. With the history that is in force, and with one of its own.
    """
    new, evil = (Owners(keys=(key_of(key),)) for key in (SECOND, THIRD))
    change = opened(after(FIRST, owners=new), OWNER)
    last = opened(after(change), SECOND)
    twin = opened(after(FIRST, owners=evil), OWNER)
    late = opened(after(opened(after(twin), THIRD)), THIRD)
    assert weigh(last.envelope, late, OWNERS, (FIRST, change, last)) is last
    with pytest.raises(StandoffError, match="by owners whom the history of this coordinator"):
        weigh(last.envelope, late, OWNERS, (FIRST, twin, late))
    # The disk may be ahead of the records by more than one change of owners.
    again = opened(after(last, owners=evil), SECOND)
    newest = opened(after(again), THIRD)
    assert weigh(last.envelope, newest, OWNERS, (FIRST, change, last, again, newest)) is newest


async def test_a_replaced_key_and_a_new_disk_rule_nothing() -> None:
    """The owners were replaced. A host boots a coordinator with an empty disk and what the replaced key has signed, of
    a great epoch: the mesh goes on with the genuine one, and that coordinator with it.
    """
    async with cluster(3) as mesh:
        for n in range(3):
            await mesh.start(n)
        leads = [await mesh.ready(n, 60) for n in range(3)]
        change = opened(after(opened(mesh.manifest, OWNER), owners=Owners(keys=(key_of(SECOND),))), OWNER, SECOND)
        last = opened(after(change, leaf_hours=9), SECOND)
        for signed in (change, last):
            await put(leads[0], signed.envelope)
        await all_enforce(leads, last.digest)
        await mesh.lose(2)
        mesh.lose_disk(2)
        late = await mesh.start(2, after(change, epoch=9))
        await mesh.ready(2, 60)
        assert late.coordinator.head.signed.digest == last.digest
        assert "with which it began, does not count" in str(late.coordinator.document()["manifest_notes"])
        assert await stored(leads[0].coordinator.consul) == last.envelope
        assert enforce(list(mesh.running.values()), last.digest)


async def stored(consul: ConsulClient) -> str | None:
    """The envelope in the KV."""
    return (await governance.stored_manifest(consul)).envelope


async def test_a_newer_manifest_in_the_kv_is_adopted_and_carried_out() -> None:
    """Rights change, the epoch in the status grows; an older one changes nothing."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        head = lead.coordinator.head
        groups = dict(head.manifest.groups)
        groups["more"] = dataclasses.replace(groups["client"], peers=())
        newer = after(head.signed, groups=groups)
        consul = lead.coordinator.consul
        assert "mesh-more" not in await policies(consul)
        await consul.put(KV, seal(newer, OWNER).encode())
        await eventually(lambda: lead.coordinator.document()["manifest_epoch"] == 2, "the manifest is adopted")
        assert lead.coordinator.document()["manifest_digest"] == opened(newer).digest[:12]
        found: set[str] = set()
        while "mesh-more" not in found:
            found = await policies(consul)
        await consul.put(KV, seal(mesh.manifest, OWNER).encode())
        await consul.put(KV, b"garbage")
        assert lead.coordinator.document()["manifest_epoch"] == 2


async def policies(consul: ConsulClient) -> set[str]:
    """Names of all policies."""
    _, entries = await consul.get("/v1/acl/policies")
    return {entry["Name"] for entry in entries}


async def restarted(mesh: Cluster, manifest: object) -> Running:
    """Coordinator 0, lost and booted on its disk, which has `manifest`, too."""
    await mesh.lose(0)
    return await mesh.start(0, manifest)  # type: ignore[arg-type]


async def hindered(running: Running, words: str) -> None:
    """Waits until the coordinator says that it enforces nothing, with `words`."""

    def says() -> bool:
        document = running.coordinator.document()
        return document["ready"] is False and words in str(document["reasons"])

    await eventually(says, f"it says {words!r}")


async def eventually_leads(consul: ConsulClient) -> None:
    """Returns when the server has a leader."""
    while True:
        with contextlib.suppress(ConsulError):
            await stored(consul)
            return
        await asyncio.sleep(0.05)


async def test_a_restarted_coordinator_takes_the_newest_manifest() -> None:
    """The disk's where it is newer, which is then in the records; else the records'."""
    async with cluster() as mesh:
        await mesh.start()
        first = (await mesh.ready()).coordinator.head.signed
        newer = after(first)
        await restarted(mesh, newer)
        consul = (await mesh.ready()).coordinator.consul
        assert await stored(consul) == seal(newer, OWNER)
        again = await restarted(mesh, mesh.manifest)
        await mesh.ready()
        assert again.coordinator.head.manifest == newer


async def test_of_two_manifests_of_one_epoch_one_rules_all_coordinators() -> None:
    """The first in the records. Each coordinator that began with the other says that it does not count; the others were
    shown it at most, and refused it.
    """
    async with cluster(3) as mesh:
        twin = dataclasses.replace(mesh.manifest, leaf_hours=9)
        for n in range(3):
            await mesh.start(n, twin if n == 1 else None)
        documents = [(await mesh.ready(n, 60)).coordinator.document() for n in range(3)]
        assert len({document["manifest_digest"] for document in documents}) == 1
        for n, document in enumerate(documents):
            began = opened(twin if n == 1 else mesh.manifest, OWNER).digest
            notes = [str(note) for note in document["manifest_notes"]]  # type: ignore[attr-defined]
            if began.startswith(str(document["manifest_digest"])):
                # By a CVM or a sibling, or in the records, where it is named.
                kept = f"kept manifest 1-{opened(twin, OWNER).digest} is another of its epoch"
                assert all("two were signed for one epoch" in note or note == kept for note in notes), notes
            else:
                assert any("with which it began, does not count" in note for note in notes), notes


@pytest.mark.parametrize("changes", [{"version": 3}, {"critical": ["floor"], "floor": 1}], ids=["version", "critical"])
async def test_a_manifest_that_an_older_program_cannot_read_stays_in_the_records(changes: dict[str, object]) -> None:
    """While it runs and when it starts: it says that it needs a newer program, and admits nobody."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        envelope = of_newer_program(after(lead.coordinator.head.signed), **changes)
        await lead.coordinator.consul.put(KV, envelope.encode())
        await hindered(lead, "needs a newer program")
        status, answer = await Applicant(url=lead.url, manifest=mesh.manifest).challenge()
        assert (status, answer["code"]) == (503, "NOT_READY")
        assert "needs a newer program" in answer["reason"]
        again = await restarted(mesh, mesh.manifest)
        await hindered(again, "needs a newer program")
        assert await stored(again.coordinator.consul) == envelope


async def test_a_field_that_an_older_program_does_not_know_is_left_out_with_a_note() -> None:
    """Unless it is critical; the records keep the owners' bytes."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        envelope = of_newer_program(after(lead.coordinator.head.signed), floor=1)
        await lead.coordinator.consul.put(KV, envelope.encode())
        await eventually(lambda: lead.coordinator.document()["manifest_epoch"] == 2, "the manifest is adopted")
        assert "manifest.floor" in str(lead.coordinator.document()["manifest_notes"])
        again = await restarted(mesh, mesh.manifest)
        await mesh.ready()
        assert await stored(again.coordinator.consul) == envelope


async def test_a_manifest_that_is_not_about_this_coordinator_is_not_enforced() -> None:
    """Nothing of it gets into the records, and nobody is admitted by it."""
    async with cluster() as mesh:
        await mesh.start()
        consul = (await mesh.ready()).coordinator.consul
        before = await stored(consul)
        own = dataclasses.replace(mesh.manifest.coordinators, compose_hashes=("22" * 32,))
        staging = after(opened(mesh.manifest, OWNER), coordinators=own, leaf_hours=9)
        again = await restarted(mesh, staging)
        await hindered(again, "this CVM has ")
        async with asyncio.timeout(20):
            await eventually_leads(again.coordinator.consul)
        # Longer than the pauses between its attempts.
        for _ in range(40):
            assert await stored(again.coordinator.consul) == before
            assert again.coordinator.document()["ready"] is False
            await asyncio.sleep(0.05)
        status, answer = await Applicant(url=again.url, manifest=mesh.manifest).challenge()
        assert (status, answer["code"]) == (503, "NOT_READY")


async def test_a_coordinator_with_an_older_manifest_adopts_what_a_cvm_brings() -> None:
    """Before it answers: the answer is by the newer manifest, which is in the records then."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        newer = seal(after(lead.coordinator.head.signed, leaf_hours=9), OWNER)
        asker = Applicant(url=lead.url, manifest=mesh.manifest, offers=newer)
        answer = await asker.admitted()
        assert (answer["manifest_epoch"], answer["manifest"]) == (2, newer)
        assert await stored(lead.coordinator.consul) == newer
        for worthless in ("garbage", seal(after(opened(mesh.manifest)), SECOND), seal(mesh.manifest, OWNER)):
            asker.offers = worthless
            assert (await asker.admitted())["manifest_epoch"] == 2
        assert lead.coordinator.document()["manifest_notes"] == []
