"""Rights in Consul."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from coordinator.tokens import intention_entries, policy_body, policy_name, services, token_body
from tests.coordinator.world import make_manifest
from topology.manifest import GroupEntry, Intention, Permissions

MANIFEST = make_manifest()


def rules(group: str, entry: GroupEntry) -> dict[str, Any]:
    """The rules in a group's policy."""
    text = policy_body(group, entry)["Rules"]
    assert isinstance(text, str)
    found: dict[str, Any] = json.loads(text)
    return found


def with_prefixes(*prefixes: str) -> GroupEntry:
    """The group `api` with those permissions."""
    entry = MANIFEST.groups["api"]
    backend = dataclasses.replace(entry.backends["api"], permissions=Permissions(key_prefixes=prefixes))
    return dataclasses.replace(entry, backends={"api": backend})


def test_permissions_become_rules() -> None:
    """Key prefixes are writable, sessions on the group's own nodes too; the mesh's own records are readable at most."""
    found = rules("api", MANIFEST.groups["api"])
    assert found["key_prefix"] == {
        "service/api/": {"policy": "write"},
        "mesh/": {"policy": "read"},
        "coordinator/": {"policy": "deny"},
    }
    assert found["session_prefix"] == {"api-": {"policy": "write"}}


def test_a_group_without_permissions_writes_nothing() -> None:
    """A client has no writable key and no sessions."""
    found = rules("client", MANIFEST.groups["client"])
    assert found["key_prefix"] == {"mesh/": {"policy": "read"}, "coordinator/": {"policy": "deny"}}
    assert "session_prefix" not in found


def test_permissions_never_reach_the_mesh_records() -> None:
    """A permission on everything, or on the records themselves, leaves them unwritable."""
    found = rules("api", with_prefixes("", "mesh/peers/", "coordinator/slots/", "mesh/"))["key_prefix"]
    assert found == {"": {"policy": "write"}, "mesh/": {"policy": "read"}, "coordinator/": {"policy": "deny"}}


def test_a_token_names_node_services_policy_and_life() -> None:
    """One CVM's token has its own node and its group's services, and ends."""
    body = token_body("api-0", "api", MANIFEST.groups["api"], "tests", 600)
    assert body["NodeIdentities"] == [{"NodeName": "api-0", "Datacenter": "tests"}]
    assert body["ServiceIdentities"] == [{"ServiceName": "api"}]
    assert body["Policies"] == [{"Name": policy_name("api")}]
    assert body["ExpirationTTL"] == "600s"


def test_a_group_without_backends_is_its_own_service() -> None:
    """A client needs an identity to call with: the group's name."""
    assert services("client", MANIFEST.groups["client"]) == ("client",)


def test_intentions_are_grouped_by_destination() -> None:
    """One entry a destination, sources in order and once."""
    manifest = dataclasses.replace(
        MANIFEST,
        intentions=(
            Intention(source="api", destination="db"),
            Intention(source="web", destination="db"),
            Intention(source="api", destination="db"),
            Intention(source="*", destination="api"),
        ),
    )
    entries = intention_entries(manifest)
    assert set(entries) == {"db", "api"}
    assert entries["db"]["Sources"] == [{"Name": "api", "Action": "allow"}, {"Name": "web", "Action": "allow"}]
