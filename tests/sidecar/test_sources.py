from __future__ import annotations

import dataclasses

import pytest

from sidecar.catalog import CatalogError, instances
from sidecar.desired import World
from sidecar.sources import Query, hold, let_go, merge_peers, newer, queries, take_manifest, with_admission
from tests.sidecar.world import OWNER, OWNER_RAW, ROOTS, STRANGER, health, kv, kv_peers, leaf, manifest, peer, route
from topology.manifest import sign

WORLD = World(manifest=manifest(), own=manifest().groups["api"], group="api")


def test_each_answer_changes_its_part_of_the_world() -> None:
    """Applying every watched answer once fills the world."""
    first = with_admission(WORLD, (peer("coordinator-0", "100.96.0.9", "coordinator"),), "100.96.0.10", "demo")
    wanted = queries(first, OWNER_RAW)
    answers = {
        "/v1/agent/connect/ca/roots": ROOTS,
        "/v1/kv/mesh/peers/": kv_peers(peer("api-1", "100.96.0.11")),
        "/v1/kv/mesh/manifest": None,
        "/v1/agent/connect/ca/leaf/api": leaf(),
        "/v1/connect/intentions/match": {"api": [{"SourceName": "*", "Action": "allow", "Precedence": 8}]},
        "/v1/health/connect/api": [health("api-1", "100.96.0.11")],
    }
    assert {query.path for query in wanted} == set(answers)
    world = first
    for query, change in wanted.items():
        world = change(world, answers[query.path], 7)
    assert world.roots is not None
    assert list(world.leaves) == ["api"]
    assert [one.peer_id for one in world.catalog["api"]] == ["api-1"]
    assert world.rules["api"][0].source == "*"
    assert [one.peer_id for one in world.peers] == ["api-1", "coordinator-0"]


def test_health_is_asked_for_passing_instances_from_the_agents_stream() -> None:
    """The query parameters are Consul's flags."""
    query = next(query for query in queries(WORLD, None) if query.path.startswith("/v1/health"))
    assert query == Query(path="/v1/health/connect/api", params=(("passing", ""), ("cached", "")))


def test_peers_of_the_admission_stay_known() -> None:
    """A registry that does not list the coordinators does not cut the tunnels to them; what is newer counts."""
    old = peer("coordinator-0", "100.96.0.9", "coordinator")
    listed = peer("api-1", "100.96.0.11")
    assert merge_peers((old,), (listed,)) == (listed, old)
    rekeyed = type(old)(peer_id="coordinator-0", public_key=listed.public_key, address="100.96.0.9", kind="coordinator")
    assert merge_peers((old,), (rekeyed,)) == (rekeyed,)


def test_coordinator_that_booted_anew_is_known_by_its_new_key_at_once() -> None:
    """An admission's coordinators replace what Consul listed before: the tunnel to it is what newer lists come by."""
    old = peer("coordinator-0", "100.96.0.9", "coordinator")
    new = dataclasses.replace(old, public_key=peer("x", "").public_key)
    before = with_admission(WORLD, (old,), "100.96.0.10", "demo")
    after = with_admission(before, (new,), "100.96.0.10", "demo")
    assert (before.peers, after.peers) == ((old,), (new,))


def test_instances_are_held_over_a_recovery_and_let_go() -> None:
    """hold() keeps what is listed, also when it happens twice; let_go() forgets it."""
    listed = instances([health("api-1", "100.96.0.11")])
    first = hold(dataclasses.replace(WORLD, catalog={"api": listed}))
    assert first.held == {"api": listed}
    again = hold(dataclasses.replace(first, catalog={"api": ()}))
    assert again.held == {"api": listed}
    newer_one = instances([health("api-1", "100.96.0.99")])
    assert hold(dataclasses.replace(again, catalog={"api": newer_one})).held == {"api": newer_one}
    assert let_go(again).held == {}


def test_newer_manifest_replaces_the_routes_and_an_older_one_does_not() -> None:
    """Only a greater epoch counts; the same one again changes nothing, so nothing is done."""
    later = manifest(epoch=4, routes=(route("api", "api"), route("extra", "api", vip="127.10.0.2")))
    world = take_manifest(WORLD, kv({"mesh/manifest": sign(later, OWNER)}), OWNER_RAW)
    assert [one.name for one in world.manifest.routes] == ["api", "extra"]
    assert take_manifest(world, kv({"mesh/manifest": sign(manifest(), OWNER)}), OWNER_RAW) is world
    assert take_manifest(world, None, OWNER_RAW) is world


@pytest.mark.parametrize(
    "envelope",
    [
        sign(manifest(epoch=4), STRANGER),
        sign(manifest(epoch=4, cluster="other"), OWNER),
        sign(manifest(epoch=4, vip_pool="127.20.0.0/16"), OWNER),
        "garbage",
    ],
    ids=["forged", "other cluster", "other pool", "garbage"],
)
def test_manifest_that_cannot_be_believed_is_refused(envelope: str) -> None:
    """Consul's KV is not an authority: the owner's signature is, and the cluster and its pools must stay."""
    with pytest.raises(CatalogError):
        newer(WORLD, envelope, OWNER_RAW)
