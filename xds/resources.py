"""Spec entries → Envoy messages: clusters, endpoints, listeners. Pure.

Names: `egress/<route>`, `outside/<name>` and `local/<ingress>` for clusters, `egress/<address>:<port>` (a VIP, or a
further address that programs dial) and `ingress/<address>:<port>` for listeners (by address, so that two routes may
swap VIPs without ever claiming one twice).
"""

from __future__ import annotations

from datetime import timedelta

from xds import outside, refusal, subset, tls, transport
from xds.protos import (
    Address,
    CircuitBreakers,
    CircuitBreakersThresholds,
    Cluster,
    ClusterCommonLbConfig,
    ClusterDiscoveryType,
    ClusterEdsClusterConfig,
    ClusterLbPolicy,
    ClusterLoadAssignment,
    FilterChain,
    LbAddress,
    LbEndpoint,
    Listener,
    LocalityLbEndpoints,
    OutlierDetection,
    Percent,
    SocketAddress,
)
from xds.spec import EgressRoute, Endpoint, Ingress, Outside

CONNECT_TIMEOUT = timedelta(seconds=3)
"""For TCP and TLS together. An endpoint that vanished costs a connection so long, until two failures or the catalog
(1 to 3 s) take it out. Not shorter: 2,000 connections at once on two busy cores take longer than 1 s for their
handshakes, and attempts that are given up and repeated cost the others their time: 1,156 of 2,000 came through with
1 s and three attempts, all of them with 3 s and five (2 busy cores)."""
LOCAL_CONNECT_TIMEOUT = timedelta(seconds=10)
"""For the local server: a full backlog drops SYNs, which come again after 1, 3 and 7 s. There is no other server to
try instead."""
UNLIMITED = 1_000_000
"""Envoy's thresholds default to 1024, which 300 clients with a few connections each would reach. The file limit
bounds us first."""

BUFFER = 128 << 10
"""Bytes that Envoy holds of one direction of a connection before it stops reading (its default is 1 MiB). Eight TLS
records: a stream is as fast as with more (`benchmarks/xds_bench.py`), and a reader that stands still costs little."""


def egress_cluster_name(route: EgressRoute) -> str:
    """The cluster behind a route, and its endpoints' resource name."""
    return f"egress/{route.name}"


def ingress_cluster_name(ingress: Ingress) -> str:
    """The cluster of the local server behind an ingress."""
    return f"local/{ingress.name}"


def outside_cluster_name(entry: Outside) -> str:
    """The cluster of a server outside."""
    return f"outside/{entry.name}"


def egress_listener_name(at: Endpoint) -> str:
    """The listener on an address that local programs dial."""
    return f"egress/{at.address}:{at.port}"


def ingress_listener_name(ingress: Ingress) -> str:
    """The listener of an ingress."""
    return f"ingress/{ingress.address}:{ingress.port}"


def egress_cluster(route: EgressRoute, caller: str) -> Cluster:
    """The route's cluster: endpoints by EDS, TLS by the transport. `caller` is the URI SAN of its leaf."""
    name = egress_cluster_name(route)
    cluster = _cluster(name)
    cluster.type = ClusterDiscoveryType.EDS
    cluster.eds_cluster_config = ClusterEdsClusterConfig(eds_config=tls.ads())
    if route.sole is None:
        cluster.outlier_detection = _outliers()
    else:
        # And no outlier detection: where there is nowhere else to go, leaving out only delays the return.
        cluster.lb_subset_config = subset.subsets()
    cluster.ignore_health_on_host_removal = True
    transport.egress_cluster(route, caller, cluster)
    return cluster


def assignment(route: EgressRoute) -> ClusterLoadAssignment:
    """The route's endpoints, sorted, each once: another order in the catalog is not a change."""
    hosts = []
    for endpoint in sorted(set(route.endpoints)):
        host = _lb_endpoint(endpoint)
        if route.sole is not None:
            host.metadata = subset.member(endpoint)
        hosts.append(host)
    return ClusterLoadAssignment(
        cluster_name=egress_cluster_name(route), endpoints=[LocalityLbEndpoints(lb_endpoints=hosts)] if hosts else []
    )


def egress_listener(route: EgressRoute, at: Endpoint) -> Listener:
    """The listener on the VIP or on another address. Its one chain carries the generation in its name, who the sole
    endpoint is, and nothing that changes otherwise."""
    chain = FilterChain(
        name=f"{route.name}/{route.generation}", filters=transport.egress_filters(route, egress_cluster_name(route))
    )
    return _listener(egress_listener_name(at), at.address, at.port, [chain])


