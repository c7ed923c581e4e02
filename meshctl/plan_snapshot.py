"""What a cluster is, reduced to what a plan compares: from the files of a folder, or from Terraform's state with the
manifest that was signed for it. Pure.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from topology import addresses, compose, render
from topology.cluster import Cluster
from topology.egress import EgressEntry
from topology.manifest import Manifest
from topology.model import COORDINATOR
from topology.problems import ClusterError
from topology.public import Public, as_written

Facts = dict[str, Any]
"""One entry, as plain JSON values by field."""
APP = "phala_app"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A cluster at one moment. Tables are by name; None is a table that the source does not have."""

    cluster: str
    peers: dict[str, Facts]
    """Peer ID → group and mesh address, None where that is not known."""
    backends: dict[str, Facts] | None
    """`group/backend` → ports, service, identity, owner, permissions, callers, how it is reached."""
    routes: dict[str, Facts] | None
    secrets: dict[str, Facts] | None
    egress: dict[str, Facts] | None = None
    """`group/name` → listen, remote, tls, sni, and whose certificates are pinned."""
    composes: dict[str, str] | None = None
    """App → text of its compose file."""
    images: dict[str, str] | None = None
    """`app/service` → image."""
    environment: dict[str, str] | None = None
    """`group/NAME` → value of compose_env."""
    unseen: tuple[str, ...] = ()
    """`group services.app.command: NAME`: where values of compose_env are used and nothing can check them."""
    unused: tuple[str, ...] = ()
    """`group NAME`: values of compose_env that no compose file refers to."""
    unset: tuple[str, ...] = ()
    """`app NAME`: variables that a compose file refers to without a default, and nothing sets."""
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
                "ingress": backend.ingress,
                "public": _public(backend.public),
            }
        secrets |= {
            it.name: {"owner": group.name, "groups": sorted(set(it.grant) - {group.name})} for it in group.secrets
        }
    routes = {route.name: _route(route) for route in render.routes(cluster)}
    unused, unset = _variables(cluster, texts)
    return Snapshot(
        cluster=cluster.name,
        peers=peers,
        backends=backends,
        routes=routes,
        secrets=secrets,
        egress={f"{group.name}/{it.name}": egress_facts(it) for group in cluster.groups for it in group.egress},
        composes=dict(texts),
        images=_images(texts),
        environment={f"{g.name}/{name}": value for g in cluster.groups for name, value in g.compose_env.items()},
        unseen=tuple(
            f"{group.name} {place}"
            for group in cluster.groups
            for place in compose.unseen(compose.parse(texts[group.name], group.compose), group.compose_env)
        ),
        unused=tuple(unused),
        unset=tuple(unset),
        says_who_calls=cluster.says_who_calls,
        public={name: {} for name in cluster.public},
        settings=dict(settings),
    )


def _variables(cluster: Cluster, texts: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Values that nothing uses, and variables that nothing sets."""
    given: dict[str, Mapping[str, str]] = {
        COORDINATOR: {},
        **{group.name: group.compose_env for group in cluster.groups},
    }
    unused: list[str] = []
    unset: list[str] = []
    for app, values in given.items():
        if app in texts:
            referred = compose.referred(compose.parse(texts[app], Path(f"{app}.yaml")))
            unused += [f"{app} {name}" for name in values if name not in referred]
            set_here = {*values, *render.SET_BY_MESH}
            unset += [f"{app} {name}" for name, bare in sorted(referred.items()) if bare and name not in set_here]
    return unused, unset


def of_state(text: str, manifest: Manifest | None) -> Snapshot:
    """The snapshot of what Terraform made: terraform.tfstate, `terraform show -json` or `terraform output -json`.
    Routes, rights and addresses are those of `manifest`, the signed one; without it they are not known.

    ClusterError when the text is none of them, or has no deployment yet.
    """
    try:
        outputs, resources = _parts(json.loads(text))
        deployment = outputs["deployment"]["value"]
        counts = {str(name): len(app["instance_ids"]) for name, app in deployment["apps"].items()}
        return _of_state(str(deployment["cluster"]), counts, _apps(resources), manifest)
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


def _of_state(
    cluster: str, counts: Mapping[str, int], apps: Mapping[str, dict[str, Any]], manifest: Manifest | None
) -> Snapshot:
    known = _addresses(manifest) if manifest else {}
    peers = {
        peer: {"group": app, "address": known.get(peer)}
        for app, count in counts.items()
        for peer in (f"{app}-{index}" for index in range(count))
    }
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
        cluster=cluster,
        peers=peers,
        backends=_backends(manifest) if manifest else None,
        routes={route.name: _route(route) for route in manifest.routes} if manifest else None,
        secrets=(
            {name: {"owner": it.owner, "groups": list(it.groups)} for name, it in manifest.secrets.items()}
            if manifest
            else None
        ),
        egress=(
            {f"{name}/{it.name}": egress_facts(it) for name, group in manifest.groups.items() for it in group.egress}
            if manifest
            else None
        ),
        composes=texts or None,
        images=_images(texts) if texts else None,
        environment=environment if apps else None,
        public=None,
        settings=settings,
    )


def _addresses(manifest: Manifest) -> dict[str, str]:
    found = {peer.peer_id: peer.address for peer in manifest.coordinators.peers}
    return found | {peer.peer_id: peer.address for group in manifest.groups.values() for peer in group.peers}


def _backends(manifest: Manifest) -> dict[str, Facts]:
    return {
        f"{name}/{own}": {
            "port": backend.port,
            "sidecar_port": backend.sidecar_port,
            "service": backend.service,
            "identity": backend.identity,
            "owner": backend.owner,
            "key_prefixes": list(backend.permissions.key_prefixes),
            "session_write": backend.permissions.session_write,
            "callers": list(backend.callers),
            "source": backend.source,
            "proxy_protocol": backend.proxy_protocol,
            "ingress": backend.ingress,
            "public": _public(backend.public, group.app_id),
        }
        for name, group in manifest.groups.items()
        for own, backend in group.backends.items()
    }


def egress_facts(entry: EgressEntry) -> Facts:
    """An egress; pinned certificates by a hash, which is what a person can compare."""
    pinned = None if entry.ca is None else hashlib.sha256(entry.ca.encode()).hexdigest()[:12]
    return {"listen": entry.listen, "remote": entry.remote, "tls": entry.tls, "sni": entry.sni, "ca": pinned}


def _public(public: Public | None, app_id: str = "") -> Facts | None:
    """A public listener; where `app_id` is known, with cluster.tf's word in place of the gateway's names."""
    if public is None:
        return None
    sans = as_written(app_id, public) if app_id else public.sans
    return {**dataclasses.asdict(public), "sans": list(sans), "alpn": list(public.alpn)}


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
