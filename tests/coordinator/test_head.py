"""What a coordinator enforces, and when it enforces nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from admission.protocol import MeshPeer
from coordinator.head import Head
from coordinator.proposal import MAX_STORED, misfit
from runtime.guest import GuestInfo
from tests.coordinator.world import COORDINATOR_COMPOSE, OWNER, cvm, make_manifest
from tests.topology.support import after, opened, sealed
from topology.envelope import Signed, digest_of, seal
from topology.manifest import Manifest, encode
from topology.owners import Owners, key_of
from topology.revocation import Revocation
from topology.succession import SuccessionError

FIRST = opened(make_manifest(), OWNER)
WHO = cvm(COORDINATOR_COMPOSE, "coordinator-0")
NOW = 1_800_000_000.0
OWN = MeshPeer(
    peer_id="coordinator-0", public_key="", address=FIRST.manifest.coordinators.peers[0].address, kind="coordinator"
)
INFO = GuestInfo(app_id=WHO.app_id, instance_id=WHO.instance_id, compose_hash=WHO.compose_hash)


class Watched(Head):
    """A head that counts its changes."""

    def __init__(self, signed: Signed = FIRST, info: GuestInfo = INFO) -> None:
        self.changes = 0
        self.kept: list[Signed] = []
        super().__init__(signed, info, OWN, check_signatures=True, keep=self.kept.append, changed=self.count)

    def count(self) -> None:
        """One more."""
        self.changes += 1


def settled() -> Watched:
    """One whose records agree."""
    head = Watched()
    head.settle(NOW)
    return head


def of_newer_program(manifest: Manifest, **changes: object) -> str:
    """`manifest` with entries that this program does not know, signed."""
    tree = json.loads(encode(manifest)) | changes
    return sealed(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode(), OWNER)


def test_a_successor_takes_the_place_and_nothing_else_does() -> None:
    """Older, the same, forged, forked and garbage change nothing; what is not believed is noted once."""
    head = settled()
    newer = after(FIRST, routes=())
    assert head.take(seal(newer, OWNER), NOW)
    assert head.manifest == newer
    changes = head.changes
    for envelope in (FIRST.envelope, head.signed.envelope):
        assert not head.take(envelope, NOW)
    assert (head.changes, head.notes) == (changes, ())
    fork = seal(dataclasses.replace(newer, vip_pool="127.20.0.0/16"), OWNER)
    for envelope in ("garbage", fork, fork):
        assert not head.take(envelope, NOW)
    assert head.manifest == newer
    assert head.hindrance is None
    assert "two were signed for one epoch" in head.notes[0]
    assert head.changes == changes + 2


def test_who_brings_a_manifest_brings_none_that_cannot_be_set() -> None:
    """Owners sign one, see that it is refused, and sign another: who kept the first cannot set it either."""
    head = settled()
    wrong = dataclasses.replace(FIRST.manifest.coordinators, compose_hashes=("ab" * 32,))
    for mistaken in (after(FIRST, coordinators=wrong), after(FIRST, mesh_pool="127.0.0.0/9")):
        assert head.brought(seal(mistaken, OWNER)) is None
        assert head.signed == FIRST
        assert any("is refused" in note for note in head.notes)
    assert head.brought("x" * (MAX_STORED + 1)) is None
    good = opened(after(FIRST, leaf_hours=9), OWNER)
    assert head.brought(good.envelope) == good


def test_of_two_of_one_epoch_only_the_records_choose() -> None:
    """A sibling's does not replace ours before the records are heard; that they did is said."""
    head = Watched()
    twin = opened(make_manifest(coordinators=1, network="127.91.0"), OWNER)
    assert not head.take(twin.envelope, NOW)
    head.adopt(twin, NOW)
    head.settle(NOW)
    assert head.manifest == twin.manifest
    assert head.notes == (f"{FIRST.name}, with which it began, does not count: the coordinators enforce {twin.name}",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"app_id": "11" * 20}, ("app " + "11" * 20, WHO.app_id)),
        ({"compose_hashes": ("22" * 32,)}, ("22" * 32, WHO.compose_hash)),
    ],
    ids=["another app", "another compose file"],
)
def test_a_manifest_that_is_not_about_this_coordinator_is_not_enforced(
    changes: dict[str, object], words: tuple[str, str]
) -> None:
    """What differs is said. It is over when a manifest comes that is."""
    other = dataclasses.replace(FIRST.manifest.coordinators, **changes)  # type: ignore[arg-type]
    head = Watched(opened(dataclasses.replace(FIRST.manifest, coordinators=other), OWNER))
    head.settle(NOW)
    assert head.hindrance is not None
    assert all(word in head.hindrance for word in words)
    head.adopt(opened(after(head.signed, coordinators=FIRST.manifest.coordinators), OWNER), NOW)
    assert head.hindrance is None


