"""A cluster as a plan compares it, from files and from Terraform's state. Real states: tests/terraform."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshctl.plan_snapshot import Snapshot, of_cluster, of_state
from tests.meshctl.test_manifest_facts import FILES, STARTER
from topology import manifest, render
from topology.problems import ClusterError

POLICY: dict[str, Any] = {
    "cluster": "starter",
    "coordinators": [{"peer_id": "coordinator-0", "address": "100.96.34.161"}],
    "groups": {
        "api": {
            "peers": [{"peer_id": "api-0", "address": "100.96.33.1"}],
            "backends": {
                "api": {
                    "port": 8080, "sidecar_port": 28080, "service": "api", "identity": "spiffe://starter/api",
                    "owner": "platform", "permissions": {"key_prefixes": [], "session_write": False},
                }
            },
        }
    },
    "routes": [
        {
            "name": "api", "group": "api", "backend": "api", "service": "api", "role": None, "vip": "127.10.167.253",
            "port": 8080, "fallback": None, "leader_key": None,
        }
    ],
    "secrets": {"word": {"owner": "api", "groups": ["web"]}},
}  # fmt: skip


def from_files() -> Snapshot:
    """The starter's."""
    return of_cluster(STARTER, FILES, {})


def test_files_give_everything() -> None:
    """Peers with addresses, routes with VIPs, backends with rights, images of every service."""
    found = from_files()
    assert found.peers["worker-1"] == {"group": "worker", "address": "100.96.201.77"}
    assert found.routes["worker"]["vip"] == "127.10.171.184"
    assert found.backends["api/api"]["identity"] == "spiffe://starter/api"
    assert found.images is not None
    assert sorted(found.images) == ["api/api", "api/sidecar", "coordinator/sidecar", "worker/sidecar", "worker/worker"]
    assert found.public == {"api": {}}


def test_outputs_alone_give_what_the_policy_says() -> None:
    """Without resources there are no compose files to compare."""
    found = of_state(json.dumps({"deployment": {"value": {"policy": POLICY}}}))
    assert found.routes["api"] == from_files().routes["api"]
    assert found.backends["api/api"] == from_files().backends["api/api"] | {"callers": ["*"]}, "of before callers"
    assert found.peers["api-0"] == from_files().peers["api-0"]
    assert found.secrets == {"word": {"owner": "api", "groups": ["web"]}}
    assert (found.composes, found.images, found.environment, found.settings) == (None, None, None, {})


def test_a_state_gives_compose_files_and_variables_too() -> None:
    """terraform.tfstate and `terraform show -json` hold the same, differently packed."""
    attributes = {"docker_compose": FILES["api"], "env": {"MESH_CLUSTER": "starter", "A": "1"}, "size": "s"}
    attributes |= {"region": None, "kms": "phala"}
    outputs = {"deployment": {"value": {"policy": POLICY}}}
    other = {"type": "terraform_data", "instances": [{}]}
    app = {"type": "phala_app", "instances": [{"index_key": "api", "attributes": attributes}]}
    state = {"outputs": outputs, "resources": [other, app]}
    resources = [
        {"type": "phala_app", "index": "api", "values": attributes},
        {"type": "phala_app_instance", "values": {}},
    ]
    shown = {"values": {"outputs": outputs, "root_module": {"child_modules": [{"resources": resources}, {}]}}}
    for text in (json.dumps(state), json.dumps(shown)):
        found = of_state(text)
        assert found.composes == {"api": FILES["api"]}
        assert found.environment == {"api/A": "1"}
        assert found.settings == {"kms": "phala", "size": {"api": "s"}}
        assert found.images is not None
        assert set(found.images) == {"api/api", "api/sidecar"}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"outputs": {}, "resources": []}', '{"values": {}}', '{"deployment": 5}']
)
def test_other_texts_are_refused(text: str) -> None:
    """One message that names the three forms."""
    with pytest.raises(ClusterError, match=r"terraform\.tfstate, or what"):
        of_state(text)


def test_every_field_of_a_route_is_compared() -> None:
    """A field that the manifest gets later must not be missed here."""
    fields = set(manifest.RouteEntry.__dataclass_fields__) - {"name"}
    assert set(from_files().routes["api"]) == fields
    assert render.routes(STARTER)
