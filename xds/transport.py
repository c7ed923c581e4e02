"""How bytes travel from one Envoy to another: the one place to change it. Pure.

Each TCP connection is a mutual TLS 1.3 connection of its own, so what TCP says (an end of one direction, a reset) is
said on the other side too. An ingress has a filter chain for each caller: the caller announces itself by SNI, which
only chooses the chain; the chain's TLS context requires that caller's certificate. So a caller that is added is a new
chain, a caller that is revoked is a chain that goes with the connections in it, and the other chains stay.
"""

from __future__ import annotations

from datetime import timedelta

from xds import refusal, subset, tls
from xds.protos import (
    Any,
    BackoffStrategy,
    BindConfig,
    CidrRange,
    Cluster,
    ConnectionLimit,
    Filter,
    FilterChain,
    FilterChainMatch,
    ListenerFilter,
    SocketAddress,
    SocketOption,
    TcpKeepalive,
    TcpProxy,
    TlsInspector,
    UpstreamConnectionOptions,
    UpstreamConnectMode,
)
from xds.spec import EgressRoute, Ingress, Principal

NEVER = timedelta(0)
"""Envoy reads 0 as 'no timeout'."""
PUBLIC_IDLE = timedelta(hours=1)
"""A connection of a client from outside on which nobody says anything ends after so long (Envoy's default): strangers
may hold no place for ever. dstack's gateway ends it after 10 minutes."""
CONNECT_ATTEMPTS = 5
"""Attempts for one client connection before it is closed. The balancer moves on with each, so one dead endpoint costs
a retry. Five, because an attempt that times out fails all that wait for the same endpoint: a crowd tries again."""
FIRST_PAUSE, LONGEST_PAUSE = timedelta(milliseconds=10), timedelta(milliseconds=200)
"""Pauses between the attempts: doubling, half of it on average. The first one costs 5 ms."""
HANDSHAKE_TIMEOUT = timedelta(seconds=10)
"""How long an accepted connection may take to send its ClientHello, and then to finish the handshake. Three times
what a caller's Envoy waits (`xds.resources.CONNECT_TIMEOUT`): only strangers reach it."""

KEEPALIVE_IDLE = 5
"""Seconds of silence after which a connection is probed."""
KEEPALIVE_INTERVAL = 2
"""Seconds between probes that are not answered."""
DEAD_AFTER = 19
"""Seconds without an answer to probes after which the kernel ends a connection that waits. That is the last resort, for
Envoy passes it on as an orderly end: the link finds a lost peer after 8 s (`sidecar.lost`), and the kernel answers what
is sent to it from then on with a reset, probes and data that is sent again alike. A change of path (direct to relay)
takes up to 6.1 s. TCP_USER_TIMEOUT would bound unacknowledged data, too, and is not used: Linux counts the time for
which the peer's window is closed (net/ipv4/tcp_timer.c, tcp_probe_timer), so it cuts a reader that pauses longer."""
KEEPALIVE_PROBES = (DEAD_AFTER - KEEPALIVE_IDLE) // KEEPALIVE_INTERVAL
"""Unanswered probes until DEAD_AFTER."""

MAX_HELD = 4096
"""Connections that the programs of a CVM hold through one egress listener at a time, and one caller at an ingress; the
next one is closed at once. One that nobody reads from takes some 70 KiB at its server's CVM (`xds.bootstrap.MAX_HEAP`),
so one caller takes 280 of 512 MiB there, and the others are still accepted."""

# Linux' numbers (include/uapi/linux/in.h, tcp.h, asm-generic/socket.h).
_SOL_SOCKET, _SO_KEEPALIVE = 1, 9
_IPPROTO_TCP, _TCP_KEEPIDLE, _TCP_KEEPINTVL, _TCP_KEEPCNT = 6, 4, 5, 6


def egress_filters(route: EgressRoute, cluster: str) -> list[Filter]:
    """What an egress listener does with a connection. Depends on nothing that may change without cutting: neither
    endpoints nor SANs. `sole` is what it does depend on."""
    proxy = _tcp_proxy(f"egress.{route.name}", cluster)
    proxy.max_connect_attempts = CONNECT_ATTEMPTS
    proxy.backoff_options = BackoffStrategy(base_interval=FIRST_PAUSE, max_interval=LONGEST_PAUSE)
    if route.sole is not None:
        proxy.metadata_match = subset.only(route.sole)
    return [
        connection_limit(f"egress.{route.name}", MAX_HELD),
        network_filter("envoy.filters.network.tcp_proxy", Any.pack(proxy)),
    ]


def egress_cluster(route: EgressRoute, caller: str, cluster: Cluster) -> None:
    """Completes the route's cluster; `caller` is the URI SAN of the leaf that the route presents."""
    cluster.transport_socket = tls.upstream(
        identity=route.identity, server_name=caller_name(caller), peer_sans=route.peer_sans
    )
    cluster.upstream_connection_options = UpstreamConnectionOptions(
        tcp_keepalive=TcpKeepalive(
            keepalive_time=KEEPALIVE_IDLE, keepalive_interval=KEEPALIVE_INTERVAL, keepalive_probes=KEEPALIVE_PROBES
        )
    )


