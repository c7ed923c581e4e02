"""Bytes and what they mean."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds import wire
from xds.protos import DeltaDiscoveryResponse
from xds.requests import DeltaDiscoveryRequest, Status
from xds.snapshot import CLUSTER, Resource
from xds.stream import Response

RESPONSE = Response(
    type_url=CLUSTER,
    version="v",
    nonce="7",
    resources=(Resource(name="a", version="1", body=b"\x0a\x01a"),),
    removed=("b",),
)


def test_a_response_says_everything() -> None:
    """Names, versions, typed bodies, removals, nonce."""
    message = DeltaDiscoveryResponse.parse(wire.write_response(RESPONSE))
    (resource,) = message.resources
    assert (message.type_url, message.nonce, message.removed_resources) == (CLUSTER, "7", ["b"])
    assert (resource.name, resource.version) == ("a", "1")
    assert resource.resource is not None
    assert (resource.resource.type_url, resource.resource.value) == (CLUSTER, b"\x0a\x01a")


def test_requests_are_read() -> None:
    """Subscriptions, nonce and restated versions."""
    raw = DeltaDiscoveryRequest(
        type_url=CLUSTER,
        response_nonce="3",
        resource_names_subscribe=["a"],
        resource_names_unsubscribe=["b"],
        initial_resource_versions={"c": "1"},
    )
    request = wire.read_request(bytes(raw))
    assert (request.type_url, request.nonce, request.error) == (CLUSTER, "3", None)
    assert (request.subscribe, request.unsubscribe, request.initial_versions) == (("a",), ("b",), {"c": "1"})


@given(st.binary(max_size=60))
def test_any_bytes_are_a_request_or_a_request_error(data: bytes) -> None:
    """Nothing else comes out, whatever comes in."""
    with contextlib.suppress(wire.RequestError):
        assert isinstance(wire.read_request(data).type_url, str)


def test_cut_off_bytes_are_a_request_error() -> None:
    """A varint that ends early."""
    with pytest.raises(wire.RequestError, match="2 bytes are no discovery request"):
        wire.read_request(b"\x0a\xff")


@pytest.mark.parametrize("status", [Status(code=3), Status()])
def test_a_rejection_without_a_word_is_one(status: Status) -> None:
    """It is the field that rejects, not its text."""
    request = wire.read_request(bytes(DeltaDiscoveryRequest(type_url=CLUSTER, response_nonce="1", error_detail=status)))
    assert request.error == f"no reason given (code {status.code})"


@pytest.mark.parametrize(
    "data",
    [
        b"\x12\x05ab",
        b"\x0a\x03\x0a\x05a",
        b"\x2a\x04\x0a\x05ab",
        b"\x3a\x02\x12\x05",
        b"\xfa\x01\x05a",
        b"\x02\x01a",
        b"\x12\x01\xff",
    ],
    ids=["a name", "in the node", "in a version", "in the reason", "an unknown field", "number 0", "no UTF-8"],
)
def test_what_is_cut_off_within_a_field_is_no_request(data: bytes) -> None:
    """The part that is there is not taken for the whole."""
    with pytest.raises(wire.RequestError, match="bytes are no discovery request"):
        wire.read_request(data)
