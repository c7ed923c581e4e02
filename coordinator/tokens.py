"""What an admitted CVM may do in Consul: policies of its group, its token, its workload's token. Pure: bodies for
Consul's API.

Policies are written once, when a manifest is taken, so that an admission writes nothing but tokens. The sidecar's token
is the CVM's as a node. A group with a workload-owned backend gets a second one for that workload, which has only what
the workload needs: it is handed to the programs in the CVM.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from topology.manifest import RESERVED_KEYS, BackendEntry, GroupEntry, Manifest

LEDGER_PREFIX = "coordinator/"
"""KV prefix of the coordinators' own records."""
TOKEN_SECONDS = 3600
"""Life of a token. A CVM that was cut off for longer attests again."""


def policy_name(group: str) -> str:
    """Consul's name of a group's policy."""
    return f"mesh-{group}"


def services(backends: Iterable[BackendEntry]) -> tuple[str, ...]:
    """The Consul services of `backends`, each once."""
    return tuple(sorted({backend.service for backend in backends}))


def workload_policy_name(group: str) -> str:
    """Consul's name of the policy of a group's workload. No group has '_' in its name, so none has such a policy."""
    return f"mesh-workload_{group}"


def session_policy_name(peer_id: str) -> str:
    """Consul's name of the policy that lets one CVM have sessions."""
    return f"mesh-session_{peer_id}"


def workload_backends(entry: GroupEntry) -> tuple[BackendEntry, ...]:
    """The backends whose registrations their workload keeps; with one of them a CVM gets a workload token."""
    return tuple(backend for _, backend in sorted(entry.backends.items()) if backend.owner == "workload")


def policy_bodies(manifest: Manifest, keys: str = "write") -> tuple[dict[str, object], ...]:
    """Every policy that tokens under `manifest` name, as `PUT /v1/acl/policy` wants them. `keys` is what groups may do
    with their own keys: `read` once those are handed over to other coordinators.
    """
    bodies: list[dict[str, object]] = []
    for group, entry in sorted(manifest.groups.items()):
        bodies.append(policy_body(group, entry, manifest.leader_keys(), keys))
        if workload_backends(entry):
            bodies.append(workload_policy_body(group, entry, keys))
        if _has_sessions(entry.backends.values()):
            bodies += [session_policy_body(peer.peer_id) for peer in entry.peers]
    return tuple(bodies)


def policy_body(
    group: str, entry: GroupEntry, leader_keys: Iterable[str] = (), keys: str = "write"
) -> dict[str, object]:
    """The group's policy. `leader_keys`: what every CVM may read, to know who leads. `keys` as `policy_bodies`."""
    rules: dict[str, object] = {
        # What a node needs to see: the catalog, the peers and the manifest.
        "node_prefix": {"": {"policy": "read"}},
        "service_prefix": {"": {"policy": "read"}},
        # The agent's own API is on the CVM's loopback only; the prefix covers the group's own CVMs.
        "agent_prefix": {f"{group}-": {"policy": "write"}},
    }
    if entry.backends:
        rules["service"] = _rules(dict.fromkeys(services(entry.backends.values()), "write"))
    own = _own_keys(entry.backends.values(), keys)
    rules["key_prefix"] = _rules(own | {"mesh/": "read", LEDGER_PREFIX: "deny"})
    # A rule for one key is stronger than any prefix: it must not take the right to write away from who has it.
    foreign = [key for key in leader_keys if not key.startswith(tuple(own))]
    if foreign:
        rules["key"] = _rules(dict.fromkeys(foreign, "read"))
    return _policy(policy_name(group), f"CVMs of {group}", rules)


def workload_policy_body(group: str, entry: GroupEntry, keys: str = "write") -> dict[str, object]:
    """The policy of a group's workload: its own services, its keys, and the catalog to look at. `keys` as above."""
    backends = workload_backends(entry)
    rules: dict[str, object] = {
        "node_prefix": {"": {"policy": "read"}},
        "service_prefix": {"": {"policy": "read"}},
        "service": _rules(dict.fromkeys(services(backends), "write")),
        "key_prefix": _rules(_own_keys(backends, keys) | {"mesh/": "deny", LEDGER_PREFIX: "deny"}),
    }
    return _policy(workload_policy_name(group), f"the workload of {group}", rules)


def session_policy_body(peer_id: str) -> dict[str, object]:
    """The policy for sessions on one CVM's node. Whoever may write sessions of a node may end all of them, and with
    them the locks that they hold: so the right is for one node, by its whole name.
    """
    return _policy(session_policy_name(peer_id), f"sessions of {peer_id}", {"session": _rules({peer_id: "write"})})


def token_body(
    peer_id: str, group: str, entry: GroupEntry, datacenter: str, seconds: int = TOKEN_SECONDS
) -> dict[str, object]:
    """One CVM's token as `PUT /v1/acl/token` wants it: its node and its group's policy, for `seconds`."""
    return {
        "Description": f"admitted {peer_id}",
        "NodeIdentities": [{"NodeName": peer_id, "Datacenter": datacenter}],
        "Policies": _links(policy_name(group), peer_id, entry.backends.values()),
        "ExpirationTTL": f"{seconds}s",
    }


def workload_token_body(
    peer_id: str, group: str, entry: GroupEntry, seconds: int = TOKEN_SECONDS
) -> dict[str, object] | None:
    """The token of the workload in one CVM; None where no backend is the workload's."""
    backends = workload_backends(entry)
    if not backends:
        return None
    return {
        "Description": f"workload of {peer_id}",
        "Policies": _links(workload_policy_name(group), peer_id, backends),
        "ExpirationTTL": f"{seconds}s",
    }


def _policy(name: str, description: str, rules: Mapping[str, object]) -> dict[str, object]:
    return {"Name": name, "Description": description, "Rules": json.dumps(rules, sort_keys=True)}


def _rules(policies: Mapping[str, str]) -> dict[str, dict[str, str]]:
    return {name: {"policy": policy} for name, policy in policies.items()}


def _links(name: str, peer_id: str, backends: Iterable[BackendEntry]) -> list[dict[str, str]]:
    sessions = [{"Name": session_policy_name(peer_id)}] if _has_sessions(backends) else []
    return [{"Name": name}, *sessions]


def _has_sessions(backends: Iterable[BackendEntry]) -> bool:
    return any(backend.permissions.session_write for backend in backends)


def _own_keys(backends: Iterable[BackendEntry], right: str) -> dict[str, str]:
    """The prefixes of `backends`, with that right. Consul's longest prefix wins, so a permission on "" cannot reach
    what only coordinators write, as long as there is a rule for that.
    """
    prefixes = [prefix for backend in backends for prefix in backend.permissions.key_prefixes]
    return {prefix: right for prefix in sorted(prefixes) if not prefix.startswith(RESERVED_KEYS)}
