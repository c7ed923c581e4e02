"""The cluster as a value: groups, backends, routes. Pure; made by `topology.cluster`, rendered by `topology.render`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from topology.addresses import INGRESS_SOURCE, MESH_POOL, VIP_POOL, mesh_address_of, vip_of
from topology.egress import EgressEntry, called_by
from topology.manifest import EVERYBODY, EXCLUSIVE_ROLES, Permissions
from topology.public import MTLS, OFF, Public

ROLES = ("master", "replica")
"""The roles of a workload-owned backend that does not say which: Patroni's."""
COORDINATOR = "coordinator"
"""The group name of the coordinators; no workload group may have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A local server of a group, bound to `127.0.0.1:<port>`."""

    name: str
    port: int
    workload: str
    """Suffix of the admission identity `spiffe://<cluster>/<workload>`."""
    owner: str
    """`platform` or `workload`: who keeps the Consul registration up to date."""
    parent: str
    """The Consul service in which the backend is registered."""
    roles: tuple[str, ...] = ROLES
    """The roles that its instances can have; only a workload-owned one has any."""
    permissions: Permissions = field(default_factory=Permissions)
    callers: tuple[str, ...] | None = None
    """Groups whose CVMs may call, or EVERYBODY alone; None: those whose `calls` or egress name a route to it."""
    source: str = INGRESS_SOURCE
    """Loopback address from which the ingress dials the server."""
    proxy_protocol: bool = False
    """The ingress begins each connection to the server with a PROXY protocol v2 header."""
    ingress: str = MTLS
    """How it is reached (`topology.public.INGRESSES`)."""
    public: Public | None = None
    """The listener for clients from outside; exactly where `ingress` is `tls`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A stable name that applications dial, on the port of its backend."""

    name: str
    backend: str
    """A backend of the same group."""
    role: str | None = None
    """Only instances with this tag are endpoints."""
    fallback: str | None = None
    """The role that counts where no instance has `role`."""
    vip: str | None = None
    """A pinned VIP; None takes the one that follows from the name."""
    members: bool = False
    """One name a slot instead of one for all: `<name>-<index>` leads to the CVM with that index, and to no other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteName:
    """One name that applications dial, and the route that it comes from."""

    name: str
    route: Route
    peer: str | None = None
    """The peer ID behind the name; None: whoever has the route's role."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSecret:
    """A secret that a group declares and other groups are granted."""

    name: str
    grant: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A workload group: one dstack app with `replicas` CVMs."""

    name: str
    replicas: int
    compose: Path
    compose_env: dict[str, str] = field(default_factory=dict)
    backends: tuple[Backend, ...] = ()
    routes: tuple[Route, ...] = ()
    secrets: tuple[WorkloadSecret, ...] = ()
    calls: tuple[str, ...] | None = None
    """Routes of the cluster, as cluster.tf names them, that its CVMs may call; None says nothing, as () does."""
    mesh_addresses: dict[str, str] = field(default_factory=dict)
    """Pinned mesh addresses by peer ID; the others follow from the peer ID."""
    egress: tuple[EgressEntry, ...] = ()
    """Further loopback addresses of its CVMs, and where each leads."""
    egress_string: str | None = None
    """The annotation's string out of which `egress` was read; None: it was written field by field."""

    def peers(self) -> tuple[str, ...]:
        """The peer IDs of the group."""
        return tuple(f"{self.name}-{index}" for index in range(self.replicas))

    def names_of(self, route: Route) -> tuple[RouteName, ...]:
        """The names of `route`, a route of this group: its own, or one a slot in order of the slots."""
        if not route.members:
            return (RouteName(name=route.name, route=route),)
        return tuple(
            RouteName(name=f"{route.name}-{index}", route=route, peer=peer) for index, peer in enumerate(self.peers())
        )

    def services(self) -> tuple[str, ...]:
        """The Consul services that a CVM of the group is; without backends the group's own name
        (`coordinator.tokens.services`).
        """
        return tuple(dict.fromkeys(backend.parent for backend in self.backends)) or (self.name,)

    def backend(self, name: str) -> Backend:
        """The backend called `name`; KeyError when there is none."""
        return {backend.name: backend for backend in self.backends}[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A checked cluster."""

    name: str
    folder: Path
    coordinators: int
    coordinator_compose: Path
    groups: tuple[Group, ...]
    public: tuple[str, ...] = ()
    """Groups that have a public URL: `outputs.tf` has an output `<group>_url`."""

    def group(self, name: str) -> Group:
        """The group called `name`; KeyError when there is none."""
        return {group.name: group for group in self.groups}[name]

    @property
    def says_who_calls(self) -> bool:
        """Whether any group has `calls` or an egress to a route, or any backend `callers`. Where nothing does, as in a
        cluster of before these fields, every group may call every backend; where anything does, nobody may who is not
        named.
        """
        return any(
            group.calls is not None
            or called_by(group.egress)
            or any(backend.callers is not None for backend in group.backends)
            for group in self.groups
        )

    def callers(self, group: Group, backend: Backend) -> tuple[str, ...]:
        """The groups whose CVMs may call `backend` of `group`, or EVERYBODY alone. Sorted."""
        if backend.ingress == OFF:
            return ()
        if not self.says_who_calls:
            return (EVERYBODY,)
        if backend.callers is not None:
            return tuple(sorted(backend.callers))
        own = [route for route in group.routes if route.backend == backend.name]
        routes = {route.name for route in own}
        names = {it.name for route in own for it in group.names_of(route)}
        return tuple(
            sorted(
                other.name
                for other in self.groups
                if routes.intersection(other.calls or ()) or names & called_by(other.egress)
            )
        )

    def coordinator_peers(self) -> tuple[str, ...]:
        """The peer IDs of the coordinators."""
        return tuple(f"{COORDINATOR}-{index}" for index in range(self.coordinators))

    def vips(self, pool: str = VIP_POOL) -> dict[str, str]:
        """Route name to VIP, pins applied; a route with `members` has a name and a VIP for each slot."""
        return {
            it.name: (None if it.peer else route.vip) or vip_of(it.name, pool)
            for group in self.groups
            for route in group.routes
            for it in group.names_of(route)
        }

    def mesh_addresses(self, pool: str = MESH_POOL) -> dict[str, str]:
        """Peer ID to mesh address, coordinators first, pins applied."""
        pinned = {peer: address for group in self.groups for peer, address in group.mesh_addresses.items()}
        peers = [*self.coordinator_peers(), *(peer for group in self.groups for peer in group.peers())]
        return {peer: pinned.get(peer) or mesh_address_of(peer, pool) for peer in peers}


def leader_key(backend: Backend, route: Route) -> str | None:
    """The KV key of the lock that says who has the exclusive role that `route` asks for (itself or as its fallback):
    Patroni's, whose scope is the last part of the backend's first key prefix. None where there is no such role.
    """
    prefixes = backend.permissions.key_prefixes
    if backend.owner != "workload" or not prefixes or not EXCLUSIVE_ROLES & {route.role, route.fallback}:
        return None
    return f"{prefixes[0].rstrip('/')}/leader"
