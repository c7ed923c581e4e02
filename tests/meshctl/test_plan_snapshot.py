"""A cluster as a plan compares it, from files and from Terraform's state. Real states: tests/terraform."""

from __future__ import annotations

import json

import pytest

from meshctl.plan_calls import who_calls
from meshctl.plan_changes import MANIFEST as MANIFEST_ONLY
from meshctl.plan_changes import compare
from meshctl.plan_snapshot import Snapshot, of_cluster, of_state
from tests.meshctl.test_manifest_facts import FILES, STARTER
from tests.topology.test_render import deployment
from topology import manifest, render
from topology.cluster import load
from topology.problems import ClusterError

MANIFEST = render.manifest(STARTER, deployment())
DEPLOYMENT = {
    "cluster": "starter",
    "apps": {
        "coordinator": {"instance_ids": ["i"]}, "api": {"instance_ids": ["i", "i"]},
        "worker": {"instance_ids": ["i", "", ""]},
    },
}  # fmt: skip
OUTPUTS = {"deployment": {"value": DEPLOYMENT}}


def from_files() -> Snapshot:
    """The starter's."""
    return of_cluster(STARTER, FILES, {})


def test_files_give_everything() -> None:
    """Peers with addresses, routes with VIPs, backends with rights, images of every service."""
    found = from_files()
    assert found.routes is not None
    assert found.backends is not None
    assert found.peers["worker-1"] == {"group": "worker", "address": "100.96.201.77"}
    assert found.routes["worker"]["vip"] == "127.10.171.184"
    assert found.backends["api/api"]["identity"] == "spiffe://starter/api"
    assert found.images is not None
    assert sorted(found.images) == ["api/api", "api/sidecar", "coordinator/sidecar", "worker/sidecar", "worker/worker"]
    assert found.public == {"api": {}}


def test_outputs_and_the_signed_manifest_give_what_is_in_force() -> None:
    """CVMs are those that Terraform made; addresses, routes and rights are signed. There are no compose files."""
    found, files = of_state(json.dumps(OUTPUTS), MANIFEST), from_files()
    assert (found.routes, found.backends, found.secrets) == (files.routes, files.backends, files.secrets)
    assert found.peers == files.peers | {"worker-2": {"group": "worker", "address": None}}
    assert (found.composes, found.images, found.environment, found.settings) == (None, None, None, {})


def test_without_a_manifest_a_state_knows_its_cvms_only() -> None:
    """They are compared; of routes and rights nothing is made up."""
    found = of_state(json.dumps(OUTPUTS), None)
    assert (found.routes, found.backends, found.secrets) == (None, None, None)
    plan = compare(found, from_files(), "state")
    assert [(change.kind, change.name, change.action) for change in plan.changes] == [("cvm", "worker-2", "remove")]
    assert any("nothing is signed yet" in text for text in plan.warnings)
    assert who_calls(found) == ()


def test_a_slot_that_is_not_signed_needs_a_manifest() -> None:
    """Its CVM exists already, and is not admitted."""
    scaled = load(STARTER.folder, {"replicas.worker": "3"})
    plan = compare(of_state(json.dumps(OUTPUTS), MANIFEST), of_cluster(scaled, FILES, {}), "state")
    assert [(change.name, change.action, change.effect) for change in plan.changes] == [
        ("worker-2", "change", MANIFEST_ONLY)
    ]
    assert plan.needs_manifest


def test_a_state_gives_compose_files_and_variables_too() -> None:
    """terraform.tfstate and `terraform show -json` hold the same, differently packed."""
    attributes = {"docker_compose": FILES["api"], "env": {"MESH_CLUSTER": "starter", "A": "1"}, "size": "s"}
    attributes |= {"region": None, "kms": "phala"}
    other = {"type": "terraform_data", "instances": [{}]}
    app = {"type": "phala_app", "instances": [{"index_key": "api", "attributes": attributes}]}
    state = {"outputs": OUTPUTS, "resources": [other, app]}
    resources = [
        {"type": "phala_app", "index": "api", "values": attributes},
        {"type": "phala_app_instance", "values": {}},
    ]
    shown = {"values": {"outputs": OUTPUTS, "root_module": {"child_modules": [{"resources": resources}, {}]}}}
    for text in (json.dumps(state), json.dumps(shown)):
        found = of_state(text, None)
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
        of_state(text, None)


def test_every_field_of_a_route_is_compared() -> None:
    """A field that the manifest gets later must not be missed here."""
    fields = set(manifest.RouteEntry.__dataclass_fields__) - {"name"}
    assert set((from_files().routes or {})["api"]) == fields
    assert render.routes(STARTER)
