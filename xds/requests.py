"""Envoy's discovery requests as far as they are read.

Field numbers are those of envoy/service/discovery/v3/discovery.proto, envoy/config/core/v3/base.proto (Node) and
google/rpc/status.proto. The whole messages are in `xds.protos`; but a stream's first request lists what Envoy was
built with, 1,000 extensions in 120 kB, and to read them costs 40 ms each time that Envoy starts. What is not declared
here is skipped.
"""

# ruff: noqa: RUF009 - betterproto2.field is dataclasses.field
from __future__ import annotations

from dataclasses import dataclass

# First: it has betterproto2 load as a sidecar can afford it.
import xds.protos  # noqa: F401  # isort: skip
import betterproto2


@dataclass(eq=False, repr=False)
class Node(betterproto2.Message):
    """Who asks."""

    id: str = betterproto2.field(1, betterproto2.TYPE_STRING)


@dataclass(eq=False, repr=False)
class Status(betterproto2.Message):
    """Why the last response was refused."""

    code: int = betterproto2.field(1, betterproto2.TYPE_INT32)
    message: str = betterproto2.field(2, betterproto2.TYPE_STRING)


@dataclass(eq=False, repr=False)
class DeltaDiscoveryRequest(betterproto2.Message):
    """A request of the incremental protocol."""

    node: Node | None = betterproto2.field(1, betterproto2.TYPE_MESSAGE, optional=True)
    type_url: str = betterproto2.field(2, betterproto2.TYPE_STRING)
    resource_names_subscribe: list[str] = betterproto2.field(3, betterproto2.TYPE_STRING, repeated=True)
    resource_names_unsubscribe: list[str] = betterproto2.field(4, betterproto2.TYPE_STRING, repeated=True)
    initial_resource_versions: dict[str, str] = betterproto2.field(
        5,
        betterproto2.TYPE_MAP,
        map_meta=betterproto2.map_meta(betterproto2.TYPE_STRING, betterproto2.TYPE_STRING),
    )
    response_nonce: str = betterproto2.field(6, betterproto2.TYPE_STRING)
    error_detail: Status | None = betterproto2.field(7, betterproto2.TYPE_MESSAGE, optional=True)
