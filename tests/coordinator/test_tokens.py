"""Rights in Consul."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from coordinator.tokens import (
    policy_bodies,
    policy_body,
    policy_name,
    session_policy_name,
    token_body,
    workload_policy_body,
    workload_policy_name,
    workload_token_body,
)
from tests.coordinator.world import make_database_manifest, make_manifest
from topology.manifest import GroupEntry, Permissions

MANIFEST = make_manifest()


LEADER = "service/api/leader"


def rules(group: str, entry: GroupEntry, *leader_keys: str) -> dict[str, Any]:
    """The rules in a group's policy."""
    text = policy_body(group, entry, leader_keys)["Rules"]
    assert isinstance(text, str)
    found: dict[str, Any] = json.loads(text)
    return found


def with_prefixes(*prefixes: str) -> GroupEntry:
    """The group `api` with those permissions."""
    entry = MANIFEST.groups["api"]
    backend = dataclasses.replace(entry.backends["api"], permissions=Permissions(key_prefixes=prefixes))
    return dataclasses.replace(entry, backends={"api": backend})


def test_permissions_become_rules() -> None:
    """Key prefixes are writable, and sessions on the one own node; the mesh's own records are readable at most."""
    found = rules("api", MANIFEST.groups["api"])
    assert found["key_prefix"] == {
        "service/api/": {"policy": "write"},
        "mesh/": {"policy": "read"},
        "coordinator/": {"policy": "deny"},
    }
    assert "session_prefix" not in found
    (session,) = [body for body in policy_bodies(MANIFEST) if body["Name"] == "mesh-session_api-0"]
    assert json.loads(str(session["Rules"])) == {"session": {"api-0": {"policy": "write"}}}


def test_a_group_without_permissions_writes_nothing() -> None:
    """A client has no writable key and no sessions."""
    found = rules("client", MANIFEST.groups["client"])
    assert found["key_prefix"] == {"mesh/": {"policy": "read"}, "coordinator/": {"policy": "deny"}}
    names = [body["Name"] for body in policy_bodies(MANIFEST)]
    assert names == ["mesh-api", "mesh-session_api-0", "mesh-session_api-1", "mesh-client"]


def test_everyone_reads_the_leader_keys_and_their_owner_still_writes_them() -> None:
    """A rule for one key beats every prefix, so who may write the key's prefix gets no rule for the key."""
    assert rules("client", MANIFEST.groups["client"], LEADER)["key"] == {LEADER: {"policy": "read"}}
    assert "key" not in rules("api", MANIFEST.groups["api"], LEADER)


def test_a_workload_has_a_token_of_its_own_rights() -> None:
    """Its services, its keys, its node's sessions, the catalog: not the node, not the mesh's keys."""
    entry = make_database_manifest().groups["db"]
    assert workload_token_body("db-0", "db", entry, 600) == {
        "Description": "workload of db-0",
        "Policies": [{"Name": "mesh-workload_db"}, {"Name": "mesh-session_db-0"}],
        "ExpirationTTL": "600s",
    }
    text = workload_policy_body("db", entry)["Rules"]
    assert json.loads(str(text)) == {
        "node_prefix": {"": {"policy": "read"}},
        "service_prefix": {"": {"policy": "read"}},
        "service": {"db": {"policy": "write"}},
        "key_prefix": {
            "service/db": {"policy": "write"},
            "mesh/": {"policy": "deny"},
            "coordinator/": {"policy": "deny"},
        },
    }


def test_a_group_whose_backends_are_the_platforms_has_no_workload_token() -> None:
    """Its registrations are kept by the sidecar, with the sidecar's token."""
    assert workload_token_body("api-0", "api", MANIFEST.groups["api"]) is None
    assert "mesh-workload_api" not in [body["Name"] for body in policy_bodies(MANIFEST)]


def test_policies_of_groups_never_meet_those_of_workloads_and_sessions() -> None:
    """Whatever a group is called: its policy is not another group's workload's."""
    for group in ("workload-db", "session-db-0", "db-workload"):
        assert policy_name(group) not in (workload_policy_name("db"), session_policy_name("db-0"))


def test_permissions_never_reach_the_mesh_records() -> None:
    """A permission on everything, or on the records themselves, leaves them unwritable."""
    found = rules("api", with_prefixes("", "mesh/peers/", "coordinator/slots/", "mesh/"))["key_prefix"]
    assert found == {"": {"policy": "write"}, "mesh/": {"policy": "read"}, "coordinator/": {"policy": "deny"}}


def test_a_token_names_node_policy_and_life() -> None:
    """One CVM's token has its own node and its group's policy, and ends."""
    body = token_body("api-0", "api", MANIFEST.groups["api"], "tests", 600)
    assert body["NodeIdentities"] == [{"NodeName": "api-0", "Datacenter": "tests"}]
    assert "ServiceIdentities" not in body, "they would give the right to a proxy of the service, too"
    assert body["Policies"] == [{"Name": policy_name("api")}, {"Name": "mesh-session_api-0"}]
    assert body["ExpirationTTL"] == "600s"


def test_a_group_registers_its_own_services_and_nothing_else() -> None:
    """A client, which has no backend, registers none."""
    entry = MANIFEST.groups["api"]
    more = {name: dataclasses.replace(entry.backends["api"], service=name) for name in ("b", "a")}
    assert rules("api", dataclasses.replace(entry, backends=more))["service"] == {
        "a": {"policy": "write"},
        "b": {"policy": "write"},
    }
    assert "service" not in rules("client", MANIFEST.groups["client"])


def test_keys_that_are_handed_over_are_written_no_more() -> None:
    """By sidecars and workloads; they are read as before."""
    for body in policy_bodies(make_database_manifest(), "read"):
        prefixes = json.loads(str(body["Rules"])).get("key_prefix", {})
        assert "write" not in {rule["policy"] for rule in prefixes.values()}, body
    before = str([body["Rules"] for body in policy_bodies(make_database_manifest())])
    assert '"service/db": {"policy": "write"}' in before
