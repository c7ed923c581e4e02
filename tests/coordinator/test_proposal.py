"""Which manifest is set, and what each other one is answered with."""

from __future__ import annotations

import dataclasses

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from admission.protocol import Code, MeshPeer
from coordinator.proposal import MAX_STORED, hands_over, judge, misfit, shown, why_not
from coordinator.refusal import RefusalError
from runtime.guest import GuestInfo
from tests.coordinator.test_head import of_newer_program
from tests.coordinator.world import COORDINATOR_COMPOSE, OWNER, cvm, make_manifest
from tests.topology.support import after, opened
from topology.envelope import Signed, seal
from topology.handover import Handover
from topology.manifest import Coordinators
from topology.owners import Owners, key_of

STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(32))
OWNERS_OF_STRANGER = Owners(keys=(key_of(STRANGER),))
WHO = cvm(COORDINATOR_COMPOSE, "coordinator-0")
INFO = GuestInfo(app_id=WHO.app_id, instance_id=WHO.instance_id, compose_hash=WHO.compose_hash)
FIRST = opened(make_manifest(coordinators=3), OWNER)
HEAD = opened(after(FIRST, leaf_hours=9), OWNER)
LEADS = FIRST.manifest.coordinators
OWN = MeshPeer(peer_id="coordinator-0", public_key="k", address=LEADS.peers[0].address, kind="coordinator")


def answer(envelope: str, head: Signed = HEAD) -> RefusalError:
    """How `envelope` is refused."""
    with pytest.raises(RefusalError) as caught:
        judge(head, envelope, INFO, OWN, signed=True)
    return caught.value


def test_the_direct_successor_is_set() -> None:
    """Signed by the head's owners; who follows may be others."""
    newer = opened(after(HEAD, owners=Owners(keys=(key_of(STRANGER),))), OWNER, STRANGER)
    assert judge(HEAD, newer.envelope, INFO, OWN, signed=True) == newer
    assert judge(newer, seal(after(newer), STRANGER), INFO, OWN, signed=True) is not None
    assert answer(seal(after(newer), OWNER), newer).code is Code.MANIFEST_NOT_SIGNED


def test_the_head_once_more_changes_nothing() -> None:
    """Also with another signature under it, whoever made that: it stays as it is."""
    assert judge(HEAD, HEAD.envelope, INFO, OWN, signed=True) is None
    assert judge(HEAD, seal(HEAD.manifest, STRANGER, OWNER), INFO, OWN, signed=True) is None
    assert judge(HEAD, seal(HEAD.manifest, STRANGER), INFO, OWN, signed=True) is None
    assert judge(HEAD, seal(HEAD.manifest), INFO, OWN, signed=True) is None
    changed = opened(after(HEAD, owners=Owners(keys=(key_of(STRANGER),))), OWNER)
    assert judge(changed, changed.envelope, INFO, OWN, signed=True) is None, "its own owners are others by now"


def test_new_owners_show_that_they_hold_their_keys() -> None:
    """As many as have to sign what follows. Nobody can take back a manifest whose owners' keys are nowhere."""
    third = Ed25519PrivateKey.from_private_bytes(bytes([3]) * 32)
    changed = after(HEAD, owners=Owners(keys=(key_of(OWNER), key_of(STRANGER), key_of(third)), threshold=2))
    for envelope in (seal(changed, OWNER), seal(dataclasses.replace(changed, owners=OWNERS_OF_STRANGER), OWNER)):
        refusal = answer(envelope)
        assert refusal.code is Code.MANIFEST_REFUSED
        assert "who is to sign from now on has to sign this one, too" in refusal.reason
    assert judge(HEAD, seal(changed, OWNER, third), INFO, OWN, signed=True) is not None
    assert answer(seal(changed, STRANGER, third)).code is Code.MANIFEST_NOT_SIGNED
    assert judge(HEAD, seal(changed), INFO, OWN, signed=False) is not None


@pytest.mark.parametrize(
    ("envelope", "words"),
    [
        (opened(after(FIRST, leaf_hours=10), OWNER).envelope, "two were signed for one epoch"),
        (seal(after(opened(after(FIRST, leaf_hours=10))), OWNER), "two were signed for one epoch"),
        (seal(after(opened(after(HEAD))), OWNER), "those in between are needed first"),
    ],
    ids=["same epoch", "follows another", "gap"],
)
def test_what_follows_another_manifest_is_told_the_head(envelope: str, words: str) -> None:
    """Compare and swap: who signs next has what to follow."""
    refusal = answer(envelope)
    assert refusal.code is Code.MANIFEST_STALE
    assert words in refusal.reason
    assert refusal.more == {"head": dataclasses.asdict(shown(HEAD))}
    assert shown(HEAD).envelope == HEAD.envelope