def outside_cluster(entry: Outside, resolver: Endpoint | None) -> Cluster:
    """The server outside: where it is, and who it has to be."""
    name = outside_cluster_name(entry)
    cluster = _cluster(name)
    host = LocalityLbEndpoints(lb_endpoints=[_lb_endpoint(Endpoint(address=entry.host, port=entry.port))])
    cluster.load_assignment = ClusterLoadAssignment(cluster_name=name, endpoints=[host])
    outside.cluster(entry, resolver, cluster)
    return cluster


def outside_listener(entry: Outside) -> Listener:
    """The listener of a server outside. Its chain has everything that the entry says in its name, so that no connection
    goes on under what was said before."""
    chain = FilterChain(
        name=f"{entry.name}/{outside.digest(entry)}", filters=outside.filters(entry, outside_cluster_name(entry))
    )
    return _listener(egress_listener_name(entry.listen), entry.listen.address, entry.listen.port, [chain])


def ingress_cluster(ingress: Ingress) -> Cluster:
    """The local server behind an ingress."""
    name = ingress_cluster_name(ingress)
    cluster = _cluster(name)
    cluster.type = ClusterDiscoveryType.STATIC
    cluster.connect_timeout = LOCAL_CONNECT_TIMEOUT
    hosts = LocalityLbEndpoints(lb_endpoints=[_lb_endpoint(ingress.target)])
    cluster.load_assignment = ClusterLoadAssignment(
        cluster_name=name, endpoints=[hosts, refusal.second_priority(ingress.source)]
    )
    cluster.outlier_detection = refusal.detection()
    transport.ingress_cluster(ingress, cluster)
    return cluster


def ingress_listener(ingress: Ingress) -> Listener:
    """The listener of an ingress: a chain for each caller, and nothing else that could change and cut them all."""
    chains, others = transport.ingress_chains(ingress, ingress_cluster_name(ingress))
    listener = _listener(ingress_listener_name(ingress), ingress.address, ingress.port, chains)
    listener.default_filter_chain = others
    listener.listener_filters = transport.ingress_listener_filters()
    listener.listener_filters_timeout = transport.HANDSHAKE_TIMEOUT
    listener.socket_options = transport.ingress_socket_options()
    return listener


def _cluster(name: str) -> Cluster:
    limits = CircuitBreakersThresholds(
        max_connections=UNLIMITED, max_pending_requests=UNLIMITED, max_requests=UNLIMITED, max_retries=UNLIMITED
    )
    return Cluster(
        name=name,
        connect_timeout=CONNECT_TIMEOUT,
        lb_policy=ClusterLbPolicy.ROUND_ROBIN,
        # Threshold 0: an endpoint that is out stays out, even when all are. Sending to a demoted database is worse than
        # an error. Window 0: an endpoint that is put aside is known to the workers at once; by default Envoy collects
        # such changes for 1 s.
        common_lb_config=ClusterCommonLbConfig(
            healthy_panic_threshold=Percent(value=0.0), update_merge_window=timedelta(0)
        ),
        circuit_breakers=CircuitBreakers(thresholds=[limits]),
        per_connection_buffer_limit_bytes=BUFFER,
    )


def _outliers() -> OutlierDetection:
    """A CVM that died is skipped before the catalog says so: two failed connects in a row, looked at on each failure.

    Half of the endpoints at most: with a single endpoint there is nowhere else to go, and ejecting it would only
    delay its return.
    """
    return OutlierDetection(
        split_external_local_origin_errors=True,
        consecutive_local_origin_failure=2,
        consecutive_5xx=0,
        enforcing_consecutive_5xx=0,
        enforcing_success_rate=0,
        enforcing_local_origin_success_rate=0,
        interval=timedelta(seconds=1),
        base_ejection_time=timedelta(seconds=3),
        max_ejection_time=timedelta(seconds=15),
        max_ejection_percent=50,
    )


def _lb_endpoint(endpoint: Endpoint) -> LbEndpoint:
    return LbEndpoint(endpoint=LbAddress(address=socket_address(endpoint.address, endpoint.port)))


def socket_address(address: str, port: int) -> Address:
    """An IP address and a port."""
    return Address(socket_address=SocketAddress(address=address, port_value=port))


def _listener(name: str, address: str, port: int, chains: list[FilterChain]) -> Listener:
    # Free bind: the listener may come before its address is on the device (a VIP being added, WireGuard restarting).
    return Listener(
        name=name,
        address=socket_address(address, port),
        filter_chains=chains,
        freebind=True,
        per_connection_buffer_limit_bytes=BUFFER,
        # Strangers at public listeners can use the limit up, and the mesh's own connections go on.
        ignore_global_conn_limit=True,
    )
