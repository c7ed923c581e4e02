"""Bytes and what they mean."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds import wire
from xds.protos import DeltaDiscoveryResponse, DiscoveryResponse
from xds.requests import DeltaDiscoveryRequest, DiscoveryRequest
from xds.snapshot import CLUSTER, Resource
from xds.stream import Response

RESPONSE = Response(
    type_url=CLUSTER,
    version="v",
    nonce="7",
    resources=(Resource(name="a", version="1", body=b"\x0a\x01a"),),
    removed=("b",),
)


def test_a_delta_response_says_everything() -> None:
    """Names, versions, typed bodies, removals, nonce."""
    message = DeltaDiscoveryResponse.parse(wire.delta_response(RESPONSE))
    (resource,) = message.resources
    assert (message.type_url, message.nonce, message.removed_resources) == (CLUSTER, "7", ["b"])
    assert (resource.name, resource.version) == ("a", "1")
    assert resource.resource is not None
    assert (resource.resource.type_url, resource.resource.value) == (CLUSTER, b"\x0a\x01a")


def test_a_state_response_says_everything() -> None:
    """Version, nonce and typed bodies."""
    message = DiscoveryResponse.parse(wire.state_response(RESPONSE))
    assert (message.version_info, message.nonce, message.type_url) == ("v", "7", CLUSTER)
    assert message.resources[0].type_url == CLUSTER


def test_requests_are_read() -> None:
    """Subscriptions, nonce and restated versions."""
    raw = DeltaDiscoveryRequest(
        type_url=CLUSTER,
        response_nonce="3",
        resource_names_subscribe=["a"],
        resource_names_unsubscribe=["b"],
        initial_resource_versions={"c": "1"},
    )
    request = wire.delta_request(bytes(raw))
    assert (request.type_url, request.nonce, request.error) == (CLUSTER, "3", None)
    assert (request.subscribe, request.unsubscribe, request.initial_versions) == (("a",), ("b",), {"c": "1"})
    state = wire.state_request(bytes(DiscoveryRequest(type_url=CLUSTER, resource_names=["a"])))
    assert (state.names, state.error) == (("a",), None)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_request_or_a_request_error(data: bytes) -> None:
    """Nothing else comes out, whatever comes in."""
    for read in (wire.delta_request, wire.state_request):
        with contextlib.suppress(wire.RequestError):
            assert isinstance(read(data).type_url, str)


def test_cut_off_bytes_are_a_request_error() -> None:
    """A varint that ends early."""
    with pytest.raises(wire.RequestError, match="2 bytes are no discovery request"):
        wire.delta_request(b"\x0a\xff")