def leads(**changes: object) -> Coordinators:
    """The coordinators' entry with `changes`."""
    return dataclasses.replace(LEADS, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (FIRST.manifest, "is older than"),
        (after(HEAD, cluster="other"), "is of cluster 'other'"),
        (after(HEAD, coordinators=leads(app_id="11" * 20)), "coordinators' app " + "11" * 20),
        (after(HEAD, coordinators=leads(compose_hashes=("22" * 32,))), f"this CVM has {WHO.compose_hash}"),
        (after(HEAD, coordinators=leads(peers=())), "has no coordinator"),
        (after(HEAD, coordinators=leads(peers=LEADS.peers[1:])), "drops coordinator-0, this coordinator; set it on"),
        (
            after(HEAD, coordinators=leads(peers=(dataclasses.replace(LEADS.peers[0], address="127.90.0.99"),))),
            "mesh address 127.90.0.99",
        ),
        (after(HEAD, vip_pool="127.20.0.0/16"), "other address pools"),
        (after(HEAD, mesh_pool="127.0.0.0/9"), "other address pools"),
    ],
    ids=["older", "cluster", "app", "compose hash", "nobody", "dropped", "address", "VIPs", "mesh addresses"],
)
def test_what_would_lock_out_is_refused_with_its_reason(manifest: object, words: str) -> None:
    """However well it is signed."""
    refusal = answer(seal(manifest, OWNER))  # type: ignore[arg-type]
    assert refusal.code is Code.MANIFEST_REFUSED
    assert words in refusal.reason


def handed_over(**changes: object) -> Coordinators:
    """The coordinators' entry of a new app that takes the mesh over, with `changes`."""
    new = dataclasses.replace(LEADS.peers[0], peer_id="coordinator-3", address="127.90.0.9", url="https://new.example")
    given = Handover(from_app_id=WHO.app_id, until=2_000_000_000, urls=(LEADS.peers[0].url,))
    return leads(app_id="33" * 20, compose_hashes=("33" * 32,), peers=(new,), handover=given, **changes)


def test_a_handover_takes_the_mesh_from_this_app() -> None:
    """The new coordinators bring it; whoever has read it knows why this one enforces nothing any more."""
    moved = opened(after(HEAD, coordinators=handed_over()), OWNER)
    assert judge(HEAD, moved.envelope, INFO, OWN, signed=True) == moved
    assert hands_over(moved.manifest, INFO)
    assert not hands_over(HEAD.manifest, INFO)
    assert "have handed the mesh over to the coordinators' app " + "33" * 20 in str(misfit(moved.manifest, INFO))
    stranger = dataclasses.replace(INFO, app_id="44" * 20)
    assert "this CVM is of app " + "44" * 20 in str(misfit(moved.manifest, stranger))


def test_new_coordinators_stand_beside_the_former_ones() -> None:
    """With names and addresses of their own, and the mesh's pools."""
    for place, words in (
        ({"peer_id": "coordinator-1"}, "coordinator-1"),
        ({"address": LEADS.peers[2].address}, "127."),
    ):
        own = handed_over()
        own = dataclasses.replace(own, peers=(dataclasses.replace(own.peers[0], **place),))
        moved = opened(after(HEAD, coordinators=own), OWNER)
        reason = why_not(HEAD, moved, INFO, signed=True)
        assert reason is not None
        assert words in reason
        assert "which one of the former ones has" in reason
    moved = opened(after(HEAD, coordinators=handed_over(), vip_pool="127.20.0.0/16"), OWNER)
    assert "other address pools" in str(why_not(HEAD, moved, INFO, signed=True))
    nobody = opened(after(HEAD, coordinators=dataclasses.replace(handed_over(), peers=())), OWNER)
    assert "no coordinator" in str(why_not(HEAD, nobody, INFO, signed=True))


def test_the_only_coordinator_is_not_dropped() -> None:
    """It says that nobody would be left."""
    alone = opened(make_manifest(), OWNER)
    other = dataclasses.replace(alone.manifest.coordinators.peers[0], peer_id="coordinator-9")
    changed = after(alone, coordinators=dataclasses.replace(alone.manifest.coordinators, peers=(other,)))
    assert "drops coordinator-0, the only coordinator" in answer(seal(changed, OWNER), alone).reason


def test_a_coordinator_that_stays_takes_a_manifest_that_drops_another() -> None:
    """Which is how one is dropped."""
    fewer = opened(after(HEAD, coordinators=leads(peers=LEADS.peers[:2])), OWNER)
    assert judge(HEAD, fewer.envelope, INFO, OWN, signed=True) == fewer


@pytest.mark.parametrize("text", ["", "garbage", "e30.", "e30.AA", ".", "W10.AA", "!!.AA", "é.AA"])
def test_what_is_no_manifest_is_a_bad_request(text: str) -> None:
    """Before any signature is looked at."""
    assert answer(text).code is Code.BAD_REQUEST


def test_what_needs_a_newer_program_is_refused() -> None:
    """Nothing stops being enforced for it: it is not in force."""
    refusal = answer(of_newer_program(after(HEAD), critical=["floor"], floor=1))
    assert refusal.code is Code.MANIFEST_REFUSED
    assert "needs a newer program" in refusal.reason


def test_an_envelope_that_the_records_cannot_hold_is_refused() -> None:
    """Consul takes half a mebibyte."""
    long = seal(HEAD.manifest, OWNER) + "." + "A" * MAX_STORED
    assert answer(long).code is Code.MANIFEST_REFUSED
