"""What a cluster becomes: the manifest, each CVM's environment, and the app-compose.json that dstack measures. Pure.

No secret passes through here: nothing of this is confidential, and dstack's environment is not authenticated.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from topology import addresses
from topology.compose import SIDECAR, ComposeFile, parse
from topology.manifest import (
    MANIFEST_VERSION,
    BackendEntry,
    CoordinatorPeer,
    Coordinators,
    GroupEntry,
    Manifest,
    PeerEntry,
    Rendezvous,
    RouteEntry,
    SecretEntry,
)
from topology.model import COORDINATOR, Backend, Cluster, Group, leader_key
from topology.owners import OWNER_KEY_PLACEHOLDER, OWNERS_VARIABLE, OwnerError, Owners, text_of
from topology.owners import parse as parse_owners
from topology.problems import ClusterError
from topology.public import GATEWAY, Public, gateway_name
from topology.references import Reference

_COMMON_NAMES = ("MESH_CLUSTER", "MESH_COORDINATORS", "MESH_GROUP", "MESH_PEER_ID")
_WORKLOAD_NAMES = ("MESH_ROUTES_JSON",)
SET_BY_MESH = frozenset({*_COMMON_NAMES, *_WORKLOAD_NAMES})
"""Variables that a deployed CVM's environment has beside its `compose_env`."""
_MAX_VALUE = 128 << 10
"""Bytes of one environment value that dstack takes (dstack.md 5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppFacts:
    """What dstack says of one app."""

    app_id: str
    """40 hex digits; the `app_` that Phala's API puts before them is dropped."""
    compose_hashes: tuple[str, ...]
    """64 hex digits each: the revisions that may join."""
    gateways: tuple[str, ...] = ()
    """Domains of the platform's gateways in front of its CVMs, which may be on several nodes; empty: not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What is known only once the apps exist."""

    references: tuple[Reference, ...]
    coordinator: AppFacts
    groups: dict[str, AppFacts]
    coordinator_urls: tuple[str, ...]
    """One a coordinator, in order of their peer IDs."""
    rendezvous: tuple[Rendezvous, ...]
    owners: Owners
    epoch: int
    previous: str | None = None
    """Digest of the manifest before; None for the first."""


def manifest(cluster: Cluster, deployment: Deployment) -> Manifest:
    """The manifest of `cluster` as deployed. ClusterError when the deployment does not fit the cluster."""
    problems = _misfits(cluster, deployment)
    if problems:
        raise ClusterError(problems)
    mesh = cluster.mesh_addresses()
    coordinators = zip(cluster.coordinator_peers(), deployment.coordinator_urls, strict=True)
    return Manifest(
        version=MANIFEST_VERSION,
        epoch=deployment.epoch,
        previous=deployment.previous,
        owners=deployment.owners,
        cluster=cluster.name,
        references=deployment.references,
        coordinators=Coordinators(
            app_id=_app_id(deployment.coordinator.app_id),
            compose_hashes=deployment.coordinator.compose_hashes,
            peers=tuple(CoordinatorPeer(peer_id=peer, address=mesh[peer], url=url) for peer, url in coordinators),
        ),
        rendezvous=deployment.rendezvous,
        groups={group.name: _group(cluster, group, deployment.groups[group.name], mesh) for group in cluster.groups},
        routes=routes(cluster),
        vip_pool=addresses.VIP_POOL,
        mesh_pool=addresses.MESH_POOL,
        secrets={
            secret.name: SecretEntry(owner=group.name, groups=tuple(sorted(set(secret.grant) - {group.name})))
            for group in cluster.groups
            for secret in group.secrets
        },
    )


def routes(cluster: Cluster) -> tuple[RouteEntry, ...]:
    """Every route of the cluster with its VIP and port, by group and name."""
    vips = cluster.vips()
    return tuple(
        RouteEntry(
            name=it.name,
            group=group.name,
            backend=route.backend,
            service=group.backend(route.backend).parent,
            role=route.role,
            vip=vips[it.name],
            port=group.backend(route.backend).port,
            fallback=route.fallback,
            leader_key=leader_key(group.backend(route.backend), route),
            peer=it.peer,
        )
        for group in sorted(cluster.groups, key=lambda item: item.name)
        for route in sorted(group.routes, key=lambda item: item.name)
        for it in group.names_of(route)
    )


