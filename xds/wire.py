"""Bytes of the discovery service ↔ what `xds.stream` speaks. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from xds.protos import Any, DeltaDiscoveryResponse, DeltaResource, DiscoveryResponse
from xds.requests import DeltaDiscoveryRequest, DiscoveryRequest
from xds.snapshot import Resource
from xds.stream import DeltaRequest, Response, StateRequest

T = TypeVar("T")
SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
DELTA_METHOD = "DeltaAggregatedResources"
STATE_METHOD = "StreamAggregatedResources"


class RequestError(ValueError):
    """The bytes are no discovery request: the client's fault."""


def delta_request(data: bytes) -> DeltaRequest:
    """Reads a DeltaDiscoveryRequest, or RequestError."""

    def read() -> DeltaRequest:
        message = DeltaDiscoveryRequest.parse(data)
        return DeltaRequest(
            type_url=_text(message.type_url),
            node_id=_text(message.node.id) if message.node else "",
            nonce=_text(message.response_nonce),
            error=_text(message.error_detail.message) if message.error_detail else None,
            subscribe=tuple(map(_text, message.resource_names_subscribe)),
            unsubscribe=tuple(map(_text, message.resource_names_unsubscribe)),
            initial_versions={_text(k): _text(v) for k, v in message.initial_resource_versions.items()},
        )

    return _guarded(read, data)


def state_request(data: bytes) -> StateRequest:
    """Reads a DiscoveryRequest, or RequestError."""

    def read() -> StateRequest:
        message = DiscoveryRequest.parse(data)
        return StateRequest(
            type_url=_text(message.type_url),
            node_id=_text(message.node.id) if message.node else "",
            nonce=_text(message.response_nonce),
            error=_text(message.error_detail.message) if message.error_detail else None,
            names=tuple(map(_text, message.resource_names)),
        )

    return _guarded(read, data)


def delta_response(response: Response) -> bytes:
    """A DeltaDiscoveryResponse."""
    message = DeltaDiscoveryResponse(
        system_version_info=response.version,
        type_url=response.type_url,
        nonce=response.nonce,
        resources=[
            DeltaResource(name=r.name, version=r.version, resource=_any(response.type_url, r))
            for r in response.resources
        ],
        removed_resources=list(response.removed),
    )
    return bytes(message)


def state_response(response: Response) -> bytes:
    """A DiscoveryResponse."""
    message = DiscoveryResponse(
        version_info=response.version,
        type_url=response.type_url,
        nonce=response.nonce,
        resources=[_any(response.type_url, resource) for resource in response.resources],
    )
    return bytes(message)


def _guarded(read: Callable[[], T], data: bytes) -> T:
    # Boundary: betterproto2 raises whatever malformed bytes run it into, AttributeError included (found by fuzzing),
    # and may put a number where the field is a text.
    try:
        return read()
    except Exception as error:
        raise RequestError(f"{len(data)} bytes are no discovery request: {error}") from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _any(type_url: str, resource: Resource) -> Any:
    return Any(type_url=type_url, value=resource.body)
