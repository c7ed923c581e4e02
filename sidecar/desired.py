"""From everything that is known to everything that should be: one pure function for every leaf package.

`World` is what was observed, `Desired` what Envoy, DNS, the VIP table and the peer link are to hold. Nothing is
remembered between calls: the same world gives the same wish.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network

from coordinator.protocol import MeshPeer
from dns.zone import SrvTarget
from peer.spec import INTERFACE
from runtime.consul_config import SERF_PORT
from runtime.secret import Secret
from sidecar.catalog import ConsulLeaf, Instance, Roots, Rule
from sidecar.certificate import Certificate
from sidecar.roles import Choice, Leader, choose, generation
from topology.envelope import Signed
from topology.manifest import EXCLUSIVE_ROLES, BackendEntry, GroupEntry, Manifest, RouteEntry
from vip.filter import Filter
from vip.resets import Refusal
from xds.spec import EgressRoute, Endpoint, Ingress, Leaf, Principal, Sole, Spec

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What is known at one moment. Parts that were never heard of are None or absent."""

    signed: Signed
    """The newest manifest."""
    own: GroupEntry
    """This CVM's group, as it was measured: of the first manifest."""
    group: str
    address: str | None = None
    """Our mesh address, once admitted."""
    datacenter: str = ""
    """Consul's, once admitted."""
    certificate: Certificate | None = None
    """What we show and trust, once admitted."""
    leaf_key: Secret = field(default_factory=lambda: Secret(""))
    """PKCS#8 PEM: the key of our certificate, once admitted."""
    roots: Roots | None = None
    leaves: Mapping[str, ConsulLeaf] = field(default_factory=dict)
    """By service."""
    catalog: Mapping[str, tuple[Instance, ...]] = field(default_factory=dict)
    """Passing instances by service."""
    held: Mapping[str, tuple[Instance, ...]] = field(default_factory=dict)
    """Instances that were good when the servers lost what they knew. They stay endpoints until they are listed again,
    or for so long as the caller holds them: an empty catalog after a recovery says nothing about them."""
    leaders: Mapping[str, Leader] = field(default_factory=dict)
    """By leader key."""
    rules: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)
    """Intentions by own service."""
    admitted_peers: tuple[MeshPeer, ...] = ()
    """Peers that came with the newest admission: the coordinators. They stay known whatever Consul lists."""
    peers: tuple[MeshPeer, ...] = ()
    """Admitted CVMs, ourselves included once Consul lists us."""
    settled: bool = False
    """The manifest is one that a coordinator enforces; else it is still the environment's."""

    @property
    def manifest(self) -> Manifest:
        """The newest one."""
        return self.signed.manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """What every leaf is to hold."""

    vips: frozenset[str]
    names: Mapping[str, str]
    """Route name to VIP: for DNS and `/run/mesh/hosts`."""
    peer_addresses: Mapping[str, str]
    """Peer ID to mesh address, for DNS."""
    services: Mapping[str, tuple[SrvTarget, ...]]
    """Service to instances, for DNS."""
    peers: tuple[MeshPeer, ...]
    """Who the link connects to."""
    endpoints: Mapping[str, tuple[str, ...]]
    """Route name to the peer IDs behind it, for status."""
    conflicts: Mapping[str, tuple[str, ...]]
    """Route name to the peer IDs that all claim its exclusive role, where several do."""
    refused: frozenset[Refusal]
    """Where nobody is behind the route: connections are refused there, as at a closed port."""
    packets: Filter
    """What may come in by the mesh: calls of our own backends, and Consul's gossip."""
    spec: Spec | None
    """None until there are roots and every leaf."""


def own_services(group: str, entry: GroupEntry) -> tuple[str, ...]:
    """The Consul services that this CVM is: one a backend, else (a pure client) the group's own name.

    Must agree with `coordinator.tokens.services`, which grants them.
    """
    return tuple(dict.fromkeys(b.service for _, b in sorted(entry.backends.items()))) or (group,)


def watched_services(manifest: Manifest) -> tuple[str, ...]:
    """The services whose instances matter: those behind routes."""
    return tuple(sorted({route.service for route in manifest.routes}))