def ingress_cluster(ingress: Ingress, cluster: Cluster) -> None:
    """Completes the local server's cluster: the address from which it is dialled, and what it is told first."""
    cluster.upstream_bind_config = BindConfig(source_address=SocketAddress(address=ingress.source, port_value=0))
    cluster.transport_socket_matches = [refusal.socket_match()]
    if ingress.proxy_protocol:
        cluster.transport_socket = refusal.proxy_protocol()


def ingress_chains(ingress: Ingress, cluster: str) -> tuple[list[FilterChain], FilterChain]:
    """A chain for each caller and one for those that are denied, and the chain for everybody else."""
    chains = []
    uris = sorted({principal.uri for principal in ingress.allowed})
    for uri in uris:
        chain = _chain(ingress, cluster, Principal(uri=uri))
        chain.filter_chain_match = FilterChainMatch(server_names=[caller_name(uri)])
        chains.append(chain)
    if chains and ingress.denied:
        # Envoy looks at the name before the source: without names this chain would not be looked at.
        names = [caller_name(uri) for uri in uris]
        ranges = [CidrRange(address_prefix=address, prefix_len=32) for address in sorted(set(ingress.denied))]
        match = FilterChainMatch(server_names=names, source_prefix_ranges=ranges)
        chains.append(FilterChain(name=f"{ingress.name}/denied", filter_chain_match=match))
    # A chain without filters closes what comes to it. It is never left out: Envoy demands a chain of a listener.
    return chains, FilterChain(name=f"{ingress.name}/nobody")


def ingress_listener_filters(first: int | None = None) -> list[ListenerFilter]:
    """What an ingress listener looks at before it chooses a chain. `first`: bytes of its buffer in the beginning; None:
    Envoy's default."""
    inspector = Any.pack(TlsInspector(initial_read_buffer_size=first))
    return [ListenerFilter(name="envoy.filters.listener.tls_inspector", typed_config=inspector)]


def ingress_socket_options() -> list[SocketOption]:
    """Options of an ingress listener's socket; Linux gives them to every connection that it accepts."""
    return [
        _option("SO_KEEPALIVE", _SOL_SOCKET, _SO_KEEPALIVE, 1),
        _option("TCP_KEEPIDLE", _IPPROTO_TCP, _TCP_KEEPIDLE, KEEPALIVE_IDLE),
        _option("TCP_KEEPINTVL", _IPPROTO_TCP, _TCP_KEEPINTVL, KEEPALIVE_INTERVAL),
        _option("TCP_KEEPCNT", _IPPROTO_TCP, _TCP_KEEPCNT, KEEPALIVE_PROBES),
    ]


def public_filter(name: str, cluster: str) -> Filter:
    """What a public listener does with a connection whose handshake is done: the ingress' way to the local server."""
    proxy = _to_local_server(f"public.{name}", cluster)
    proxy.idle_timeout = PUBLIC_IDLE
    return network_filter("envoy.filters.network.tcp_proxy", Any.pack(proxy))


def caller_name(uri: str) -> str:
    """The SNI by which a caller announces itself: a host name of one label, whatever the URI holds."""
    return f"caller-{tls.digest(uri)}"


def _chain(ingress: Ingress, cluster: str, caller: Principal) -> FilterChain:
    proxy = _to_local_server(f"ingress.{ingress.name}", cluster)
    return FilterChain(
        name=f"{ingress.name}/{caller.uri}",
        transport_socket=tls.downstream(identity=ingress.identity, caller=caller),
        transport_socket_connect_timeout=HANDSHAKE_TIMEOUT,
        filters=[
            connection_limit(f"ingress.{ingress.name}.{caller_name(caller.uri)}", MAX_HELD),
            network_filter("envoy.filters.network.tcp_proxy", Any.pack(proxy)),
        ],
    )


def connection_limit(stat_prefix: str, most: int) -> Filter:
    """The first filter of a chain in which `most` connections are held at a time."""
    limit = ConnectionLimit(stat_prefix=stat_prefix, max_connections=most)
    return network_filter("envoy.filters.network.connection_limit", Any.pack(limit))


def network_filter(name: str, config: Any) -> Filter:
    """A filter of a listener's chain."""
    return Filter(name=name, typed_config=config)


def _to_local_server(stat_prefix: str, cluster: str) -> TcpProxy:
    proxy = _tcp_proxy(stat_prefix, cluster)
    # The certificate is judged first: the local server hears nothing of whoever is refused, not even a connect.
    proxy.upstream_connect_mode = UpstreamConnectMode.ON_DOWNSTREAM_TLS_HANDSHAKE
    proxy.max_early_data_bytes = 0
    proxy.max_connect_attempts = refusal.ATTEMPTS
    proxy.backoff_options = refusal.pause()
    return proxy


def _tcp_proxy(stat_prefix: str, cluster: str) -> TcpProxy:
    # No idle timeout: a database connection may be silent for days. Dead peers are found by TCP's keep-alive.
    return TcpProxy(stat_prefix=stat_prefix, cluster=cluster, idle_timeout=NEVER)


def _option(name: str, level: int, number: int, value: int) -> SocketOption:
    return SocketOption(description=name, level=level, name=number, int_value=value)
