"""What an admitted CVM may do in Consul: one policy a group, one token a CVM, and the intentions. Pure: bodies for
Consul's API.

Policies are written once, when a manifest is taken, so that an admission is a single write: the token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from topology.manifest import GroupEntry, Manifest

LEDGER_PREFIX = "coordinator/"
"""KV prefix of the coordinators' own records."""
TOKEN_SECONDS = 3600
"""Life of a token. A CVM that was cut off for longer attests again."""


def policy_name(group: str) -> str:
    """Consul's name of a group's policy."""
    return f"mesh-{group}"


def services(group: str, entry: GroupEntry) -> tuple[str, ...]:
    """The Consul services that a CVM of `group` may register. A group without backends is a client: its identity is
    the group's name.
    """
    return tuple(dict.fromkeys(b.service for _, b in sorted(entry.backends.items()))) or (group,)


def policy_body(group: str, entry: GroupEntry) -> dict[str, object]:
    """The group's policy as `PUT /v1/acl/policy` wants it."""
    rules: dict[str, object] = {
        # What a node needs to see: the catalog, the peers and the manifest.
        "node_prefix": {"": {"policy": "read"}},
        "service_prefix": {"": {"policy": "read"}},
        # The agent's own API is on the CVM's loopback only; the prefix covers the group's own CVMs.
        "agent_prefix": {f"{group}-": {"policy": "write"}},
    }
    keys: dict[str, str] = {}
    session = False
    for _, backend in sorted(entry.backends.items()):
        keys |= {p: "write" for p in backend.permissions.key_prefixes if not p.startswith(("mesh/", LEDGER_PREFIX))}
        session = session or backend.permissions.session_write
    # The longest prefix wins, so a permission on "" cannot reach what only coordinators may write.
    keys |= {"mesh/": "read", LEDGER_PREFIX: "deny"}
    rules["key_prefix"] = {prefix: {"policy": policy} for prefix, policy in keys.items()}
    if session:
        # Sessions belong to a node; of other nodes they could only be destroyed, so the right ends at the group.
        rules["session_prefix"] = {f"{group}-": {"policy": "write"}}
    return {"Name": policy_name(group), "Description": f"CVMs of {group}", "Rules": json.dumps(rules, sort_keys=True)}


def token_body(
    peer_id: str, group: str, entry: GroupEntry, datacenter: str, seconds: int = TOKEN_SECONDS
) -> dict[str, object]:
    """One CVM's token as `PUT /v1/acl/token` wants it: its node, its services, its group's policy, for `seconds`."""
    return {
        "Description": f"admitted {peer_id}",
        "NodeIdentities": [{"NodeName": peer_id, "Datacenter": datacenter}],
        "ServiceIdentities": [{"ServiceName": name} for name in services(group, entry)],
        "Policies": [{"Name": policy_name(group)}],
        "ExpirationTTL": f"{seconds}s",
    }


def intention_entries(manifest: Manifest) -> Mapping[str, dict[str, object]]:
    """`service-intentions` configuration entries by destination."""
    by_destination: dict[str, list[str]] = {}
    for intention in manifest.intentions:
        sources = by_destination.setdefault(intention.destination, [])
        if intention.source not in sources:
            sources.append(intention.source)
    return {
        destination: {
            "Kind": "service-intentions",
            "Name": destination,
            "Sources": [{"Name": source, "Action": "allow"} for source in sources],
        }
        for destination, sources in by_destination.items()
    }
