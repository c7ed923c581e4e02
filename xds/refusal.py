"""A local server that refuses a connection: the caller is told by a reset. Pure.

An Envoy whose upstream connection cannot be made closes the downstream one with FIN, which looks like an empty answer
(source/common/tcp_proxy/tcp_proxy.cc, `onInitFailure`). One whose upstream connection is *reset* resets the downstream
one. So the cluster of a local server has a second priority: a listener of the same Envoy that resets whatever comes. It
is asked when outlier detection has put the server aside, which the first failed attempt makes it do.

Of connections that come in from the mesh. Those that go out and are reset before Envoy sees them are `vip.resets`.
"""

from __future__ import annotations

import struct
from datetime import timedelta

from xds.protos import (
    Address,
    Any,
    BackoffStrategy,
    ClusterTransportSocketMatch,
    Filter,
    FilterChain,
    LbAddress,
    LbEndpoint,
    Listener,
    ListenerFilter,
    LocalityLbEndpoints,
    Metadata,
    OutlierDetection,
    ProxyProtocolConfig,
    ProxyProtocolConfigVersion,
    ProxyProtocolListenerFilter,
    ProxyProtocolUpstreamTransport,
    RawBuffer,
    SocketAddress,
    SocketOption,
    Struct,
    TcpProxy,
    TransportSocket,
    UpstreamConnectMode,
    Value,
)

PORT = 61054
"""Of the listener that resets, on the address from which local servers are dialled. Above Linux' ephemeral ports (32768
to 60999), for connections to local servers come from those."""
ATTEMPTS = 400
"""Attempts at the local server. Envoy's main thread puts it aside about a millisecond after the first one failed, so
the second one is reset already; 400 are for a machine on which it does not get to run for two seconds."""
PAUSE = timedelta(milliseconds=10)
"""At most so much lies between two attempts; half of it on average."""
ASIDE = timedelta(milliseconds=100)
"""How long a server that refused is not asked, and how often Envoy looks whether that is over: one that comes back is
asked again within 0.2 s."""
BREATH = timedelta(milliseconds=100)
"""How long a connection on which the caller says nothing is left open before it is reset. A reset that comes between
the PROXY protocol header and the data that is written with it reaches the caller as an end: Envoy's socket for that
protocol drops the error of its first write (source/extensions/transport_sockets/proxy_protocol/proxy_protocol.cc,
`doWrite`)."""
_NAMESPACE = "envoy.transport_socket_match"
"""Where Envoy looks for what chooses an endpoint's transport socket (its protocol's rule)."""
_SOL_SOCKET, _SO_LINGER = 1, 13


def listener_name(source: str) -> str:
    """The listener that resets, for local servers that are dialled from `source`."""
    return f"refuse/{source}"


def listener(source: str) -> Listener:
    """It closes a connection when something is sent on it after the PROXY protocol header, or after BREATH: its proxy
    leads to a cluster that is not there. A socket that lingers for 0 s closes by a reset (socket(7)), and Linux gives a
    listener's options to what it accepts."""
    proxy = TcpProxy(
        stat_prefix="refuse",
        cluster="nobody",
        idle_timeout=BREATH,
        upstream_connect_mode=UpstreamConnectMode.ON_DOWNSTREAM_DATA,
        max_early_data_bytes=1,
    )
    close = Filter(name="envoy.filters.network.tcp_proxy", typed_config=Any.pack(proxy))
    header = ListenerFilter(
        name="envoy.filters.listener.proxy_protocol", typed_config=Any.pack(ProxyProtocolListenerFilter())
    )
    linger = SocketOption(
        description="SO_LINGER", level=_SOL_SOCKET, name=_SO_LINGER, buf_value=struct.pack("ii", 1, 0)
    )
    return Listener(
        name=listener_name(source),
        address=_address(source),
        filter_chains=[FilterChain(name="reset", filters=[close])],
        listener_filters=[header],
        socket_options=[linger],
        ignore_global_conn_limit=True,
    )


def second_priority(source: str) -> LocalityLbEndpoints:
    """The listener as an endpoint for whoever finds no other."""
    host = LbEndpoint(endpoint=LbAddress(address=_address(source)), metadata=_speaks_first())
    return LocalityLbEndpoints(lb_endpoints=[host], priority=1)


def socket_match() -> ClusterTransportSocketMatch:
    """Connections to the listener begin with a PROXY protocol header, whatever the local server gets. Envoy writes it
    when it has seen its connect succeed: a reset that came before would count as a connect that failed."""
    match = _speaks_first().filter_metadata[_NAMESPACE]
    return ClusterTransportSocketMatch(name="refusal", match=match, transport_socket=proxy_protocol())


def proxy_protocol() -> TransportSocket:
    """Plain TCP that begins with a PROXY protocol v2 header: the address that the client of this Envoy came from."""
    raw = TransportSocket(name="envoy.transport_sockets.raw_buffer", typed_config=Any.pack(RawBuffer()))
    header = ProxyProtocolUpstreamTransport(
        config=ProxyProtocolConfig(version=ProxyProtocolConfigVersion.V2), transport_socket=raw
    )
    return TransportSocket(name="envoy.transport_sockets.upstream_proxy_protocol", typed_config=Any.pack(header))


def detection() -> OutlierDetection:
    """One failed connect puts the server aside."""
    return OutlierDetection(
        split_external_local_origin_errors=True,
        consecutive_local_origin_failure=1,
        enforcing_consecutive_local_origin_failure=100,
        consecutive_5xx=0,
        enforcing_consecutive_5xx=0,
        enforcing_success_rate=0,
        enforcing_local_origin_success_rate=0,
        interval=ASIDE,
        base_ejection_time=ASIDE,
        max_ejection_time=ASIDE,
        # One of the two hosts: where the server is put aside, the listener that resets cannot be.
        max_ejection_percent=50,
    )


def pause() -> BackoffStrategy:
    """Between attempts."""
    return BackoffStrategy(base_interval=PAUSE, max_interval=PAUSE)


def _speaks_first() -> Metadata:
    return Metadata(filter_metadata={_NAMESPACE: Struct(fields={"refusal": Value(bool_value=True)})})


def _address(source: str) -> Address:
    return Address(socket_address=SocketAddress(address=source, port_value=PORT))
