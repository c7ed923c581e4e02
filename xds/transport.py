"""How bytes travel from one Envoy to another: the one place to change it. Pure.

`ConnectStreams` (the default): each TCP connection is an HTTP/2 CONNECT stream on one mutual TLS 1.3 connection a
worker and endpoint. Opening costs a round trip less than a TLS connection of its own and no signature.
`OwnConnections`: each TCP connection is a TLS 1.3 connection. Both check the same things: the server's SAN here, the
caller's principal there.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Protocol

from xds import subset, tls
from xds.protos import (
    Any,
    Cluster,
    Filter,
    Http2ProtocolOptions,
    HttpConnectionManager,
    HttpConnectionManagerCodecType,
    HttpConnectionManagerUpgradeConfig,
    HttpFilter,
    HttpProtocolOptions,
    HttpProtocolOptionsExplicitHttpConfig,
    HttpRbac,
    KeepaliveSettings,
    NetworkRbac,
    Permission,
    Policy,
    PrincipalAuthenticated,
    Rbac,
    RbacAction,
    RbacPerRoute,
    RbacPrincipal,
    Rds,
    Route,
    RouteAction,
    RouteActionUpgradeConfig,
    RouteActionUpgradeConfigConnectConfig,
    RouteConfiguration,
    RouteMatch,
    RouteMatchConnectMatcher,
    Router,
    StringMatcher,
    TcpProxy,
    TcpProxyTunnelingConfig,
    TransportSocket,
    UpstreamHttpOptions,
    VirtualHost,
)
from xds.spec import EgressRoute, Ingress, Principal, Sole

NEVER = timedelta(0)
"""Envoy reads 0 as 'no timeout'."""
CONNECT_ATTEMPTS = 3
"""Attempts for one client connection before it is closed. The balancer moves on with each, so one dead endpoint costs
a retry."""

STREAM_WINDOW = 4 << 20
"""Bytes that one stream may have under way. A bulk stream fills the queues of its link: over wireguard-go the round
trip then grows to 10 ms, where 1 MiB holds a stream to 0.7 of what the link carries (`./mesh bench path`: 1.3 of
1.9 Gbit/s; with 4 MiB 1.6 of 1.6). It is also what Envoy buffers for a reader that stalls."""
STREAMS_PER_CONNECTION = 500
"""Streams on one TLS connection before the next one is opened: the connection's window, at most 2^31 - 1 (RFC 9113,
6.9.1), has room for all of their windows."""
CONNECTION_WINDOW = STREAM_WINDOW * STREAMS_PER_CONNECTION
"""Bytes that one connection may have under way: so many that the stream windows bind first. A smaller window would
couple the streams: 16 clients that do not read would fill 16 MiB and stop everyone else on the connection for as long
as they like."""
PING_INTERVAL = timedelta(seconds=5)
"""How often a connection is pinged, so that a dead peer is noticed by those who only wait."""
PING_TIMEOUT = timedelta(seconds=2)
"""A ping unanswered for so long ends the connection: two lost packets' retransmissions (RTO ≥ 0.2 s, doubling) fit
in."""
PING_WHEN_IDLE = timedelta(milliseconds=500)
"""A new stream on a connection that was silent for so long is preceded by a ping, so a dead peer is found in
PING_TIMEOUT."""

RENEW_AFTER = timedelta(minutes=15)
"""Age at which a client stops opening streams on a connection and opens a new connection, with the leaf of that day.
Streams that are open stay. A connection that lived for ever would vouch for its client for ever."""
RENEW_AT_THE_LATEST = 2 * RENEW_AFTER
"""Age at which the server insists on it, should a client not do so."""

_RBAC = "envoy.filters.http.rbac"


class Transport(Protocol):
    """One way to carry connections between Envoys."""

    def egress_filters(self, route: EgressRoute, cluster: str) -> list[Filter]:
        """What an egress listener does with a connection. Must not depend on what may change without cutting:
        endpoints, SANs. `sole` is what it does depend on."""

    def egress_cluster(self, route: EgressRoute, cluster: Cluster) -> None:
        """Completes the route's cluster with what this transport needs."""

    def ingress_socket(self, ingress: Ingress) -> TransportSocket:
        """The TLS side of an ingress listener."""

    def ingress_filters(self, ingress: Ingress, cluster: str, routes: str) -> list[Filter]:
        """What an ingress listener does with a connection; `routes` names the route configuration, if there is one."""

    def ingress_routes(self, ingress: Ingress, cluster: str, routes: str) -> RouteConfiguration | None:
        """The ingress's route configuration, by RDS; None when this transport has none."""


