"""The requests as declared here are Envoy's own."""

from __future__ import annotations

from xds import requests, wire
from xds.snapshot import CLUSTER

# After `xds`, which has these modules load without pydantic.
from envoy_data_plane.envoy.config.core.v3 import Extension, Node  # isort: skip
from envoy_data_plane.envoy.service.discovery.v3 import DeltaDiscoveryRequest  # isort: skip
from envoy_data_plane.google.rpc import Status  # isort: skip

NODE = Node(id="api-0", cluster="c", extensions=[Extension(name="tcp_proxy", type_urls=["t"])])
REFUSAL = Status(code=3, message="no such filter")


def test_a_request_of_envoy_is_read() -> None:
    """Every field that is used, from the whole message."""
    raw = DeltaDiscoveryRequest(
        node=NODE,
        type_url=CLUSTER,
        response_nonce="3",
        error_detail=REFUSAL,
        resource_names_subscribe=["a"],
        resource_names_unsubscribe=["b"],
        initial_resource_versions={"c": "1"},
    )
    request = wire.read_request(bytes(raw))
    assert (request.node_id, request.type_url, request.nonce) == ("api-0", CLUSTER, "3")
    assert (request.error, request.initial_versions) == ("no such filter", {"c": "1"})
    assert (request.subscribe, request.unsubscribe) == (("a",), ("b",))


def test_what_is_not_read_is_not_decoded() -> None:
    """The list of extensions stays bytes: 120 kB of it come with every start of Envoy."""
    message = requests.DeltaDiscoveryRequest.parse(bytes(DeltaDiscoveryRequest(node=NODE)))
    assert message.node is not None
    assert (message.node.id, b"tcp_proxy" in message.node._unknown_fields) == ("api-0", True)
