"""Each endpoint is matched by the chain that leads to it, and by no other."""

from __future__ import annotations

import pytest

from tests.xds.entries import endpoint, route, spec
from xds import subset
from xds.protos import Cluster, ClusterLoadAssignment
from xds.snapshot import CLUSTER, ENDPOINT, build
from xds.spec import Endpoint, Sole

PLACES = (endpoint(1), endpoint(2), Endpoint(address="100.96.0.1", port=19091))


@pytest.mark.parametrize("leader", [*PLACES, None])
def test_a_sole_endpoint_matches_itself_alone(leader: Endpoint | None) -> None:
    """By address and port; nobody matches nobody. An Envoy that would fall back to another host is not asked for."""
    snapshot = build(spec(route(endpoints=PLACES, sole=Sole(endpoint=leader))))
    cluster = Cluster.parse(snapshot.resources[CLUSTER]["egress/worker"].body)
    (locality,) = ClusterLoadAssignment.parse(snapshot.resources[ENDPOINT]["egress/worker"].body).endpoints
    assert cluster.lb_subset_config is not None
    assert cluster.lb_subset_config.fallback_policy.name == "NO_FALLBACK"
    (selector,) = cluster.lb_subset_config.subset_selectors
    wanted = subset.only(Sole(endpoint=leader)).filter_metadata["envoy.lb"].fields
    assert selector.keys == list(wanted)
    matched = [
        host.endpoint.address.socket_address
        for host in locality.lb_endpoints
        if host.metadata is not None
        and host.metadata.filter_metadata["envoy.lb"].fields == wanted
        and host.endpoint is not None
        and host.endpoint.address is not None
    ]
    assert [Endpoint(address=m.address, port=m.port_value) for m in matched if m] == ([leader] if leader else [])
