"""Bytes of the discovery service ↔ what `xds.stream` speaks. Pure."""

from __future__ import annotations

from xds import framing
from xds.protos import Any, DeltaDiscoveryResponse, DeltaResource
from xds.requests import DeltaDiscoveryRequest, Status
from xds.snapshot import Resource
from xds.stream import Request, Response

SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
METHOD = "DeltaAggregatedResources"
_MESSAGES: framing.Nested = {1: framing.NONE, 5: framing.NONE, 7: framing.NONE}
"""Of a DeltaDiscoveryRequest: node, initial_resource_versions' entries, error_detail (`xds.requests`)."""


class RequestError(ValueError):
    """The bytes are no discovery request: the client's fault."""


def read_request(data: bytes) -> Request:
    """Reads a DeltaDiscoveryRequest, or RequestError."""
    # Boundary: betterproto2 raises whatever malformed bytes run it into, AttributeError included (found by fuzzing),
    # and may put a number where the field is a text.
    try:
        framing.check(data, _MESSAGES)
        return _request(DeltaDiscoveryRequest.parse(data))
    except Exception as error:
        raise RequestError(f"{len(data)} bytes are no discovery request: {error}") from error


def _request(message: DeltaDiscoveryRequest) -> Request:
    return Request(
        type_url=_text(message.type_url),
        node_id=_text(message.node.id) if message.node is not None else "",
        nonce=_text(message.response_nonce),
        error=_error(message.error_detail) if message.error_detail is not None else None,
        subscribe=tuple(map(_text, message.resource_names_subscribe)),
        unsubscribe=tuple(map(_text, message.resource_names_unsubscribe)),
        initial_versions={_text(k): _text(v) for k, v in message.initial_resource_versions.items()},
    )


def _error(status: Status) -> str:
    """A rejection stays one without a reason."""
    return _text(status.message) or f"no reason given (code {status.code})"


def write_response(response: Response) -> bytes:
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


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _any(type_url: str, resource: Resource) -> Any:
    return Any(type_url=type_url, value=resource.body)
