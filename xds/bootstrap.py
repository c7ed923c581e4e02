"""The document that Envoy starts with, and its command line. Pure.

Everything else comes by ADS; the document never changes while a CVM runs, so a restarted Envoy starts with the same
one.
"""

from __future__ import annotations

import json

MAX_MESSAGE_WINDOW = 1 << 24
"""Bytes under way on the ADS stream: a snapshot of thousands of routes in one go."""
MAX_DOWNSTREAM_CONNECTIONS = 50_000
"""Connections of public listeners, those that have not said a word too. Those of the mesh's own listeners and of the
admin interface are not refused for it (`ignore_global_conn_limit`). Two descriptors each stay under the usual hard
limit of descriptors in a container (1,048,576)."""

MAX_HEAP = 512 << 20
"""Bytes of heap that Envoy may take. Without traffic it holds 10 MiB; 6,000 connections into a server that does not
read made it 160 MiB at their caller and 420 MiB at the server (Envoy 1.40)."""
SHRINK_AT, STOP_AT = 0.9, 0.95
"""Shares of the heap's limit at which Envoy gives unused pages back, and at which it stops to accept. What is held goes
on. New connections wait in the kernel's queue until memory is free again, as before any server that is too busy."""
HEAP_CHECK = "0.25s"
"""How often the heap is looked at (Envoy's default is 1 s)."""


def bootstrap(
    *,
    node_id: str,
    cluster: str,
    xds_socket: str,
    admin_socket: str,
    max_heap: int = MAX_HEAP,
    max_connections: int = MAX_DOWNSTREAM_CONNECTIONS,
) -> str:
    """The bootstrap as JSON. Sockets are absolute paths; `max_heap` is in bytes, `max_connections` those of public
    listeners."""
    grpc = {
        "envoy_grpc": {
            "cluster_name": "xds",
            # Envoy's own back-off grows to 30 s. The server is local and supervised: after an outage it should be
            # found at once.
            "retry_policy": {"retry_back_off": {"base_interval": "0.05s", "max_interval": "0.5s"}},
        }
    }
    # 0: wait for the first clusters and listeners for ever. "Live" then means configured, and nothing half-known is
    # served.
    source = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
    document = {
        "node": {"id": node_id, "cluster": cluster},
        "admin": {"address": {"pipe": {"path": admin_socket, "mode": 0o600}}, "ignore_global_conn_limit": True},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [grpc],
                "set_node_on_first_message_only": True,
            },
            "cds_config": source,
            "lds_config": source,
        },
        "static_resources": {"clusters": [_xds_cluster(xds_socket)]},
        # No sinks, so statistics need no timer: they are brought up to date when somebody asks.
        "stats_flush_on_admin": True,
        "overload_manager": _overload_manager(max_heap, max_connections),
    }
    return json.dumps(document, indent=1, sort_keys=True)


def argv(
    envoy_path: str, config_path: str, *, drain_seconds: int = 0, concurrency: int = 2, log_level: str = "warning"
) -> tuple[str, ...]:
    """Envoy's command line. `drain_seconds=0`: a replaced filter chain closes its connections at once
    (`EgressRoute.generation`).

    A graceful stop is therefore the supervisor's: it waits until connections are gone, or its deadline, before it
    ends Envoy.
    """
    return (
        envoy_path,
        "--config-path",
        config_path,
        "--drain-time-s",
        str(drain_seconds),
        "--drain-strategy",
        "immediate",
        "--disable-hot-restart",
        "--concurrency",
        str(concurrency),
        "--log-level",
        log_level,
    )


def _overload_manager(max_heap: int, max_connections: int) -> dict[str, object]:
    types = "type.googleapis.com/envoy.extensions.resource_monitors"
    return {
        "refresh_interval": HEAP_CHECK,
        "resource_monitors": [
            {
                "name": "envoy.resource_monitors.global_downstream_max_connections",
                "typed_config": {
                    "@type": f"{types}.downstream_connections.v3.DownstreamConnectionsConfig",
                    "max_active_downstream_connections": max_connections,
                },
            },
            {
                "name": "envoy.resource_monitors.fixed_heap",
                "typed_config": {
                    "@type": f"{types}.fixed_heap.v3.FixedHeapConfig",
                    "max_heap_size_bytes": max_heap,
                },
            },
        ],
        "actions": [
            _action("envoy.overload_actions.shrink_heap", SHRINK_AT),
            _action("envoy.overload_actions.stop_accepting_connections", STOP_AT),
        ],
    }


def _action(name: str, share: float) -> dict[str, object]:
    trigger = {"name": "envoy.resource_monitors.fixed_heap", "threshold": {"value": share}}
    return {"name": name, "triggers": [trigger]}


def _xds_cluster(xds_socket: str) -> dict[str, object]:
    http2 = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {
            "http2_protocol_options": {
                "initial_stream_window_size": MAX_MESSAGE_WINDOW,
                "initial_connection_window_size": MAX_MESSAGE_WINDOW,
            }
        },
    }
    endpoint = {"endpoint": {"address": {"pipe": {"path": xds_socket}}}}
    return {
        "name": "xds",
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
        "load_assignment": {"cluster_name": "xds", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