def sidecar_environment(
    cluster: Cluster,
    group: Group | str,
    peer_id: str | None,
    *,
    owners: Owners | None,
    coordinator_urls: tuple[str, ...],
) -> dict[str, str]:
    """The environment of one CVM of `group`: the MESH_ variables and the group's `compose_env`. No route is in it, so
    that a new one, which comes with the manifest, restarts nobody.

    `peer_id=None` leaves the slot to the coordinator. `owners` is for where no compose file has them as a literal.
    ClusterError when `peer_id` is not of the group, or a value is greater than dstack takes.
    """
    found = cluster.group(group) if isinstance(group, str) else group
    if peer_id is not None and peer_id not in found.peers():
        raise ClusterError([f"peer {peer_id!r} is not of group {found.name!r}, which has {', '.join(found.peers())}"])
    return _checked({**found.compose_env, **_common(cluster, found.name, peer_id, owners, coordinator_urls)})


def coordinator_environment(
    cluster: Cluster,
    peer_id: str | None,
    *,
    owners: Owners | None,
    coordinator_urls: tuple[str, ...],
) -> dict[str, str]:
    """The environment of one coordinator CVM. Errors and arguments as in `sidecar_environment`."""
    if peer_id is not None and peer_id not in cluster.coordinator_peers():
        peers = ", ".join(cluster.coordinator_peers())
        raise ClusterError([f"peer {peer_id!r} is not a coordinator of this cluster, which has {peers}"])
    return _checked(_common(cluster, COORDINATOR, peer_id, owners, coordinator_urls))


def environment_names(group: Group | None) -> tuple[str, ...]:
    """The names that a CVM of `group` (None: a coordinator) may be given: the measured `allowed_envs`. Sorted."""
    if group is None:
        return tuple(sorted(_COMMON_NAMES))
    return tuple(sorted({*_COMMON_NAMES, *_WORKLOAD_NAMES, *group.compose_env}))


def app_compose(name: str, compose: ComposeFile, env_names: tuple[str, ...], *, owners: Owners | None) -> str:
    """The text of app-compose.json, in canonical JSON. `owners=None` leaves the compose text as it is."""
    text = compose.text if owners is None else with_owners(compose.text, owners)
    return _json(
        {
            "allowed_envs": sorted(set(env_names)),
            "docker_compose_file": text,
            "gateway_enabled": True,
            "kms_enabled": True,
            "local_key_provider_enabled": False,
            "manifest_version": 2,
            "name": name,
            # The gateway reaches one coordinator, not just any, through its instance ID.
            "no_instance_id": False,
            "public_logs": False,
            "public_sysinfo": False,
            # A stranger may read what the CVM measured: that is what attestation is for.
            "public_tcbinfo": True,
            "runner": "docker-compose",
            # Certificates and collateral are judged by the clock.
            "secure_time": True,
            "storage_fs": "zfs",
        }
    )


def compose_hash(text: str) -> str:
    """The compose hash of an app-compose.json: SHA-256 of its bytes, hex."""
    return hashlib.sha256(text.encode()).hexdigest()


_OWNERS_LINE = re.compile(
    rf"""^(?P<head>\s*(?:-\s*)?["']?{OWNERS_VARIABLE}["']?\s*[:=]\s*)(?P<quote>["']?)"""
    r"""(?P<value>[A-Za-z0-9_-][A-Za-z0-9_,: -]*?)(?P=quote)(?P<tail>["']?\s*(?:\#.*)?)$""",
    re.MULTILINE,
)


def with_owners(compose_text: str, owners: Owners) -> str:
    """`compose_text` with the literal MESH_OWNERS replaced by `owners`. ValueError when there is not exactly one such
    literal.
    """
    found = _OWNERS_LINE.findall(compose_text)
    if len(found) != 1:
        raise ValueError(
            f'the compose file has {len(found)} literal lines {OWNERS_VARIABLE}: "…", expected one in the environment '
            f'of the service {SIDECAR!r}; add {OWNERS_VARIABLE}: "{OWNER_KEY_PLACEHOLDER}"'
        )
    text = text_of(owners)
    return _OWNERS_LINE.sub(
        lambda line: f"{line['head']}{line['quote']}{text}{line['quote']}{line['tail']}", compose_text
    )


def owners_of(compose_text: str) -> Owners | None:
    """The owners that are a literal of `compose_text`; None where there are none yet, or several literals."""
    found = [match["value"] for match in _OWNERS_LINE.finditer(compose_text)]
    try:
        return parse_owners(found[0]) if len(found) == 1 else None
    except OwnerError:
        return None


def keyed(compose: ComposeFile, owners: Owners) -> ComposeFile:
    """`compose` with the owners in its text and its services. ValueError as `with_owners`."""
    return parse(with_owners(compose.text, owners), compose.path)


def _common(
    cluster: Cluster, group: str, peer_id: str | None, owners: Owners | None, urls: tuple[str, ...]
) -> dict[str, str]:
    found = {
        "MESH_CLUSTER": cluster.name,
        "MESH_GROUP": group,
        "MESH_COORDINATORS": _json(list(urls)) if urls else "",
    }
    if peer_id is not None:
        found["MESH_PEER_ID"] = peer_id
    if owners is not None:
        found[OWNERS_VARIABLE] = text_of(owners)
    return found


