"""What a cluster is, reduced to what a plan compares: from the files of a folder, or from Terraform's state. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from topology import addresses, compose, render
from topology.cluster import Cluster
from topology.manifest import EVERYBODY
from topology.model import COORDINATOR
from topology.problems import ClusterError

Facts = dict[str, Any]
"""One entry, as plain JSON values by field."""
APP = "phala_app"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A cluster at one moment. Tables are by name; None is a table that the source does not have."""

    cluster: str
    peers: dict[str, Facts]
    """Peer ID → group and mesh address."""
    backends: dict[str, Facts]
    """`group/backend` → ports, service, identity, owner, permissions."""
    routes: dict[str, Facts]
    secrets: dict[str, Facts]
    composes: dict[str, str] | None = None
    """App → text of its compose file."""
    images: dict[str, str] | None = None
    """`app/service` → image."""
    environment: dict[str, str] | None = None
    """`group/NAME` → value of compose_env."""
    unseen: tuple[str, ...] = ()
    """`group services.app.command: NAME`: where values of compose_env are used and nothing can check them."""
    says_who_calls: bool = True
    """False: nothing says who calls whom, so that every group may call every backend."""
    public: dict[str, Facts] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """Variables that decide where and how CVMs run: region, kms, size, attestation, rendezvous."""


def of_cluster(cluster: Cluster, texts: Mapping[str, str], settings: Mapping[str, Any]) -> Snapshot:
    """The snapshot of a checked cluster; `texts` has the text of each app's compose file."""
    mesh = cluster.mesh_addresses()
    peers = {peer: {"group": COORDINATOR, "address": mesh[peer]} for peer in cluster.coordinator_peers()}
    backends: dict[str, Facts] = {}
    secrets: dict[str, Facts] = {}
    for group in cluster.groups:
        peers |= {peer: {"group": group.name, "address": mesh[peer]} for peer in group.peers()}
        for backend in group.backends:
            backends[f"{group.name}/{backend.name}"] = {
                "port": backend.port,
                "sidecar_port": addresses.sidecar_port_of(backend.port),
                "service": backend.parent,
                "identity": f"spiffe://{cluster.name}/{backend.workload}",
                "owner": backend.owner,
                "key_prefixes": list(backend.permissions.key_prefixes),
                "session_write": backend.permissions.session_write,
                "callers": list(cluster.callers(group, backend)),
                "source": backend.source,
                "proxy_protocol": backend.proxy_protocol,
            }
        secrets |= {
            it.name: {"owner": group.name, "groups": sorted(set(it.grant) - {group.name})} for it in group.secrets
        }
    routes = {route.name: _route(route) for route in render.routes(cluster)}
    return Snapshot(
        cluster=cluster.name,
        peers=peers,
        backends=backends,
        routes=routes,
        secrets=secrets,
        composes=dict(texts),
        images=_images(texts),
        environment={f"{g.name}/{name}": value for g in cluster.groups for name, value in g.compose_env.items()},
        unseen=tuple(
            f"{group.name} {place}"
            for group in cluster.groups
            for place in compose.unseen(compose.parse(texts[group.name], group.compose), group.compose_env)
        ),
        says_who_calls=cluster.says_who_calls,
        public={name: {} for name in cluster.public},
        settings=dict(settings),
    )


def of_state(text: str) -> Snapshot:
    """The snapshot of what Terraform made: terraform.tfstate, `terraform show -json` or `terraform output -json`.

    ClusterError when the text is none of them, or has no deployment yet.
    """
    try:
        tree = json.loads(text)
        outputs, resources = _parts(tree)
        deployment = outputs["deployment"]["value"]
        policy = deployment["policy"]
        return _of_policy(policy, _apps(resources))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        message = (
            f"the state cannot be used ({type(error).__name__}: {error}); expected terraform.tfstate, or what "
            "`terraform show -json` or `terraform output -json` prints, of a cluster that was applied"
        )
        raise ClusterError([message]) from error


def _parts(tree: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Outputs, and attributes of every app, of each form of a state."""
    if "resources" in tree:
        items = [i for r in tree["resources"] if r["type"] == APP for i in r["instances"]]
        return tree["outputs"], [{"index": item["index_key"], **item["attributes"]} for item in items]
    if "values" in tree:
        modules = tree["values"]["root_module"].get("child_modules", [])
        found = [r for module in modules for r in module.get("resources", []) if r["type"] == APP]
        return tree["values"]["outputs"], [{"index": r["index"], **r["values"]} for r in found]
    return tree, []


def _apps(resources: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {str(resource["index"]): resource for resource in resources}


def _of_policy(policy: Any, apps: Mapping[str, dict[str, Any]]) -> Snapshot:
    peers = {p["peer_id"]: {"group": COORDINATOR, "address": p["address"]} for p in policy["coordinators"]}
    backends: dict[str, Facts] = {}
    for name, group in policy["groups"].items():
        peers |= {p["peer_id"]: {"group": name, "address": p["address"]} for p in group["peers"]}
        for own, backend in group["backends"].items():
            permissions = backend["permissions"]
            flat = {key: backend[key] for key in ("port", "sidecar_port", "service", "identity", "owner")}
            flat |= {key: permissions[key] for key in ("key_prefixes", "session_write")}
            # A state of before these fields has none of them, and its CVMs what they mean when they are left out.
            absent = {"source": addresses.INGRESS_SOURCE, "proxy_protocol": False}
            flat |= {"callers": [EVERYBODY] if backend.get("callers") is None else list(backend["callers"])}
            backends[f"{name}/{own}"] = flat | {key: backend.get(key, value) for key, value in absent.items()}
    texts = {name: str(app["docker_compose"]) for name, app in apps.items()}
    environment = {
        f"{name}/{key}": value
        for name, app in apps.items()
        for key, value in (app.get("env") or {}).items()
        if not key.startswith("MESH_")
    }
    settings: dict[str, Any] = {}
    if apps:
        first = next(iter(apps.values()))
        settings = {name: first[name] for name in ("region", "kms") if first.get(name)}
        settings["size"] = {name: app["size"] for name, app in sorted(apps.items())}
    return Snapshot(
        cluster=policy["cluster"],
        peers=peers,
        backends=backends,
        routes={route["name"]: {key: route.get(key) for key in _ROUTE} for route in policy["routes"]},
        secrets={name: {"owner": it["owner"], "groups": list(it["groups"])} for name, it in policy["secrets"].items()},
        composes=texts or None,
        images=_images(texts) if texts else None,
        environment=environment if apps else None,
        public=None,
        settings=settings,
    )


_ROUTE = ("group", "backend", "service", "role", "fallback", "vip", "port", "leader_key", "peer")


def _route(route: object) -> Facts:
    return {key: getattr(route, key) for key in _ROUTE}


def _images(texts: Mapping[str, str]) -> dict[str, str]:
    from pathlib import Path

    found: dict[str, str] = {}
    for app, text in texts.items():
        for service in compose.parse(text, Path(f"{app}.yaml")).services:
            found[f"{app}/{service.name}"] = service.image
    return found
