"""A public listener as Envoy's message: TLS for clients without a certificate, and one answer for plain HTTP. Pure.

TLS ends here and the local server gets the bytes as they are, from the same cluster as the ingress beside it: nothing
reads HTTP, so whatever runs over TLS works. What does not begin with a ClientHello is taken for HTTP and answered.
"""

from __future__ import annotations

from datetime import timedelta

from xds import tls, transport
from xds.protos import (
    Any,
    DataSource,
    DirectResponseAction,
    Filter,
    FilterChain,
    FilterChainMatch,
    Http1ProtocolOptions,
    HttpConnectionManager,
    HttpConnectionManagerCodecType,
    HttpFilter,
    HttpProtocolOptions,
    Listener,
    Route,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from xds.resources import BUFFER, socket_address
from xds.spec import PublicListener

MAX_CONNECTIONS = 2048
"""Connections that the public listeners of a CVM hold together, each its share; the next one is closed at once. The
gateway of dstack brings 2,000 for an app at most (dstack 0.5.9, its default), so with one listener it is met only
beside the gateway. At some 70 KiB for one whose client does not read (`xds.bootstrap.MAX_HEAP`) they take 140 MiB."""
HELLO_SECONDS = timedelta(seconds=5)
"""For a ClientHello to be there: it may be lost twice, for TCP sends again after 1 and 3 s (RFC 6298). Until then the
connection counts for Envoy's own limit alone (`xds.bootstrap.MAX_DOWNSTREAM_CONNECTIONS`)."""
HELLO_BUFFER = 512
"""Bytes that a connection gets for its ClientHello, doubled while that is longer, to 16 KiB. Envoy takes 256 at least,
and 16 KiB at once where nothing is said: for each connection that never says a word."""
PLAIN_SECONDS = timedelta(seconds=10)
"""For all of a plain HTTP connection: a request line, and the answer."""
_ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
"""An empty message, whose module nothing else needs."""
ANSWER = "This port speaks HTTPS, and this was no TLS. Use https:// in place of http://.\n"
"""What plain HTTP gets, with status 400."""


def listener_name(listener: PublicListener) -> str:
    """The listener, by its address: two backends may swap ports."""
    return f"public/{listener.address}:{listener.port}"


def listener(public: PublicListener, most: int = MAX_CONNECTIONS) -> Listener:
    """The listener, which holds `most` connections. Nothing in it changes with its certificate, which comes by SDS, so
    a rotation cuts nobody.
    """
    chain = FilterChain(
        name=f"{public.name}/tls",
        filter_chain_match=FilterChainMatch(transport_protocol="tls"),
        transport_socket=tls.public(identity=public.identity, alpn=public.alpn),
        transport_socket_connect_timeout=transport.HANDSHAKE_TIMEOUT,
        filters=[
            transport.connection_limit(f"public.{public.name}.tls", most),
            transport.public_filter(public.name, f"local/{public.ingress}"),
        ],
    )
    return Listener(
        name=listener_name(public),
        address=socket_address(public.address, public.port),
        filter_chains=[chain],
        default_filter_chain=FilterChain(
            name=f"{public.name}/plain",
            filters=[transport.connection_limit(f"public.{public.name}.plain", most), _answer()],
        ),
        listener_filters=transport.ingress_listener_filters(HELLO_BUFFER),
        listener_filters_timeout=HELLO_SECONDS,
        socket_options=transport.ingress_socket_options(),
        per_connection_buffer_limit_bytes=BUFFER,
    )


def _answer() -> Filter:
    refuse = Route(
        match=RouteMatch(prefix="/"),
        direct_response=DirectResponseAction(status=400, body=DataSource(inline_string=ANSWER)),
    )
    manager = HttpConnectionManager(
        stat_prefix="plain",
        codec_type=HttpConnectionManagerCodecType.HTTP1,
        route_config=RouteConfiguration(
            name="plain", virtual_hosts=[VirtualHost(name="all", domains=["*"], routes=[refuse])]
        ),
        http_protocol_options=Http1ProtocolOptions(accept_http_10=True, default_host_for_http_10="none"),
        # Envoy demands a filter that ends the chain. No request comes to it.
        http_filters=[HttpFilter(name="envoy.filters.http.router", typed_config=Any(type_url=_ROUTER))],
        common_http_protocol_options=HttpProtocolOptions(
            idle_timeout=PLAIN_SECONDS, max_connection_duration=PLAIN_SECONDS, max_requests_per_connection=1
        ),
        request_headers_timeout=PLAIN_SECONDS,
        request_timeout=PLAIN_SECONDS,
        stream_idle_timeout=PLAIN_SECONDS,
    )
    return transport.network_filter("envoy.filters.network.http_connection_manager", Any.pack(manager))
