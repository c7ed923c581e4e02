"""Spec entries as Envoy messages."""

from __future__ import annotations

from tests.xds.entries import ingress, route, spec
from xds import resources
from xds.protos import Cluster, ClusterLoadAssignment, Listener
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, build
from xds.spec import Sole


def test_the_filter_chain_carries_the_generation_and_the_listener_its_address() -> None:
    """The lever that closes held connections is the chain's name; two listeners never share an address."""
    body = build(spec(route(generation="leader-7"))).resources[LISTENER]["egress/127.10.0.5:9090"].body
    (chain,) = Listener.parse(body).filter_chains
    assert chain.name == "worker/leader-7"


def test_a_cluster_pins_tls_identity_and_server() -> None:
    """What protects the wire is in the bytes that Envoy gets."""
    snapshot = build(spec(route()))
    body = snapshot.resources[CLUSTER]["egress/worker"].body
    for word in (b"leaf:me", b"roots", b"spiffe://mesh/worker"):
        assert word in body
    cluster = Cluster.parse(body)
    assert cluster.common_lb_config is not None
    assert cluster.common_lb_config.healthy_panic_threshold is not None
    assignment = ClusterLoadAssignment.parse(snapshot.resources[ENDPOINT]["egress/worker"].body)
    assert len(assignment.endpoints[0].lb_endpoints) == 2


def test_no_connection_is_limited_to_envoys_defaults() -> None:
    """Envoy's thresholds of 1024 would cap a busy mesh; outliers are ejected, but never more than half."""
    cluster = resources.egress_cluster(route(), "spiffe://mesh/me")
    assert cluster.circuit_breakers is not None
    (limits,) = cluster.circuit_breakers.thresholds
    assert {limits.max_connections, limits.max_pending_requests, limits.max_requests, limits.max_retries} == {1_000_000}
    assert cluster.outlier_detection is not None
    assert cluster.outlier_detection.max_ejection_percent == 50


def test_where_there_is_one_way_only_nothing_is_ejected() -> None:
    """Ejecting a leader's endpoint would keep its callers away for seconds, and lead them to nobody instead."""
    cluster = resources.egress_cluster(route(sole=Sole(endpoint=None)), "spiffe://mesh/me")
    assert cluster.outlier_detection is None
    assert cluster.lb_subset_config is not None


def test_an_ingress_leads_to_its_local_server_only() -> None:
    """One address, and more patience with it than with a peer: there is no other to try."""
    cluster = resources.ingress_cluster(ingress())
    assert cluster.load_assignment is not None
    assert len(cluster.load_assignment.endpoints[0].lb_endpoints) == 1
    assert cluster.connect_timeout is not None
    assert cluster.connect_timeout > resources.CONNECT_TIMEOUT