def test_a_coordinator_that_a_newer_manifest_drops_stops() -> None:
    """It takes the manifest, and enforces nothing."""
    head = settled()
    dropped = dataclasses.replace(FIRST.manifest.coordinators, compose_hashes=("33" * 32,))
    assert head.take(seal(after(FIRST, coordinators=dropped), OWNER), NOW)
    assert head.hindrance == misfit(head.manifest, INFO)
    assert head.hindrance is not None


@pytest.mark.parametrize("changes", [{"version": 3}, {"critical": ["floor"], "floor": 1}], ids=["version", "critical"])
def test_what_only_a_newer_program_can_read_stops_this_one(changes: dict[str, object]) -> None:
    """Where the owners signed it and it is not older. A manifest that can be read ends it."""
    head = settled()
    unreadable = of_newer_program(after(FIRST), **changes)
    assert not head.take(unreadable, NOW)
    assert head.hindrance is not None
    assert "needs a newer program" in head.hindrance
    assert not head.take(seal(after(opened(after(FIRST))), OWNER), NOW), "it follows another one"
    assert head.hindrance is not None
    assert head.take(seal(after(FIRST, epoch=3, previous=digest_of(unreadable)), OWNER), NOW)
    assert head.hindrance is None
    assert not head.take(unreadable, NOW)
    assert head.hindrance is None, "it is older by now"


def test_a_greater_epoch_takes_the_place_only_after_those_in_between() -> None:
    """What follows a fork is signed by the same owners, and nothing in it says so. `set` refuses it, too."""
    head = settled()
    two, twin = opened(after(FIRST), OWNER), opened(after(FIRST, leaf_hours=10), OWNER)
    three = opened(after(two), OWNER)
    assert head.take(two.envelope, NOW)
    late = opened(after(opened(after(twin), OWNER)), OWNER)
    for bring in (head.brought, lambda envelope: head.take(envelope, NOW) or None):
        with contextlib.suppress(SuccessionError):
            assert bring(late.envelope) is None
    assert head.signed == two
    assert head.behind, "it may follow: the records are asked for those in between"
    four = opened(after(three), OWNER)
    for signed in (three, four):
        assert head.take(signed.envelope, NOW)
    assert (head.signed, head.behind, head.notes) == (four, False, ())


def test_what_was_in_force_before_owners_changed_is_older_and_no_more() -> None:
    """The owners of today have not signed it, which says nothing: no manifest is missing because of it."""
    head = settled()
    later = Ed25519PrivateKey.from_private_bytes(b"\5" * 32)
    newer = opened(after(FIRST, owners=Owners(keys=(key_of(later),))), OWNER, later)
    assert head.take(newer.envelope, NOW)
    changes = head.changes
    assert not head.take(FIRST.envelope, NOW)
    assert (head.behind, head.notes, head.changes) == (False, (), changes)


