"""Snapshots are values: deterministic, consistent, and built again only where something changed."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from tests.xds.entries import LEAF, OUTSIDE, PEM, endpoint, ingress, outside, public, route, spec
from xds.protos import Listener
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, SECRET, TYPES, Snapshot, build
from xds.spec import Endpoint, Sole


def versions(snapshot: Snapshot, type_url: str) -> dict[str, str]:
    """Name → version of one type."""
    return {name: resource.version for name, resource in snapshot.resources[type_url].items()}


def changed(before: Snapshot, after: Snapshot) -> set[str]:
    """The types in which something changed, by their last word."""
    return {t.rsplit(".", 1)[1] for t in TYPES if versions(before, t) != versions(after, t)}


def test_each_entry_has_its_resources() -> None:
    """A route: cluster, endpoints, listener; an ingress: cluster, listener and the one that resets; used secrets."""
    snapshot = build(spec(route(), ingress("spiffe://mesh/a"), leaves=(LEAF, replace(LEAF, name="unused"))))
    assert {t: set(names) for t, names in snapshot.resources.items()} == {
        CLUSTER: {"egress/worker", "local/api"},
        ENDPOINT: {"egress/worker"},
        LISTENER: {"egress/127.10.0.5:9090", "ingress/100.96.0.9:18080", "refuse/127.10.0.54"},
        SECRET: {"leaf:me", "roots"},
    }


def test_an_empty_spec_is_a_snapshot() -> None:
    """A CVM without routes needs an answer too."""
    assert not any(build(spec(leaves=(), roots="")).resources.values())


def test_equal_specs_give_equal_bytes_with_or_without_a_previous_snapshot() -> None:
    """The cache saves work and changes nothing."""
    first = build(spec(route(), ingress("spiffe://mesh/a")))
    other = build(spec(route(generation="9", endpoints=())), None)
    for previous in (None, first, other):
        again = build(spec(route(), ingress("spiffe://mesh/a")), previous)
        assert again.version == first.version
        assert again.resources == first.resources


@pytest.mark.parametrize(
    ("change", "types"),
    [
        ({"endpoints": (endpoint(1),)}, {"ClusterLoadAssignment"}),
        ({"endpoints": (endpoint(2), endpoint(1), endpoint(2))}, set()),
        ({"generation": "2"}, {"Listener"}),
        ({"sole": Sole(endpoint=endpoint(1))}, {"Cluster", "ClusterLoadAssignment", "Listener"}),
        ({"peer_sans": ("spiffe://mesh/other",)}, {"Cluster"}),
        ({"vip": "127.10.0.6"}, {"Listener"}),
    ],
)
def test_a_change_touches_only_its_own_resource(change: dict[str, object], types: set[str]) -> None:
    """Endpoints never touch a listener, or held connections would be cut; a generation touches nothing else."""
    before = build(spec(route(), route("other", vip="127.10.0.7")))
    after = build(spec(route(**change), route("other", vip="127.10.0.7")), before)
    assert changed(before, after) == types
    assert after.resources[CLUSTER]["egress/other"] is before.resources[CLUSTER]["egress/other"]


def test_another_sole_endpoint_touches_only_the_listener() -> None:
    """A role that moves is one resource: no client comes between two of them."""
    ways = [Sole(endpoint=endpoint(1)), Sole(endpoint=endpoint(2)), Sole(endpoint=None)]
    for was, now in itertools.permutations(ways, 2):
        before = build(spec(route(sole=was)))
        assert changed(before, build(spec(route(sole=now)), before)) == {"Listener"}


def test_a_rotated_leaf_touches_only_its_secret() -> None:
    """Clusters and listeners name the secret, not its content."""
    before = build(spec(route(), ingress("spiffe://mesh/a")))
    rotated = replace(LEAF, chain_pem=PEM + "2")
    after = build(spec(route(), ingress("spiffe://mesh/a"), leaves=(rotated,)), before)
    assert changed(before, after) == {"Secret"}


def test_routes_may_swap_vips() -> None:
    """Listeners are named by address, so the swap is two changes and no clash."""
    before = build(spec(route("a", vip="127.10.0.1"), route("b", vip="127.10.0.2")))
    after = build(spec(route("a", vip="127.10.0.2"), route("b", vip="127.10.0.1")), before)
    assert set(after.resources[LISTENER]) == set(before.resources[LISTENER])


def chains(snapshot: Snapshot) -> dict[str, bytes]:
    """Name → bytes of the filter chains of the one ingress, the one for everybody else included."""
    listener = Listener.parse(snapshot.resources[LISTENER]["ingress/100.96.0.9:18080"].body)
    assert listener.default_filter_chain is not None
    return {chain.name: bytes(chain) for chain in (*listener.filter_chains, listener.default_filter_chain)}


def test_a_caller_that_comes_or_goes_is_a_chain_of_its_own_and_changes_no_other() -> None:
    """What Envoy keeps when a listener changes are the connections of the chains that stay, byte for byte."""
    one = build(spec(ingress("spiffe://mesh/a")))
    two = build(spec(ingress("spiffe://mesh/b", "spiffe://mesh/a")), one)
    assert changed(one, two) == {"Listener"}
    assert chains(one).items() < chains(two).items()
    assert set(chains(two)) - set(chains(one)) == {"api/spiffe://mesh/b"}
    assert chains(build(spec(ingress("spiffe://mesh/a")), two)) == chains(one)


def test_the_order_of_callers_and_a_repetition_are_no_change() -> None:
    """A listener that changed for nothing would be sent, and checked by Envoy, for nothing."""
    one = build(spec(ingress("spiffe://mesh/a", "spiffe://mesh/b")))
    again = build(spec(ingress("spiffe://mesh/b", "spiffe://mesh/a", "spiffe://mesh/b")), None)
    assert one.version == again.version


def test_an_empty_list_lets_nobody_in() -> None:
    """Nobody's chain has neither TLS nor filters: Envoy closes what comes to it."""
    listener = Listener.parse(build(spec(ingress())).resources[LISTENER]["ingress/100.96.0.9:18080"].body)
    assert listener.filter_chains == []
    assert listener.default_filter_chain is not None
    assert listener.default_filter_chain.filters == []


