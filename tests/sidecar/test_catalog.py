from __future__ import annotations

import pytest

from runtime import leader_key
from sidecar import catalog
from sidecar.catalog import CatalogError, Instance, Rule
from tests.sidecar.world import ROOTS, health, kv, kv_peers, leaf, peer


def test_instances_are_the_proxies_in_a_fixed_order() -> None:
    """Node name, ingress address and port, tags and index are taken; the node's address stands in for a missing one."""
    own_address = health("api-0", "10.0.0.1")
    own_address["Service"]["Address"] = "100.96.0.10"
    assert catalog.instances([health("api-1", "100.96.0.11", tags=("master",), index=12), own_address]) == (
        Instance(
            service="api",
            proxy_id="api-api-0-sidecar-proxy",
            peer_id="api-0",
            address="100.96.0.10",
            port=20001,
            tags=(),
            modify_index=10,
        ),
        Instance(
            service="api",
            proxy_id="api-api-1-sidecar-proxy",
            peer_id="api-1",
            address="100.96.0.11",
            port=20001,
            tags=("master",),
            modify_index=12,
        ),
    )


@pytest.mark.parametrize("tree", [None, {}, [1], [{}], [{"Node": {}, "Service": {}}], [{"Node": 1, "Service": 2}]])
def test_health_that_does_not_fit_is_refused(tree: object) -> None:
    """Whatever is not Consul's answer is a CatalogError, never another exception."""
    with pytest.raises(CatalogError):
        catalog.instances(tree)


def test_roots_are_joined_while_two_count() -> None:
    """Every root is trusted during a rotation; each ends with a line break."""
    assert catalog.roots(ROOTS).pem == "ROOT-A\nROOT-B\n"
    assert catalog.roots(ROOTS).trust_domain == "11111111-2222-3333-4444-555555555555.consul"
    for tree in (None, {}, {"Roots": [], "TrustDomain": "x"}, {"Roots": [{}], "TrustDomain": "x"}):
        with pytest.raises(CatalogError):
            catalog.roots(tree)


def test_leaf_key_is_a_secret_and_errors_do_not_quote_it() -> None:
    """The key does not show in the value's repr, nor in the error for a certificate that lacks a part."""
    found = catalog.leaf(leaf())
    assert found.key_pem.reveal() == "leaf-key"
    assert "leaf-key" not in repr(found)
    broken = leaf()
    del broken["CertPEM"]
    with pytest.raises(CatalogError) as caught:
        catalog.leaf(broken)
    assert "leaf-key" not in str(caught.value)


def test_rules_come_strongest_first_and_http_intentions_refuse() -> None:
    """Precedence orders them; an intention without an action (HTTP permissions) is no right for TCP."""
    tree = {
        "api": [
            {"SourceName": "*", "Action": "allow", "Precedence": 8},
            {"SourceName": "bad", "Action": "deny", "Precedence": 9},
            {"SourceName": "web", "Permissions": [{}], "Precedence": 9},
        ]
    }
    assert catalog.rules(tree, "api") == (
        Rule(source="bad", allow=False),
        Rule(source="web", allow=False),
        Rule(source="*", allow=True),
    )
    assert catalog.rules({}, "api") == ()
    for broken in ([], {"api": [{}]}, {"api": [1]}):
        with pytest.raises(CatalogError):
            catalog.rules(broken, "api")


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