@pytest.mark.parametrize("shown", [0, 1], ids=["the one before", "the head"])
def test_who_shows_the_head_again_leaves_it_not_behind(shown: int) -> None:
    """What was to be taken a moment ago, and follows something else, is no longer what there is."""
    head = settled()
    two = opened(after(FIRST), OWNER)
    assert head.take(two.envelope, NOW)
    assert not head.take(seal(after(opened(after(two, leaf_hours=9), OWNER)), OWNER), NOW)
    assert head.behind
    assert len(head.notes) == 1
    assert not head.take((FIRST, two)[shown].envelope, NOW)
    assert (head.behind, head.notes) == (False, ())


def test_before_the_records_are_heard_those_in_between_may_be_missing() -> None:
    """In what a coordinator of the mesh has; not in what anybody brings."""
    head = Watched()
    late = opened(after(opened(after(FIRST), OWNER)), OWNER)
    with pytest.raises(SuccessionError, match="those in between are needed first"):
        head.brought(late.envelope)
    assert head.take(late.envelope, NOW)


@pytest.mark.parametrize("other", ["cluster", "app"])
def test_what_cannot_be_read_and_is_of_another_mesh_stops_nothing(other: str) -> None:
    """Owners may sign for several meshes, and whoever has seen a manifest of the other one can bring it."""
    head = settled()
    foreign = (
        after(FIRST, cluster="staging")
        if other == "cluster"
        else after(FIRST, coordinators=dataclasses.replace(FIRST.manifest.coordinators, app_id="11" * 20))
    )
    assert not head.take(of_newer_program(dataclasses.replace(foreign, epoch=50), version=3), NOW)
    assert head.hindrance is None
    assert head.take(seal(after(FIRST), OWNER), NOW)


def test_fields_that_are_not_critical_are_left_out_and_noted() -> None:
    """The digest stays that of the owners' bytes."""
    head = settled()
    envelope = of_newer_program(after(FIRST), floor=1)
    assert head.take(envelope, NOW)
    assert (head.hindrance, head.signed.envelope) == (None, envelope)
    assert "manifest.floor" in head.notes[0]


def test_what_is_enforced_was_kept_before() -> None:
    """The first manifest once the records agree, each other before it counts; what is refused is not."""
    head = Watched()
    assert head.kept == []
    head.settle(NOW)
    assert head.kept == [FIRST]
    newer = opened(after(FIRST), OWNER)

    def keep(signed: Signed) -> None:
        assert head.signed != signed, "it counts already"
        head.kept.append(signed)

    head._keep = keep
    assert head.take(newer.envelope, NOW)
    head.take("garbage", NOW)
    assert head.kept == [FIRST, newer]


def test_a_manifest_that_a_newer_program_has_kept_holds_older_ones_back() -> None:
    """Until there is one of its epoch that can be read."""
    head = settled()
    head.hold_back(3, "epoch 3 needs a newer program")
    assert head.hindrance == "epoch 3 needs a newer program"
    second = opened(after(FIRST), OWNER)
    assert head.take(second.envelope, NOW)
    assert head.hindrance is not None
    head.settle(NOW)
    assert head.hindrance is not None
    assert head.take(seal(after(second), OWNER), NOW)
    assert head.hindrance is None


def test_a_coordinator_that_is_revoked_or_dropped_leaves_once_the_coordinators_agree() -> None:
    """A manifest in its environment alone makes none leave: its records may have a newer one."""
    for changes in (
        {"revoked": (Revocation(peer_id="coordinator-0"),)},
        {"revoked": (Revocation(instance_id=INFO.instance_id),)},
        {"revoked": (Revocation(compose_hash=INFO.compose_hash),)},
        {"coordinators": dataclasses.replace(FIRST.manifest.coordinators, peers=())},
    ):
        newer = opened(after(FIRST, **changes), OWNER)
        head = settled()
        assert head.take(newer.envelope, NOW)
        assert head.dismissed == head.hindrance is not None
        alone = Watched(newer)
        assert alone.hindrance is not None
        assert alone.dismissed is None
        alone.agree()
        assert alone.dismissed == alone.hindrance