def test_a_listener_that_lets_nobody_in_takes_no_secret() -> None:
    """Envoy asks for no secret that nothing uses, so a snapshot with one would never be acknowledged."""
    assert build(spec(ingress())).resources[SECRET] == {}
    assert build(spec(ingress("spiffe://mesh/a"))).resources[SECRET] != {}


def test_keys_show_nowhere() -> None:
    """Neither a snapshot nor a resource prints a private key."""
    snapshot = build(spec(route()))
    assert b"PRIVATE KEY" in snapshot.resources[SECRET]["leaf:me"].body
    assert "PRIVATE" not in repr(snapshot)
    assert "PRIVATE" not in str(snapshot.resources[SECRET]["leaf:me"])


DOORS = tuple(Endpoint(address="127.137.0.1", port=port) for port in (81, 82, 83))


def test_each_door_is_a_listener_of_its_own() -> None:
    """One that comes or goes touches no other, and neither cluster nor endpoints; of its chain nothing is new."""
    plain, some, more = (build(spec(route(doors=doors))) for doors in ((), DOORS[1:], DOORS))
    again = build(spec(route(doors=DOORS)), build(spec(route(doors=DOORS[1:]))))
    assert changed(plain, some) == changed(some, more) == {"Listener"}
    assert set(more.resources[LISTENER]) == {
        "egress/127.10.0.5:9090",
        *(f"egress/127.137.0.1:{n}" for n in (81, 82, 83)),
    }
    assert versions(some, LISTENER).items() <= versions(more, LISTENER).items()
    assert again.resources == more.resources
    chains = [Listener.parse(each.body).filter_chains[0] for each in more.resources[LISTENER].values()]
    assert all(chain == chains[0] for chain in chains)


def test_a_door_keeps_to_the_routes_generation() -> None:
    """What cuts connections to the VIP cuts those to a door."""
    before, after = (build(spec(route(doors=DOORS, generation=text))) for text in ("1", "2"))
    assert set(versions(before, LISTENER).items()).isdisjoint(versions(after, LISTENER).items())


def test_a_server_outside_is_a_cluster_and_a_listener() -> None:
    """Another entry beside it, or a route that changes, leaves both as they are, down to the object."""
    first = build(spec(outside(), route()))
    assert set(first.resources[CLUSTER]) == {"egress/worker", "outside/bank"}
    assert set(first.resources[LISTENER]) == {"egress/127.10.0.5:9090", "egress/127.137.0.1:8443"}
    more = build(spec(outside("two", listen=DOORS[0]), outside(), route(endpoints=())), first)
    for type_url, name in ((CLUSTER, "outside/bank"), (LISTENER, "egress/127.137.0.1:8443")):
        assert more.resources[type_url][name] is first.resources[type_url][name]


@pytest.mark.parametrize(
    "change", [{"host": "a.example"}, {"port": 1}, {"server_name": "a.example"}, {"roots_pem": PEM * 2}]
)
def test_whatever_changes_of_a_server_outside_cuts(change: dict[str, object]) -> None:
    """The listener's chain has another name: nobody goes on with a server that was judged by other words."""
    names = [
        Listener.parse(build(spec(entry)).resources[LISTENER]["egress/127.137.0.1:8443"].body).filter_chains[0].name
        for entry in (outside(), outside(**change))
    ]
    assert names[0] != names[1]


def test_a_public_certificate_that_is_rotated_changes_one_secret() -> None:
    """No listener changes, so no connection is cut; and neither what other CVMs see."""
    entries = (ingress("spiffe://mesh/a"), public())
    before = build(spec(*entries, leaves=(LEAF, OUTSIDE)))
    after = build(spec(*entries, leaves=(LEAF, replace(OUTSIDE, chain_pem=PEM * 2))), before)
    assert changed(before, after) == {"Secret"}
    old, new = versions(before, SECRET), versions(after, SECRET)
    assert {name for name in new if old[name] != new[name]} == {"leaf:out"}
    assert "public/0.0.0.0:443" in after.resources[LISTENER]