def _checked(environment: dict[str, str]) -> dict[str, str]:
    problems = []
    for name, value in environment.items():
        if len(value.encode()) > _MAX_VALUE:
            problems.append(
                f"{name} has {len(value.encode())} bytes, dstack takes {_MAX_VALUE}; use fewer groups or replicas"
            )
        # dstack's environment file escapes quotes and newlines, but not a backslash (dstack.md 5).
        if "\\" in value:
            problems.append(
                f"{name} has a backslash, which dstack would corrupt; encode the value, for example base64url"
            )
    if problems:
        raise ClusterError(problems)
    return environment


def _group(cluster: Cluster, group: Group, facts: AppFacts, mesh: Mapping[str, str]) -> GroupEntry:
    return GroupEntry(
        app_id=_app_id(facts.app_id),
        compose_hashes=facts.compose_hashes,
        peers=tuple(PeerEntry(peer_id=peer, address=mesh[peer]) for peer in group.peers()),
        backends={
            backend.name: BackendEntry(
                port=backend.port,
                sidecar_port=addresses.sidecar_port_of(backend.port),
                service=backend.parent,
                identity=f"spiffe://{cluster.name}/{backend.workload}",
                owner=backend.owner,
                permissions=backend.permissions,
                callers=cluster.callers(group, backend),
                source=backend.source,
                proxy_protocol=backend.proxy_protocol,
                ingress=backend.ingress,
                public=_public(backend, facts),
            )
            for backend in group.backends
        },
        env=dict(group.compose_env),
        egress=group.egress,
    )


def _public(backend: Backend, facts: AppFacts) -> Public | None:
    """The public listener, with the names that the gateways have for it in place of the word."""
    public = backend.public
    if public is None:
        return None
    names = tuple(gateway_name(_app_id(facts.app_id), public.port, base) for base in facts.gateways)
    sans = (name for san in public.sans for name in (names if san == GATEWAY else (san,)))
    return replace(public, sans=tuple(dict.fromkeys(sans)))


def _app_id(text: str) -> str:
    return text.removeprefix("app_")


def _misfits(cluster: Cluster, deployment: Deployment) -> list[str]:
    problems = []
    if len(deployment.coordinator_urls) != cluster.coordinators:
        problems.append(
            f"the deployment has {len(deployment.coordinator_urls)} coordinator URLs, expected {cluster.coordinators}: "
            "one a coordinator, in the order of their peer IDs"
        )
    names = {group.name for group in cluster.groups}
    problems += [
        f"the deployment lacks group {name!r}; deploy its app first" for name in sorted(names - set(deployment.groups))
    ]
    problems += [
        f"the deployment has group {name!r}, which the cluster does not; remove it, or add the group to cluster.tf"
        for name in sorted(set(deployment.groups) - names)
    ]
    for name, facts in (("coordinator", deployment.coordinator), *sorted(deployment.groups.items())):
        if not re.fullmatch(r"[0-9a-f]{40}", _app_id(facts.app_id)):
            problems.append(f"app {name!r} has the app ID {facts.app_id!r}, expected 40 lower-case hex digits")
        bad = [found for found in facts.compose_hashes if not re.fullmatch(r"[0-9a-f]{64}", found)]
        if bad or not facts.compose_hashes:
            problems.append(
                f"app {name!r} has the compose hashes {bad}, expected at least one of 64 lower-case hex digits"
            )
    problems += _rendezvous_misfits(cluster, deployment)
    problems += [
        f"workload_groups.{group.name}.backends.{backend.name}.public.sans holds {GATEWAY!r}, but no gateway is known "
        "for this app yet; wait until its CVM runs and run terraform apply again, or write the name itself"
        for group in cluster.groups
        for backend in group.backends
        if backend.public is not None and GATEWAY in backend.public.sans
        if group.name in deployment.groups and not deployment.groups[group.name].gateways
    ]
    return problems


def _rendezvous_misfits(cluster: Cluster, deployment: Deployment) -> list[str]:
    owners = {address: peer for peer, address in cluster.mesh_addresses().items()}
    problems = []
    for index, rendezvous in enumerate(deployment.rendezvous):
        name = f"rendezvous {index}"
        if rendezvous.address in owners:
            problems.append(
                f"{name} has the mesh address {rendezvous.address}, as {owners[rendezvous.address]!r} has; "
                "give it one of the pool's first 256, which no CVM gets"
            )
        owners[rendezvous.address] = name
    return problems


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