def desired(world: World) -> Desired:
    """The wish for `world`."""
    world = replace(world, catalog=_in_mesh(world, world.catalog), held=_in_mesh(world, world.held))
    choices = {route.name: _choose(world, route) for route in world.manifest.routes}
    chosen = {name: choice.instances for name, choice in choices.items()}
    return Desired(
        vips=frozenset(route.vip for route in world.manifest.routes),
        names={route.name: route.vip for route in world.manifest.routes},
        peer_addresses=_peer_addresses(world),
        services={
            service: tuple(SrvTarget(peer_id=i.peer_id, port=i.port) for i in found)
            for service in watched_services(world.manifest)
            if (found := world.catalog.get(service)) is not None
        },
        peers=tuple(peer for peer in world.peers if peer.address != world.address),
        endpoints={name: tuple(i.peer_id for i in found) for name, found in chosen.items()},
        conflicts={name: choice.conflict for name, choice in choices.items() if choice.conflict},
        refused=frozenset(
            Refusal(route.vip, route.port) for route in world.manifest.routes if not choices[route.name].instances
        ),
        packets=Filter(
            pool=world.manifest.mesh_pool,
            interface=INTERFACE,
            # An agent asks servers and answers nobody but its own CVM: of Consul's ports only gossip is called.
            tcp=frozenset({SERF_PORT, *(backend.sidecar_port for backend in world.own.backends.values())}),
            udp=frozenset({SERF_PORT}),
        ),
        spec=_spec(world, choices),
    )


def _in_mesh(world: World, found: Mapping[str, tuple[Instance, ...]]) -> Mapping[str, tuple[Instance, ...]]:
    """Those at a mesh address. A CVM may register its services as it likes; a bad place must not hold up the whole
    snapshot, or lead callers out of the mesh.
    """
    pool = world.manifest.mesh_pool
    return {
        service: tuple(one for one in listed if 0 < one.port < 1 << 16 and _is_in(pool, one.address))
        for service, listed in found.items()
    }


@lru_cache(maxsize=1 << 14)
def _is_in(pool: str, address: str) -> bool:
    """Remembered, for every event asks it of every instance, and parsing is most of what an event costs."""
    try:
        return IPv4Address(address) in IPv4Network(pool)
    except ValueError:
        return False


def _choose(world: World, route: RouteEntry) -> Choice:
    if route.peer is not None:
        return Choice(instances=_member(world.manifest, route))
    return choose(
        route,
        world.catalog.get(route.service, ()),
        _in_slots(world.manifest.groups.get(route.group), world.held.get(route.service, ())),
        world.leaders.get(route.leader_key) if route.leader_key is not None else None,
    )


def _in_slots(group: GroupEntry | None, held: tuple[Instance, ...]) -> tuple[Instance, ...]:
    """Those in a slot of the manifest's `group`: one that lost its slot is not held on to, for it will not be listed
    again.
    """
    if group is None or not held:
        return held
    slots = {peer.peer_id for peer in group.peers}
    return tuple(one for one in held if one.peer_id in slots)


def _member(manifest: Manifest, route: RouteEntry) -> tuple[Instance, ...]:
    """The one CVM behind a member route, where the manifest places it, whether Consul lists it or not: members ask each
    other exactly when Consul is in trouble.
    """
    group = manifest.groups.get(route.group)
    backend = group.backends.get(route.backend) if group is not None else None
    if group is None or backend is None:
        return ()
    return tuple(
        Instance(
            service=route.service,
            proxy_id=f"{route.service}-{peer.peer_id}",
            peer_id=peer.peer_id,
            address=peer.address,
            port=backend.sidecar_port,
            tags=(),
            modify_index=0,
        )
        for peer in group.peers
        if peer.peer_id == route.peer
    )


def service_uri(trust_domain: str, datacenter: str, service: str) -> str:
    """The SPIFFE ID that Consul gives a service."""
    return f"{_services_uri(trust_domain, datacenter)}{service}"


def _services_uri(trust_domain: str, datacenter: str) -> str:
    return f"spiffe://{trust_domain}/ns/default/dc/{datacenter}/svc/"