class ConnectStreams:
    """CONNECT streams over HTTP/2 over one mutual TLS connection."""

    _alpn = ("h2",)

    def egress_filters(self, route: EgressRoute, cluster: str) -> list[Filter]:
        proxy = _tcp_proxy(f"egress.{route.name}", cluster, route.sole)
        # The authority only helps a reader of a trace: the ingress's own port says which server is meant, and a name
        # that decides nothing cannot be forged to any effect.
        proxy.tunneling_config = TcpProxyTunnelingConfig(hostname=f"{route.name}.mesh:{route.port}")
        return [_filter("envoy.filters.network.tcp_proxy", Any.pack(proxy))]

    def egress_cluster(self, route: EgressRoute, cluster: Cluster) -> None:
        cluster.transport_socket = tls.upstream(identity=route.identity, peer_sans=route.peer_sans, alpn=self._alpn)
        options = UpstreamHttpOptions(
            explicit_http_config=HttpProtocolOptionsExplicitHttpConfig(http2_protocol_options=_http2(client=True)),
            common_http_protocol_options=HttpProtocolOptions(max_connection_duration=RENEW_AFTER),
        )
        cluster.typed_extension_protocol_options = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": Any.pack(options)
        }

    def ingress_socket(self, ingress: Ingress) -> TransportSocket:
        # One long connection has nothing to resume, and a ticket would outlive the certificate that it stands for.
        return tls.downstream(identity=ingress.identity, alpn=self._alpn, resumption=False)

    def ingress_filters(self, ingress: Ingress, cluster: str, routes: str) -> list[Filter]:  # noqa: ARG002
        manager = HttpConnectionManager(
            codec_type=HttpConnectionManagerCodecType.HTTP2,
            stat_prefix=f"ingress.{ingress.name}",
            # Routes by RDS: who may call is in there, so letting one more in changes no filter chain and cuts nobody.
            rds=Rds(config_source=tls.ads(), route_config_name=routes),
            http_filters=[
                # Denies everyone; the route opens it. A route that forgot its list lets nobody in.
                HttpFilter(name=_RBAC, typed_config=Any.pack(HttpRbac(rules=_rbac(())))),
                HttpFilter(
                    name="envoy.filters.http.router", typed_config=Any.pack(Router(suppress_envoy_headers=True))
                ),
            ],
            http2_protocol_options=_http2(client=False),
            common_http_protocol_options=HttpProtocolOptions(max_connection_duration=RENEW_AT_THE_LATEST),
            upgrade_configs=[HttpConnectionManagerUpgradeConfig(upgrade_type="CONNECT")],
            stream_idle_timeout=NEVER,
            request_timeout=NEVER,
            request_headers_timeout=timedelta(seconds=5),
            generate_request_id=False,
            skip_xff_append=True,
        )
        return [_filter("envoy.filters.network.http_connection_manager", Any.pack(manager))]

    def ingress_routes(self, ingress: Ingress, cluster: str, routes: str) -> RouteConfiguration | None:
        connect = RouteActionUpgradeConfig(
            upgrade_type="CONNECT", connect_config=RouteActionUpgradeConfigConnectConfig()
        )
        callers = RbacPerRoute(rbac=HttpRbac(rules=_rbac(ingress.allowed)))
        route = Route(
            match=RouteMatch(connect_matcher=RouteMatchConnectMatcher()),
            route=RouteAction(cluster=cluster, timeout=NEVER, idle_timeout=NEVER, upgrade_configs=[connect]),
            typed_per_filter_config={_RBAC: Any.pack(callers)},
        )
        return RouteConfiguration(
            name=routes, virtual_hosts=[VirtualHost(name=ingress.name, domains=["*"], routes=[route])]
        )


class OwnConnections:
    """A TLS connection for each TCP connection. The caller list is in the filter chain: changing it cuts every
    connection."""

    def egress_filters(self, route: EgressRoute, cluster: str) -> list[Filter]:
        return [
            _filter(
                "envoy.filters.network.tcp_proxy", Any.pack(_tcp_proxy(f"egress.{route.name}", cluster, route.sole))
            )
        ]

    def egress_cluster(self, route: EgressRoute, cluster: Cluster) -> None:
        cluster.transport_socket = tls.upstream(identity=route.identity, peer_sans=route.peer_sans, alpn=())

    def ingress_socket(self, ingress: Ingress) -> TransportSocket:
        return tls.downstream(identity=ingress.identity, alpn=(), resumption=True)

    def ingress_filters(self, ingress: Ingress, cluster: str, routes: str) -> list[Filter]:  # noqa: ARG002
        # Late import: only this transport needs it, and each of these modules costs memory in the sidecar.

        rbac = NetworkRbac(stat_prefix=f"ingress.{ingress.name}.", rules=_rbac(ingress.allowed))
        proxy = _tcp_proxy(f"ingress.{ingress.name}", cluster)
        return [
            _filter("envoy.filters.network.rbac", Any.pack(rbac)),
            _filter("envoy.filters.network.tcp_proxy", Any.pack(proxy)),
        ]

    def ingress_routes(self, *_: object) -> RouteConfiguration | None:
        return None


def _filter(name: str, config: Any) -> Filter:
    return Filter(name=name, typed_config=config)


def _tcp_proxy(stat_prefix: str, cluster: str, sole: Sole | None = None) -> TcpProxy:
    # No idle timeout: a database connection may be silent for days. Dead peers are found by pings and TCP keep-alive.
    proxy = TcpProxy(
        stat_prefix=stat_prefix, cluster=cluster, idle_timeout=NEVER, max_connect_attempts=CONNECT_ATTEMPTS
    )
    if sole is not None:
        proxy.metadata_match = subset.only(sole)
    return proxy


def _http2(*, client: bool) -> Http2ProtocolOptions:
    keepalive = KeepaliveSettings(interval=PING_INTERVAL, timeout=PING_TIMEOUT)
    if client:
        keepalive.connection_idle_interval = PING_WHEN_IDLE
    return Http2ProtocolOptions(
        max_concurrent_streams=STREAMS_PER_CONNECTION,
        initial_stream_window_size=STREAM_WINDOW,
        initial_connection_window_size=CONNECTION_WINDOW,
        allow_connect=True,
        connection_keepalive=keepalive,
    )


def _rbac(allowed: tuple[Principal, ...]) -> Rbac:
    """Lets in `allowed` and nobody else: with ALLOW, no policy that matches means no."""
    if not allowed:
        return Rbac(action=RbacAction.ALLOW)
    principals = [
        RbacPrincipal(
            authenticated=PrincipalAuthenticated(
                principal_name=StringMatcher(prefix=p.uri) if p.prefix else StringMatcher(exact=p.uri)
            )
        )
        for p in allowed
    ]
    policy = Policy(permissions=[Permission(any=True)], principals=principals)
    return Rbac(action=RbacAction.ALLOW, policies={"callers": policy})
