"""Which manifest a CVM takes, from whom, and which coordinator it believes by it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from sidecar import identity
from sidecar.catalog import CatalogError
from sidecar.desired import World
from sidecar.sources import (
    BehindError,
    adopt,
    take_manifest,
    why_misplaced,
    why_not_enforced,
)
from sidecar.sources import after as envelopes_after
from tests.sidecar.test_sources import taken
from tests.sidecar.world import OWNER, STRANGER, manifest, route
from tests.topology.support import after as following
from tests.topology.support import opened, sealed
from topology.envelope import digest_of, seal
from topology.manifest import encode
from topology.succession import SuccessionError

KEYS = identity.make()
HEAD = opened(manifest(), OWNER)
WORLD = World(signed=HEAD, own=manifest().groups["api"], group="api")


def test_the_manifest_says_where_this_cvm_is() -> None:
    """The newest that is known, or that the coordinator shows; an address of another slot is none either."""
    for address, peer_id, wrong in (
        ("100.96.0.10", "api-0", None),
        ("100.96.0.11", "api-0", "'100.96.0.11', the manifest has 100.96.0.10"),
        ("100.96.0.10", "api-9", "no such slot"),
    ):
        reason = why_misplaced(WORLD, peer_id, address, "", check_signatures=True)
        assert (reason is None) == (wrong is None)
        assert (wrong or "") in (reason or "")
    api = manifest().groups["api"]
    moved = tuple(dataclasses.replace(slot, address=f"100.96.1.{n}") for n, slot in enumerate(api.peers))
    groups = {**manifest().groups, "api": dataclasses.replace(api, peers=moved)}
    envelope = seal(following(HEAD, groups=groups), OWNER)
    assert why_misplaced(WORLD, "api-0", "100.96.1.0", envelope, check_signatures=True) is None
    assert why_misplaced(WORLD, "api-0", "100.96.0.10", envelope, check_signatures=True) is not None
    forged = seal(following(HEAD, groups=groups), STRANGER)
    assert why_misplaced(WORLD, "api-0", "100.96.1.0", forged, check_signatures=True) is not None


NEXT = following(HEAD, routes=(route("api", "api"), route("extra", "api", vip="127.10.0.2")))


def test_newer_manifest_replaces_the_routes_and_an_older_one_does_not() -> None:
    """Only what counts more is taken; the same one again changes nothing, so nothing is done."""
    world = taken(WORLD, seal(NEXT, OWNER))
    assert [one.name for one in world.manifest.routes] == ["api", "extra"]
    for envelope in (HEAD.envelope, seal(NEXT, OWNER)):
        assert taken(world, envelope) is world
    assert take_manifest(world, None, check_signatures=True) is world


def test_another_one_of_the_same_epoch_is_refused() -> None:
    """What is held came from a coordinator that enforces it: the other one is a fork."""
    twin = seal(manifest(routes=()), OWNER)
    with pytest.raises(CatalogError, match="two were signed for one epoch"):
        taken(WORLD, twin)
    assert "enforces another manifest" in (
        why_not_enforced(WORLD, 3, digest_of(twin), twin, check_signatures=True) or ""
    )
    renewal = why_not_enforced(WORLD, 3, digest_of(twin), "", check_signatures=True) or ""
    assert renewal.startswith(
        f"enforces another manifest: epoch 3 ({digest_of(twin)[:12]}), and this CVM holds epoch 3"
    )
    assert "two were signed for one epoch" in renewal


def test_a_greater_epoch_is_taken_only_after_those_in_between() -> None:
    """It may follow a fork. What the answer of a coordinator is refused for is said."""
    second = opened(NEXT, OWNER)
    third = opened(following(second), OWNER)
    late = opened(following(opened(following(HEAD, routes=()), OWNER)), OWNER)
    for envelope in (third.envelope, late.envelope):
        with pytest.raises(BehindError, match="those in between are needed first"):
            taken(WORLD, envelope)
        reason = why_not_enforced(WORLD, 5, digest_of(envelope), envelope, check_signatures=True)
        assert "needed first" in (reason or "")
    world = taken(taken(WORLD, second.envelope), third.envelope)
    assert world.signed == third
    with pytest.raises(CatalogError, match="two were signed for one epoch"):
        taken(world, late.envelope)


def test_a_cvm_can_lead_an_older_coordinator_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """By all that it took one after the other, as far as it keeps them; with a gap by none."""
    second = opened(NEXT, OWNER)
    third = opened(following(second), OWNER)
    world = taken(taken(WORLD, second.envelope), third.envelope)
    assert envelopes_after(world, 3) == (second.envelope, third.envelope)
    assert envelopes_after(world, 4) == (third.envelope,)
    for epoch in (1, 5, 6):
        assert envelopes_after(world, epoch) == ()
    assert envelopes_after(adopt(WORLD, third), 3) == ()
    monkeypatch.setattr("sidecar.sources.MAX_BEFORE", len(second.envelope))
    world = taken(taken(WORLD, second.envelope), third.envelope)
    assert world.before == (second,)
    fourth = opened(following(third), OWNER)
    assert envelopes_after(taken(world, fourth.envelope), 3) == ()
    assert envelopes_after(taken(world, fourth.envelope), 4) == (third.envelope, fourth.envelope)


def test_a_manifest_that_was_judged_already_is_taken_as_it_is() -> None:
    """By whoever showed it: its signatures may be those of owners that the one that is held does not name."""
    newest = opened(NEXT, STRANGER)
    assert adopt(WORLD, newest).signed == newest
    assert adopt(WORLD, HEAD) is WORLD
    with pytest.raises(SuccessionError, match="other address pools"):
        adopt(WORLD, opened(following(HEAD, mesh_pool="100.96.0.0/15"), OWNER))


@pytest.mark.parametrize(
    "envelope",
    [
        seal(NEXT, STRANGER),
        seal(following(HEAD, cluster="other"), OWNER),
        seal(following(HEAD, vip_pool="127.20.0.0/16"), OWNER),
        "garbage",
    ],
    ids=["forged", "other cluster", "other pool", "garbage"],
)
def test_manifest_that_cannot_be_believed_is_refused(envelope: str) -> None:
    """Consul's KV is not an authority: the owner's signature is, and the cluster and its pools must stay."""
    with pytest.raises(CatalogError):
        taken(WORLD, envelope)


def test_a_coordinator_that_enforces_less_than_is_known_has_rolled_back() -> None:
    """By its epoch alone, where it says no more. A newer one, also one that this program cannot read, is no reason."""
    world = taken(WORLD, seal(NEXT, OWNER))
    for epoch, envelope in ((3, HEAD.envelope), (3, ""), (0, "")):
        reason = why_not_enforced(world, epoch, HEAD.digest, envelope, check_signatures=True)
        assert reason == f"rolled back: enforces epoch {epoch}, this CVM holds epoch 4"
    newest = following(opened(NEXT))
    unreadable = sealed(json.dumps(json.loads(encode(newest)) | {"version": 3}).encode(), OWNER)
    for epoch, envelope in ((4, seal(NEXT, OWNER)), (5, seal(newest, OWNER)), (5, unreadable)):
        for sent in (envelope, ""):
            assert why_not_enforced(world, epoch, digest_of(envelope), sent, check_signatures=True) is None
    stranger = seal(newest, STRANGER)
    forged = why_not_enforced(world, 5, digest_of(stranger), stranger, check_signatures=True)
    assert forged is not None
    assert "enforces another manifest" in forged


def test_a_coordinator_shows_the_manifest_that_it_certifies_by() -> None:
    """Not an older one that everybody has, beside an epoch of its own invention."""
    reason = why_not_enforced(WORLD, 9, "f0" * 32, HEAD.envelope, check_signatures=True)
    assert reason == f"shows the manifest {HEAD.digest[:12]} and certifies by f0f0f0f0f0f0"


def test_a_manifest_that_was_overtaken_while_its_coordinator_was_verified_is_not_taken() -> None:
    """It was the newest when it was judged. Another one of the same epoch is a fork."""
    newer = opened(following(HEAD), OWNER)
    newest = taken(WORLD, newer.envelope)
    assert adopt(newest, HEAD) is newest
    fork = opened(following(HEAD, leaf_hours=9), OWNER)
    with pytest.raises(SuccessionError, match="another manifest of epoch"):
        adopt(newest, fork)
