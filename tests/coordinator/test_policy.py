"""Policy, where the broker's tests do not reach it already."""

from __future__ import annotations

import pytest

from admission.protocol import Code
from coordinator import policy
from coordinator.refusal import RefusalError
from tests.coordinator.world import make_manifest
from topology.manifest import COORDINATORS

MANIFEST = make_manifest(coordinators=2)


def test_slots_are_found_in_groups_and_among_coordinators() -> None:
    """A peer ID names one slot, its group, address and kind."""
    api = policy.find_slot(MANIFEST, "api-1")
    assert (api.group, api.address, api.kind) == ("api", "127.90.0.21", "workload")
    lead = policy.find_slot(MANIFEST, "coordinator-1")
    assert (lead.group, lead.kind) == (COORDINATORS, "coordinator")


def test_unknown_slots_and_groups_are_rejected() -> None:
    """What the manifest does not have is ADMISSION_REJECTED."""
    for call in (lambda: policy.find_slot(MANIFEST, "x"), lambda: policy.peer_ids(MANIFEST, "x")):
        with pytest.raises(RefusalError) as error:
            call()
        assert error.value.code is Code.ADMISSION_REJECTED


def test_identities() -> None:
    """A coordinator has the node's only, a workload its backends' too."""
    assert policy.identities(MANIFEST, COORDINATORS) == ("spiffe://tests/node",)
    assert policy.identities(MANIFEST, "api") == ("spiffe://tests/node", "spiffe://tests/api")