def principals(
    rules: tuple[Rule, ...],
    trust_domain: str,
    datacenter: str,
    services: Iterable[str],
    callers: frozenset[str] | None = None,
) -> tuple[Principal, ...]:
    """Who may call, by intentions in order of strength. Without a rule nobody may: ACLs deny by default.

    `*` is every identity of the trust domain. Where a stronger rule refuses one of them, a prefix would let it in, so
    the known `services` are listed one by one instead. `callers` are the services that the manifest lets call, None is
    all of them: what intentions allow beyond that does not count, so Consul can withhold and not grant.
    """
    allowed: dict[str, bool] = {}
    for rule in rules:
        if rule.source == "*":
            if rule.allow and all(allowed.values()) and callers is None:
                return (Principal(uri=_services_uri(trust_domain, datacenter), prefix=True),)
            if rule.allow:
                allowed = {**dict.fromkeys(services, True), **allowed}
            break
        allowed.setdefault(rule.source, rule.allow)
    return tuple(
        Principal(uri=service_uri(trust_domain, datacenter, source))
        for source, yes in sorted(allowed.items())
        if yes and (callers is None or source in callers)
    )


def _callers(world: World, name: str, backend: BackendEntry) -> frozenset[str] | None:
    """The services that may call our backend `name`; None is all. The newest manifest counts, without a restart."""
    newest = world.manifest.groups.get(world.group)
    groups = (newest.backends if newest is not None else {}).get(name, backend).callers
    if groups is None:
        return None
    known = world.manifest.groups
    return frozenset(service for group in groups if group in known for service in own_services(group, known[group]))


def _spec(world: World, choices: Mapping[str, Choice]) -> Spec | None:
    identities = own_services(world.group, world.own)
    roots, address = world.roots, world.address
    if roots is None or address is None or any(service not in world.leaves for service in identities):
        return None
    everyone = {name for group, entry in world.manifest.groups.items() for name in own_services(group, entry)}
    return Spec(
        egress=tuple(
            _egress(world, route, choices[route.name].instances, identities[0], roots.trust_domain)
            for route in world.manifest.routes
        ),
        ingress=tuple(
            _ingress(
                name,
                backend,
                address,
                principals(
                    world.rules.get(backend.service, ()),
                    roots.trust_domain,
                    world.datacenter,
                    everyone,
                    _callers(world, name, backend),
                ),
            )
            for name, backend in sorted(world.own.backends.items())
        ),
        leaves=tuple(
            Leaf(
                name=service,
                uri=service_uri(roots.trust_domain, world.datacenter, service),
                chain_pem=world.leaves[service].chain_pem,
                key_pem=world.leaves[service].key_pem,
            )
            for service in identities
        ),
        roots_pem=roots.pem,
    )


def _egress(
    world: World, route: RouteEntry, chosen: tuple[Instance, ...], identity: str, trust_domain: str
) -> EgressRoute:
    behind = {Endpoint(address=instance.address, port=instance.port) for instance in chosen}
    sole: Sole | None = None
    if route.role in EXCLUSIVE_ROLES:
        # Envoy knows every slot that may come to lead: when one does, only that is to be said, and nothing ever of the
        # others' health.
        sole = Sole(endpoint=next(iter(behind), None))
        behind |= _slots(world.manifest, route)
    return EgressRoute(
        name=route.name,
        vip=route.vip,
        port=route.port,
        endpoints=tuple(sorted(behind)),
        sole=sole,
        identity=identity,
        peer_sans=(service_uri(trust_domain, world.datacenter, route.service),),
        generation=generation(route, chosen),
    )


def _slots(manifest: Manifest, route: RouteEntry) -> set[Endpoint]:
    """Where the route's backend listens in each slot of its group, admitted or not."""
    group = manifest.groups.get(route.group)
    backend = group.backends.get(route.backend) if group is not None else None
    if group is None or backend is None:
        return set()
    return {Endpoint(address=peer.address, port=backend.sidecar_port) for peer in group.peers}


def _ingress(name: str, backend: BackendEntry, address: str, allowed: tuple[Principal, ...]) -> Ingress:
    return Ingress(
        name=name,
        address=address,
        port=backend.sidecar_port,
        identity=backend.service,
        target=Endpoint(address=LOOPBACK, port=backend.port),
        source=backend.source,
        proxy_protocol=backend.proxy_protocol,
        allowed=allowed,
    )


def _peer_addresses(world: World) -> Mapping[str, str]:
    """Every slot of the manifest has its address, admitted or not: a name must not come and go with its CVM."""
    manifest = world.manifest
    slots = {peer.peer_id: peer.address for entry in manifest.groups.values() for peer in entry.peers}
    return slots | {peer.peer_id: peer.address for peer in manifest.coordinators.peers}
