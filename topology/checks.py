"""The plan-time checks that concern several entries at once: names, parents, owners, peers, ports, addresses. Pure.

The template's seven are: literal images (`topology.compose`), unique route names, one parent and owner per backend,
at least one slot (`topology.shape`), unique peer IDs, unique VIPs, unique producer sidecar ports.

Long because it is a list: each check is a method of its own, and all see the whole cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from topology import addresses, egress, servicemesh
from topology.egress import Surroundings, Target
from topology.manifest import EVERYBODY, EXCLUSIVE_ROLES, RESERVED_KEYS
from topology.model import COORDINATOR, Backend, Cluster, Group, Route, leader_key
from topology.names import why_no_label
from topology.problems import Problems, Where, did_you_mean
from topology.public_checks import public_problems

_RESERVED_ROUTES = frozenset({"localhost", "mesh"})
"""`localhost` would take the loopback's own name; `mesh` is the zone of peer names."""


_GROUPS = "workload_groups"
_RESERVED_PARENTS = frozenset({"consul"})
"""Consul registers its servers under this name."""
_RESERVED_SECRETS = frozenset({"consul-token"})
_RESERVED_WORKLOADS = frozenset({"node"})
"""`spiffe://<cluster>/node` is the identity of every admitted CVM."""


class Checker:
    """Checks one cluster; `places` says where each entry is written."""

    def __init__(self, cluster: Cluster, places: Mapping[str, Where], problems: Problems) -> None:
        self._cluster = cluster
        self._places = places
        self._problems = problems

    def run(self) -> None:
        """Runs every check; what is wrong is added to the problems."""
        self._peers()
        self._routes()
        self._parents()
        self._reserved()
        self._permissions()
        self._callers()
        self._calls()
        self._sources()
        for entry, message in public_problems(self._cluster):
            self._add(entry, message)
        self._leader_keys()
        self._secrets()
        targets = self._targets()
        for group in self._cluster.groups:
            self._ports(group)
            self._pins(group)
            if group.egress:
                self._egress(group, targets)
        self._addresses()

    def _peers(self) -> None:
        owners = dict.fromkeys(self._cluster.coordinator_peers(), COORDINATOR)
        for group in self._cluster.groups:
            if group.name == COORDINATOR:
                message = "is the name of the coordinators; choose another, peer IDs must be unique"
                self._add(f"workload_groups.{group.name}", message)
                continue
            for peer in group.peers():
                if owners.setdefault(peer, group.name) != group.name:
                    message = f"has the peer ID {peer!r}, as group {owners[peer]!r} has; rename one of the groups"
                    self._add(f"workload_groups.{group.name}", message)

    def _routes(self) -> None:
        first: dict[str, str] = {}
        # By group and name, as routes are rendered.
        for entry, group, route in sorted(self._all_routes(), key=lambda item: (item[1].name, item[2].name)):
            names = [it.name for it in group.names_of(route)]
            taken = [name for name in names if name in first]
            if taken:
                message = (
                    f"has the same name as {first[taken[0]]} ({taken[0]!r}); route names are unique in the cluster, "
                    "rename one"
                )
                self._add(entry, message)
            first.update({name: entry for name in names if name not in first})
            if route.name in _RESERVED_ROUTES:
                self._add(entry, "is a reserved name; choose another")
            if route.members:
                self._members(entry, route, names)
            self._route_backend(entry, group, route)

    def _members(self, entry: str, route: Route, names: list[str]) -> None:
        """What a route to each slot cannot have beside it, and whether its names can be."""
        if route.role is not None or route.fallback is not None:
            message = (
                "is true, but the route asks for a role: its names lead to fixed CVMs, whatever their roles; remove "
                "role and fallback, or use a second route"
            )
            self._add(f"{entry}.members", message)
        if route.vip is not None:
            message = "pins one address, but with members = true the route has a VIP for each slot; remove it"
            self._add(f"{entry}.vip", message)
        # The last one is the longest.
        if why_no_label(route.name) is None and (why := why_no_label(names[-1])) is not None:
            self._add(entry, f"has a member whose name {why}; use a shorter name")

    def _route_backend(self, entry: str, group: Group, route: Route) -> None:
        own = {backend.name: backend for backend in group.backends}
        if route.backend in own:
            self._roles(entry, group, route, own[route.backend])
            return
        others = [g.name for g in self._cluster.groups if route.backend in {b.name for b in g.backends}]
        if others:
            message = f"is {route.backend!r}, a backend of group {others[0]!r}; move the route into that group"
        else:
            message = (
                f"is {route.backend!r}, which is no backend of group {group.name!r}; {did_you_mean(route.backend, own)}"
            )
        self._add(f"{entry}.backend", message)

    def _roles(self, entry: str, group: Group, route: Route, backend: Backend) -> None:
        asked = {"role": route.role, "fallback": route.fallback}
        for field, role in asked.items():
            if role is None:
                continue
            if backend.owner != "workload":
                message = (
                    f"is {role!r}, but backend {backend.name!r} is owned by the platform, which sets no roles; "
                    f'use {field} = null, or owner = "workload" and a workload that publishes its role'
                )
                self._add(f"{entry}.{field}", message)
            elif role not in backend.roles:
                message = (
                    f"is {role!r}, a role that no instance of backend {backend.name!r} can have; "
                    f"{did_you_mean(role, backend.roles)}, or add it to its registration.roles"
                )
                self._add(f"{entry}.{field}", message)
            elif role in EXCLUSIVE_ROLES:
                self._leader(f"{entry}.{field}", f"workload_groups.{group.name}.backends.{backend.name}", role, backend)
        if route.fallback is not None:
            self._fallback(f"{entry}.fallback", route)

    def _fallback(self, entry: str, route: Route) -> None:
        if route.role is None:
            self._add(entry, f"is {route.fallback!r}, but the route asks for no role; remove it, or add a role")
        elif route.fallback == route.role:
            self._add(entry, f"is {route.fallback!r}, the role of the route itself; use another role, or remove it")
        elif route.role in EXCLUSIVE_ROLES:
            message = (
                f"is {route.fallback!r}, but {route.role!r} is a role of one instance, and callers that need it are "
                "not served by others; remove it"
            )
            self._add(entry, message)

    def _leader(self, asking: str, entry: str, role: str, backend: Backend) -> None:
        """What the workload needs to hold an exclusive role: the lock's key, and a session to hold it with."""
        lacking = [] if backend.permissions.key_prefixes else ['key_prefixes = ["service/…"]']
        if not backend.permissions.session_write:
            lacking.append("session_write = true")
        if lacking:
            message = (
                f"lacks {' and '.join(lacking)}: {asking} asks for {role!r}, which one instance holds by a lock in "
                "Consul; add it"
            )
            self._add(f"{entry}.consul_permissions", message)

    def _permissions(self) -> None:
        for entry, backend in self._all_backends():
            for prefix in backend.permissions.key_prefixes:
                folder = f"{prefix.rstrip('/')}/"
                message = ""
                if folder.startswith(RESERVED_KEYS):
                    taken = folder.partition("/")[0]
                    message = f"holds {prefix!r}, but the keys below {taken!r} are the mesh's own; choose another"
                elif prefix.startswith("/"):
                    message = f"holds {prefix!r}; keys in Consul begin without '/', use {prefix.strip('/')!r}"
                if message:
                    self._add(f"{entry}.consul_permissions.key_prefixes", message)

    def _callers(self) -> None:
        groups = {group.name: group for group in self._cluster.groups}
        for group in self._cluster.groups:
            for backend in group.backends:
                entry = f"workload_groups.{group.name}.backends.{backend.name}.callers"
                written = backend.callers or ()
                self._once(entry, written)
                for name in dict.fromkeys(written):
                    if name == EVERYBODY:
                        if len(written) > 1:
                            self._add(
                                entry, f"holds {name!r}, which is everybody, beside others; write [{name!r}] alone"
                            )
                    elif name not in self._written_groups():
                        self._add(entry, f"holds {name!r}, which is no workload group; {did_you_mean(name, groups)}")

    def _calls(self) -> None:
        routes = {route.name: (group, route) for _, group, route in self._all_routes()}
        for group in self._cluster.groups:
            entry = f"workload_groups.{group.name}.calls"
            self._once(entry, group.calls or ())
            for name in dict.fromkeys(group.calls or ()):
                if name not in routes:
                    if name not in self._written_routes():
                        self._add(entry, f"holds {name!r}, which is {self._no_route(name, routes)}")
                    continue
                owner, route = routes[name]
                backend = next((it for it in owner.backends if it.name == route.backend), None)
                if backend is None or backend.callers is None or {group.name, EVERYBODY} & set(backend.callers):
                    continue
                message = (
                    f"holds {name!r}, but workload_groups.{owner.name}.backends.{backend.name}.callers does not hold "
                    f"{group.name!r}; add it there, or remove the route here"
                )
                self._add(entry, message)

    def _targets(self) -> dict[str, tuple[int, tuple[str, ...]]]:
        """Port and callers of each name of a route whose backend is there."""
        found: dict[str, tuple[int, tuple[str, ...]]] = {}
        for _, group, route in self._all_routes():
            backend = next((it for it in group.backends if it.name == route.backend), None)
            if backend is not None:
                callers = self._cluster.callers(group, backend)
                found |= {it.name: (backend.port, callers) for it in group.names_of(route)}
        return found

    def _egress(self, group: Group, targets: Mapping[str, tuple[int, tuple[str, ...]]]) -> None:
        around = Surroundings(
            group=group.name,
            targets={
                name: Target(port=port, callers=callers, open=bool({group.name, EVERYBODY} & set(callers)))
                for name, (port, callers) in targets.items()
            },
            own_ports=frozenset(backend.port for backend in group.backends),
            vip_pool=addresses.VIP_POOL,
            mesh_pool=addresses.MESH_POOL,
        )
        entry = f"workload_groups.{group.name}"
        string = group.egress_string
        written = None if string is None else tuple(servicemesh.entries(string))
        for fault in egress.faults(group.egress, around):
            if fault.field == "remote" and self._is_broken_route(group.egress[fault.index].remote):
                continue
            if written is None:
                field = f".{fault.field}" if fault.field else ""
                self._add(f"{entry}.egress[{fault.index}]{field}", fault.message)
            else:
                self._add(f"{entry}.servicemesh_egress", f"{written[fault.index]}: {fault.field} {fault.message}")

    def _is_broken_route(self, remote: str) -> bool:
        """Whether `remote` names a route that is left out because something in it is wrong: that is said already."""
        name = remote.rpartition(":")[0]
        return name in self._written_routes() - {route.name for _, _, route in self._all_routes()}

    def _no_route(self, name: str, routes: Mapping[str, object]) -> str:
        """What `name` is, where `calls` should have a route, and what to write; the end of a sentence."""
        for group in self._cluster.groups:
            for route in group.routes:
                if name in (it.name for it in group.names_of(route)):
                    return f"one name of the route {route.name!r}; write {route.name!r}, which is all of them"
            if name == group.name and group.routes:
                return f"a group and no route; write some of its routes: {', '.join(it.name for it in group.routes)}"
        return f"no route; {did_you_mean(name, routes)}"

    def _written_groups(self) -> set[str]:
        """Also those that are not in the cluster, because something in them is wrong: that is said already."""
        return {names[1] for names in (entry.split(".") for entry in self._places) if names[0] == _GROUPS and names[1:]}

    def _written_routes(self) -> set[str]:
        """As `_written_groups`."""
        entries = (entry.split(".") for entry in self._places)
        return {names[3] for names in entries if names[0] == _GROUPS and names[2:3] == ["routes"] and names[3:]}

    def _once(self, entry: str, names: tuple[str, ...]) -> None:
        for name in dict.fromkeys(names):
            if names.count(name) > 1:
                self._add(entry, f"holds {name!r} more than once; remove one")

    def _sources(self) -> None:
        for entry, backend in self._all_backends():
            if (why := addresses.why_no_source(backend.source)) is not None:
                self._add(f"{entry}.source_address", why)

    def _leader_keys(self) -> None:
        """Who leads a service is decided by whoever may write its leader key: nobody but its own workload."""
        keys = {
            (key, backend.parent): entry
            for entry, group, route in self._all_routes()
            for backend in group.backends
            if backend.name == route.backend and (key := leader_key(backend, route)) is not None
        }
        for entry, backend in self._all_backends():
            for prefix in backend.permissions.key_prefixes:
                for (key, parent), route in keys.items():
                    if key.startswith(prefix) and parent != backend.parent:
                        message = (
                            f"holds {prefix!r}, which reaches {key!r}, the leader key of {route}; give each database a "
                            "prefix of its own, and end one that another begins with in '/'"
                        )
                        self._add(f"{entry}.consul_permissions.key_prefixes", message)

    def _secrets(self) -> None:
        first: dict[str, str] = {}
        groups = [group.name for group in self._cluster.groups]
        for group in self._cluster.groups:
            for secret in group.secrets:
                entry = f"workload_groups.{group.name}.secrets.{secret.name}"
                if secret.name in _RESERVED_SECRETS:
                    self._add(entry, "is the name of the file with the workload's Consul token; choose another")
                if secret.name in first:
                    message = f"has the same name as {first[secret.name]}; names of secrets are unique in the cluster"
                    self._add(entry, message)
                first.setdefault(secret.name, entry)
                self._grant(f"{entry}.grant", group.name, secret.grant, groups)

    def _grant(self, entry: str, owner: str, grant: tuple[str, ...], groups: list[str]) -> None:
        for name in grant:
            if name not in groups:
                self._add(entry, f"holds {name!r}, which is no workload group; {did_you_mean(name, groups)}")
        if not grant:
            message = f"is empty: the secret would be granted to nobody but {owner!r}, which owns it; name a group"
            self._add(entry, message)
        elif set(grant) == {owner}:
            message = (
                f"holds {owner!r} only, which owns the secret and has it anyway; name another group, or have the "
                "workload derive a secret of its own with GetKey"
            )
            self._add(entry, message)

    def _parents(self) -> None:
        by_backend: dict[str, tuple[str, Backend]] = {}
        by_parent: dict[str, tuple[str, Backend]] = {}
        for entry, backend in self._all_backends():
            where, other = by_backend.setdefault(backend.name, (entry, backend))
            if (other.parent, other.owner) != (backend.parent, backend.owner):
                message = (
                    f"is registered in {backend.parent!r} by the {backend.owner}, but {where} of the same name in "
                    f"{other.parent!r} by the {other.owner}; a backend has one parent and one owner, rename one"
                )
                self._add(f"{entry}.registration", message)
                continue
            where, other = by_parent.setdefault(backend.parent, (entry, backend))
            if other.owner != backend.owner:
                message = (
                    f"is {backend.parent!r}, which {where} registers as owned by the {other.owner}, "
                    f"and this one by the {backend.owner}; use another parent, or one owner for both"
                )
                self._add(f"{entry}.registration.parent", message)
        for group in self._cluster.groups:
            self._parents_within(group)

    def _reserved(self) -> None:
        for entry, backend in self._all_backends():
            if backend.parent in _RESERVED_PARENTS:
                self._add(
                    f"{entry}.registration.parent", f"is {backend.parent!r}, a service of Consul's; choose another"
                )
            if backend.workload in _RESERVED_WORKLOADS:
                message = f"is {backend.workload!r}, the identity that every CVM has; choose another"
                self._add(f"{entry}.workload", message)

    def _parents_within(self, group: Group) -> None:
        seen: dict[str, str] = {}
        for backend in group.backends:
            if backend.parent in seen:
                message = (
                    f"is {backend.parent!r}, as that of backend {seen[backend.parent]!r} of this group; "
                    "a route could not tell their ports apart, use another parent"
                )
                self._add(f"workload_groups.{group.name}.backends.{backend.name}.registration.parent", message)
            seen.setdefault(backend.parent, backend.name)

    def _ports(self, group: Group) -> None:
        ports: dict[int, str] = {}
        sidecar_ports: dict[int, str] = {}
        for backend in group.backends:
            entry = f"workload_groups.{group.name}.backends.{backend.name}.port"
            if backend.port in addresses.PLATFORM_PORTS:
                used_by = addresses.PLATFORM_PORTS[backend.port]
                self._add(entry, f"is {backend.port}, which {used_by} uses inside every CVM; choose another")
            if backend.port in ports:
                message = (
                    f"is {backend.port}, as that of backend {ports[backend.port]!r} in the same CVM; choose another"
                )
                self._add(entry, message)
                continue
            ports[backend.port] = backend.name
            outer = addresses.sidecar_port_of(backend.port)
            if outer in addresses.PLATFORM_PORTS:
                used_by = addresses.PLATFORM_PORTS[outer]
                message = (
                    f"is {backend.port}, so its sidecar port would be {outer}, which {used_by} uses; choose another"
                )
                self._add(entry, message)
            elif outer in sidecar_ports:
                message = (
                    f"is {backend.port}, so its sidecar port would be {outer}, as that of backend "
                    f"{sidecar_ports[outer]!r}; choose another port"
                )
                self._add(entry, message)
            sidecar_ports.setdefault(outer, backend.name)

    def _pins(self, group: Group) -> None:
        entry = f"workload_groups.{group.name}"
        for route in group.routes:
            if route.vip is not None and (why := addresses.why_not(route.vip, addresses.VIP_POOL)) is not None:
                self._add(f"{entry}.routes.{route.name}.vip", why)
        for peer, address in group.mesh_addresses.items():
            if peer not in group.peers():
                message = f"is no peer of this group; {did_you_mean(peer, group.peers())}"
                self._add(f"{entry}.mesh_addresses.{peer}", message)
            elif (why := addresses.why_not(address, addresses.MESH_POOL)) is not None:
                self._add(f"{entry}.mesh_addresses.{peer}", why)

    def _addresses(self) -> None:
        routes = {it.name: (entry, it) for entry, group, route in self._all_routes() for it in group.names_of(route)}
        for clash in addresses.clashes(self._cluster.vips(), addresses.VIP_POOL):
            entry, second = routes[clash.second]
            message = (
                f"has the VIP {clash.address}, as route {clash.first!r} has; "
                f'pin one of them, for example vip = "{clash.free}" here'
            )
            if second.peer is not None:
                message = (
                    f"has the VIP {clash.address} for {clash.second!r}, as route {clash.first!r} has; rename one of "
                    "the routes"
                )
            self._add(entry, message)
        group_of = {peer: group.name for group in self._cluster.groups for peer in group.peers()}
        for clash in addresses.clashes(self._cluster.mesh_addresses(), addresses.MESH_POOL):
            message = (
                f"{clash.second!r} has the mesh address {clash.address}, as {clash.first!r} has; "
                f'pin it: mesh_addresses = {{ "{clash.second}" = "{clash.free}" }}'
            )
            self._add(f"workload_groups.{group_of.get(clash.second, clash.second)}", message)

    def _all_routes(self) -> Iterator[tuple[str, Group, Route]]:
        for group in self._cluster.groups:
            for route in group.routes:
                yield f"workload_groups.{group.name}.routes.{route.name}", group, route

    def _all_backends(self) -> Iterator[tuple[str, Backend]]:
        for group in self._cluster.groups:
            for backend in group.backends:
                yield f"workload_groups.{group.name}.backends.{backend.name}", backend

    def _add(self, entry: str, message: str) -> None:
        outer, where = entry, self._places.get(entry)
        while where is None and "." in outer:
            outer = outer.rpartition(".")[0]
            where = self._places.get(outer)
        self._problems.add(where or Where(file=str(self._cluster.folder)), entry, message)
