from __future__ import annotations

import pytest

from runtime import leader_key
from sidecar import catalog
from sidecar.catalog import CatalogError, Instance
from tests.sidecar.world import health, kv, kv_peers, peer


def test_instances_come_in_a_fixed_order_and_without_a_place() -> None:
    """Node name, ID, tags and index are taken; of address and port nothing is."""
    assert catalog.instances([health("api-1", tags=("master",), index=12), health("api-0", "8.8.8.8", port=0)]) == (
        Instance(service_id="api-api-0", peer_id="api-0", tags=(), modify_index=10),
        Instance(service_id="api-api-1", peer_id="api-1", tags=("master",), modify_index=12),
    )


@pytest.mark.parametrize("tree", [None, {}, [1], [{}], [{"Node": {}, "Service": {}}], [{"Node": 1, "Service": 2}]])
def test_health_that_does_not_fit_is_refused(tree: object) -> None:
    """Whatever is not Consul's answer is a CatalogError, never another exception."""
    with pytest.raises(CatalogError):
        catalog.instances(tree)


def test_peers_are_sorted_and_must_sit_under_their_own_key() -> None:
    """A peer entry under another peer's key is refused: keys are what write rights are given by."""
    one, two = peer("api-0", "100.96.0.10"), peer("api-1", "100.96.0.11")
    assert catalog.peers(kv_peers(two, one)) == (one, two)
    assert catalog.peers(None) == ()
    misplaced = kv_peers(one)
    misplaced[0]["Key"] = "mesh/peers/api-1"
    for tree in (misplaced, kv({"mesh/peers/api-0": "not json"}), [{"Key": "mesh/peers/api-0", "Value": None}]):
        with pytest.raises(CatalogError):
            catalog.peers(tree)


def test_value_of_a_key() -> None:
    """The text of a key, or None where there is no such key."""
    assert catalog.value(kv({"mesh/manifest": "text"})) == "text"
    assert catalog.value(None) is None
    with pytest.raises(CatalogError):
        catalog.value([{"Value": None}])


@pytest.mark.parametrize(("flags", "serves"), [(0, False), (1, False), (leader_key.SERVES, True), (None, False)])
def test_flags_of_a_lock_say_whether_the_holder_serves(flags: int | None, serves: bool) -> None:
    """Nobody else's flags are taken for ours, and those of a key that nobody holds say nothing."""
    entry = kv({"service/pg/leader": "pg-0"})[0] | {"Flags": flags}
    assert catalog.lock_holder([entry | {"Session": "5e55"}]) == catalog.Holder(name="pg-0", serves=serves)
    assert catalog.lock_holder([entry]) == catalog.Holder(name=None, serves=False)


def test_holder_of_a_lock() -> None:
    """Who wrote the key counts only while a session holds it; a key that is gone is nobody's."""
    entry = kv({"service/pg/leader": "pg-0"})[0]
    nobody = catalog.Holder(name=None, serves=False)
    assert catalog.lock_holder([entry | {"Session": "5e55"}]) == catalog.Holder(name="pg-0", serves=False)
    assert catalog.lock_holder([entry]) == nobody
    assert catalog.lock_holder([entry | {"Session": ""}]) == nobody
    assert catalog.lock_holder(None) == nobody
    for broken in ({}, [entry | {"Session": "5e55", "Value": None}], "pg-0"):
        with pytest.raises(CatalogError):
            catalog.lock_holder(broken or "nothing")


@pytest.mark.parametrize("index", [float("inf"), float("nan"), [5], "1" * 5000], ids=["inf", "nan", "[5]", "digits"])
def test_an_index_of_nonsense_is_refused(index: object) -> None:
    """Python's JSON has numbers that are none."""
    with pytest.raises(CatalogError):
        catalog.instances([{"Node": {"Node": "api-0"}, "Service": {"ID": "api-api-0", "ModifyIndex": index}}])


@pytest.mark.parametrize("depth", [400, *range(940, 1000, 5), 100_000])
def test_depth_is_refused(depth: int) -> None:
    """Of a value in the KV, which holders of a token write, and of an answer."""
    with pytest.raises(CatalogError):
        catalog.peers(kv({"mesh/peers/api-0": "[" * depth + "]" * depth}))
    tree: object = {}
    for _ in range(depth):
        tree = {"a": tree}
    with pytest.raises(CatalogError):
        catalog.instances(tree)
