"""How bytes travel to a TLS server that is no part of the mesh: its name, its certificate, its connections. Pure.

Local programs speak in clear to a loopback address, and this Envoy speaks TLS to the server. The name is resolved by
Envoy, again and again: each answer says how long it holds. Envoy's *logical* DNS fits: an answer without addresses, or
none at all, leaves the addresses of before (*strict* DNS takes "no such name" for "no address any more"), and a change
of addresses cuts no connection. An answer's addresses are tried one after the other, of both families (RFC 8305).
"""

from __future__ import annotations

import ipaddress
from datetime import timedelta

from xds import tls
from xds.protos import (
    Address,
    Any,
    BackoffStrategy,
    CaresDnsResolverConfig,
    CertificateValidationContext,
    CircuitBreakers,
    CircuitBreakersThresholds,
    Cluster,
    ClusterCustomClusterType,
    ClusterDiscoveryType,
    CommonTlsContext,
    DataSource,
    DnsCluster,
    DnsClusterRefreshRate,
    DnsLookupFamily,
    DnsResolverOptions,
    Filter,
    SocketAddress,
    StringMatcher,
    SubjectAltNameMatcher,
    SubjectAltNameMatcherSanType,
    TcpKeepalive,
    TcpProxy,
    TlsParameters,
    TlsParametersTlsProtocol,
    TransportSocket,
    TypedExtensionConfig,
    UpstreamConnectionOptions,
    UpstreamTlsContext,
)
from xds.spec import Endpoint, Outside

CONNECT_TIMEOUT = timedelta(seconds=5)
"""For TCP and TLS together, over all addresses of a name. The server may be at the other end of the world."""
CONNECT_ATTEMPTS = 2
"""Attempts for one client connection: one more, for a packet lost at the wrong moment. A server whose certificate is
refused is asked as often."""
MAX_CONNECTIONS = 4096
"""To one server at once. Whoever answers for its name can say 127.0.0.1 and the port on which this Envoy listens; each
connection would then open the next. It ends at this number, and after CONNECT_TIMEOUT, as none of them is TLS."""
REFRESH = timedelta(seconds=5)
"""How often a name is resolved whose answer says 0 s (Envoy's default, said here)."""
SHORTEST = timedelta(seconds=1)
"""How often it is at most, whatever its answer says."""
FAILED_FIRST, FAILED_LONGEST = timedelta(seconds=1), timedelta(seconds=10)
"""Pauses after a look-up that failed, growing at random from the first to the last."""
QUERY_SECONDS = 2
"""For one attempt at the resolver, which is this CVM's own and answers within 1 s (dns.forward)."""
KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES = 60, 10, 6
"""Seconds of silence until a connection is probed, seconds between probes, and how many unanswered ones end it: NATs on
the way forget a silent connection after minutes."""


def is_name(host: str) -> bool:
    """Whether `host` has to be resolved."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


def cluster(entry: Outside, resolver: Endpoint | None, unfinished: Cluster) -> None:
    """Completes the cluster: how its host is found, and TLS."""
    unfinished.connect_timeout = CONNECT_TIMEOUT
    limits = CircuitBreakersThresholds(max_connections=MAX_CONNECTIONS, max_pending_requests=MAX_CONNECTIONS)
    unfinished.circuit_breakers = CircuitBreakers(thresholds=[limits])
    unfinished.upstream_connection_options = UpstreamConnectionOptions(
        tcp_keepalive=TcpKeepalive(
            keepalive_time=KEEPALIVE_IDLE, keepalive_interval=KEEPALIVE_INTERVAL, keepalive_probes=KEEPALIVE_PROBES
        )
    )
    unfinished.transport_socket = _upstream(entry)
    if is_name(entry.host) and resolver is not None:
        unfinished.cluster_type = ClusterCustomClusterType(
            name="envoy.clusters.dns", typed_config=Any.pack(_resolved(resolver))
        )
        # The mesh must not wait for a name outside: Envoy takes no listener before its first clusters are there.
        unfinished.wait_for_warm_on_init = False
    else:
        unfinished.type = ClusterDiscoveryType.STATIC


def filters(entry: Outside, cluster_name: str) -> list[Filter]:
    """What the listener does with a connection. Nothing of it leaves before the server's certificate was judged."""
    proxy = TcpProxy(
        stat_prefix=f"outside.{entry.name}",
        cluster=cluster_name,
        idle_timeout=timedelta(0),
        max_connect_attempts=CONNECT_ATTEMPTS,
        backoff_options=BackoffStrategy(
            base_interval=timedelta(milliseconds=10), max_interval=timedelta(milliseconds=200)
        ),
    )
    return [Filter(name="envoy.filters.network.tcp_proxy", typed_config=Any.pack(proxy))]


def digest(entry: Outside) -> str:
    """Of everything that an entry says."""
    return tls.digest(repr(entry))


def _resolved(resolver: Endpoint) -> DnsCluster:
    address = Address(socket_address=SocketAddress(address=resolver.address, port_value=resolver.port))
    config = CaresDnsResolverConfig(
        resolvers=[address],
        # A name is asked for as it is written: the machine's search list is the host's to set.
        dns_resolver_options=DnsResolverOptions(no_default_search_domain=True),
        query_timeout_seconds=QUERY_SECONDS,
        query_tries=2,
    )
    return DnsCluster(
        all_addresses_in_single_endpoint=True,
        dns_lookup_family=DnsLookupFamily.ALL,
        respect_dns_ttl=True,
        dns_refresh_rate=REFRESH,
        dns_min_refresh_rate=SHORTEST,
        dns_failure_refresh_rate=DnsClusterRefreshRate(base_interval=FAILED_FIRST, max_interval=FAILED_LONGEST),
        typed_dns_resolver_config=TypedExtensionConfig(
            name="envoy.network.dns_resolver.cares", typed_config=Any.pack(config)
        ),
    )


def _upstream(entry: Outside) -> TransportSocket:
    named = is_name(entry.server_name)
    kind = SubjectAltNameMatcherSanType.DNS if named else SubjectAltNameMatcherSanType.IP_ADDRESS
    wanted = SubjectAltNameMatcher(san_type=kind, matcher=StringMatcher(exact=entry.server_name))
    roots = (
        DataSource(filename=entry.roots_file) if entry.roots_pem is None else DataSource(inline_string=entry.roots_pem)
    )
    context = UpstreamTlsContext(
        common_tls_context=CommonTlsContext(
            # Servers outside may be older than the mesh; nothing below 1.2 is TLS any more (RFC 8996).
            tls_params=TlsParameters(
                tls_minimum_protocol_version=TlsParametersTlsProtocol.TLSv1_2,
                tls_maximum_protocol_version=TlsParametersTlsProtocol.TLSv1_3,
            ),
            validation_context=CertificateValidationContext(trusted_ca=roots, match_typed_subject_alt_names=[wanted]),
        ),
        # RFC 6066: an address is no server name.
        sni=entry.server_name if named else "",
    )
    return TransportSocket(name="envoy.transport_sockets.tls", typed_config=Any.pack(context))
