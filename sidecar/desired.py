"""From everything that is known to everything that should be: one pure function for every leaf package.

`World` is what was observed, `Desired` what Envoy, DNS, the VIP table and the peer link are to hold. Nothing is
remembered between calls: the same world gives the same wish.

Long because it is one function: each part of the wish is a helper of its own, and all of them read one world.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from admission.protocol import MeshPeer
from dns.zone import SrvTarget
from peer.spec import INTERFACE
from runtime.consul_config import SERF_PORT
from runtime.secret import Secret
from sidecar.catalog import Instance
from sidecar.certificate import Certificate
from sidecar.dialled import RESOLVER, Dialled, dialled
from sidecar.hints import RouteHint
from sidecar.roles import Choice, Leader, choose, generation
from topology.addresses import VIP_POOL
from topology.envelope import Signed
from topology.manifest import (
    EVERYBODY,
    EXCLUSIVE_ROLES,
    BackendEntry,
    CoordinatorPeer,
    Coordinators,
    GroupEntry,
    Manifest,
    RouteEntry,
)
from topology.public import OFF, Public
from topology.revocation import why_revoked
from vip.filter import Filter
from vip.resets import Refusal
from xds.spec import EgressRoute, Endpoint, Ingress, Leaf, Principal, PublicListener, Sole, Spec

LOOPBACK = "127.0.0.1"
ANY_ADDRESS = "0.0.0.0"
"""Where public listeners listen: on every IPv4 address of the CVM, for the platform's gateway dials one of them. Calls
that come by the mesh are refused there (`vip.filter`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What is known at one moment. Parts that were never heard of are None or absent."""

    signed: Signed
    """The newest manifest."""
    own: GroupEntry
    """This CVM's group as its first manifest has it: what it registers and checks where a newer one lacks the group. It
    grants nobody anything."""
    group: str
    before: tuple[Signed, ...] = ()
    """Manifests that led to `signed`, each followed by the next one, as far as this process took them one by one;
    oldest first."""
    address: str | None = None
    """Our mesh address, once admitted."""
    certificate: Certificate | None = None
    """What we show and trust, once admitted."""
    leaf_key: Secret = field(default_factory=lambda: Secret(""))
    """PKCS#8 PEM: the key of our certificate, once admitted."""
    public_key: Secret = field(default_factory=lambda: Secret(""))
    """Likewise that of the certificates which our public listeners show."""
    catalog: Mapping[str, tuple[Instance, ...]] = field(default_factory=dict)
    """Passing instances by service."""
    held: Mapping[str, tuple[Instance, ...]] = field(default_factory=dict)
    """Instances that were good when the servers lost what they knew. They stay endpoints until they are listed again,
    or for so long as the caller holds them: an empty catalog after a recovery says nothing about them."""
    leaders: Mapping[str, Leader] = field(default_factory=dict)
    """By leader key."""
    admitted_peers: tuple[MeshPeer, ...] = ()
    """Peers that came with the newest admission: the coordinators. They stay known, but for one that Consul listed and
    lists no more.
    """
    listed_peers: tuple[MeshPeer, ...] = ()
    """Admitted CVMs as Consul lists them now."""
    held_peers: tuple[MeshPeer, ...] = ()
    """Peers that were admitted when the servers lost what they knew. Their tunnels stay as instances in `held` do."""
    records: str = ""
    """Which records the servers have: another text says that they lost the former ones. Empty until it was read."""
    held_records: str = ""
    """Those that they had when something was last held."""
    peers: tuple[MeshPeer, ...] = ()
    """Admitted CVMs that the manifest has, ourselves included once Consul lists us."""
    former: tuple[CoordinatorPeer, ...] = ()
    """Coordinators that had the mesh before the manifest handed it over: their Consul is what there is until one of the
    new ones has admitted this CVM."""
    roots_file: str | None = None
    """Absolute path of the public authorities' certificates; None: this machine has none."""

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
    pools: tuple[str, ...]
    """Networks of the VIPs and of the mesh addresses, whose reverse names are ours."""
    peers: tuple[MeshPeer, ...]
    """Who the link connects to."""
    endpoints: Mapping[str, tuple[str, ...]]
    """Route name to the peer IDs behind it, for status."""
    conflicts: Mapping[str, tuple[str, ...]]
    """Route name to the peer IDs that all claim its exclusive role, where several do."""
    barred: tuple[str, ...]
    """Routes that this CVM's group may not call: they have names and VIPs, and a connection is reset."""
    refused: frozenset[Refusal]
    """Where nobody is behind the route: connections are refused there, as at a closed port."""
    packets: Filter | None
    """What may come in by the mesh: calls of our own backends, and Consul's gossip. None before there is a manifest,
    and so no tunnel."""
    spec: Spec | None
    """None until we are admitted."""
    rootless: tuple[str, ...] = ()
    """Egresses to servers outside that cannot be: they pin no certificates, and this machine has none."""


def beforehand(routes: Iterable[RouteHint]) -> Desired:
    """The wish before there is a manifest: the names and VIPs that the environment has, which lead nowhere yet."""
    hints = tuple(routes)
    return Desired(
        vips=frozenset(hint.vip for hint in hints),
        names={hint.name: hint.vip for hint in hints},
        peer_addresses={},
        services={},
        pools=(VIP_POOL,),
        peers=(),
        endpoints={},
        conflicts={},
        barred=(),
        refused=frozenset(),
        packets=None,
        spec=None,
    )


def watched_services(manifest: Manifest) -> tuple[str, ...]:
    """The services whose instances matter: those behind routes."""
    return tuple(sorted({route.service for route in manifest.routes}))


def desired(world: World) -> Desired:
    """The wish for `world`."""
    manifest = world.manifest
    choices = {route.name: _choose(world, route) for route in manifest.routes}
    behind = {route.name: _behind(manifest, route, choices[route.name].instances) for route in manifest.routes}
    egresses = _dialled(world)
    return Desired(
        vips=frozenset(route.vip for route in manifest.routes),
        names={route.name: route.vip for route in manifest.routes},
        peer_addresses=_peer_addresses(world),
        services=_services(world),
        pools=(manifest.vip_pool, manifest.mesh_pool),
        peers=tuple(peer for peer in world.peers if peer.address != world.address),
        endpoints={name: tuple(found) for name, found in behind.items()},
        conflicts={name: choice.conflict for name, choice in choices.items() if choice.conflict},
        barred=tuple(route.name for route in manifest.routes if not may_call(manifest, world.group, route)),
        refused=frozenset(
            Refusal(*at)
            for route in manifest.routes
            if not behind[route.name]
            for at in ((route.vip, route.port), *egresses.doors.get(route.name, ()))
        ),
        packets=Filter(
            pool=manifest.mesh_pool,
            interface=INTERFACE,
            # An agent asks servers and answers nobody but its own CVM: of Consul's ports only gossip is called.
            tcp=frozenset({SERF_PORT, *_open_ports(world)}),
            udp=frozenset({SERF_PORT}),
        ),
        spec=_spec(world, choices, behind, egresses),
        rootless=egresses.rootless,
    )


def _choose(world: World, route: RouteEntry) -> Choice:
    """Who is behind `route`: of what Consul lists, those in slots of the route's group."""
    slots = _slots(world.manifest, route)
    if route.peer is not None:
        return Choice(instances=_member(route, slots))
    return choose(
        route,
        _in_slots(slots, world.catalog.get(route.service, ())),
        _in_slots(slots, world.held.get(route.service, ())),
        world.leaders.get(route.leader_key) if route.leader_key is not None else None,
    )


def _slots(manifest: Manifest, route: RouteEntry) -> Mapping[str, Endpoint]:
    """Where the route's backend is reached in each slot of its group, admitted or not, by peer ID."""
    group = manifest.groups.get(route.group)
    backend = group.backends.get(route.backend) if group is not None else None
    if group is None or backend is None:
        return {}
    return {
        peer.peer_id: Endpoint(address=peer.address, port=backend.sidecar_port)
        for peer in group.peers
        if not why_revoked(manifest.revoked, peer_id=peer.peer_id)
    }


def _open_ports(world: World) -> frozenset[int]:
    """The ingress ports of this CVM's backends. Public ports are not among them: nobody calls those by the mesh."""
    return frozenset(backend.sidecar_port for backend in _served(world).values())


def _in_slots(slots: Mapping[str, Endpoint], found: tuple[Instance, ...]) -> tuple[Instance, ...]:
    """Those in a slot. A CVM may register what it likes on its node, and a slot that the manifest took away has no
    instance, whatever is listed or held.
    """
    return tuple(one for one in found if one.peer_id in slots)


def _behind(manifest: Manifest, route: RouteEntry, chosen: tuple[Instance, ...]) -> Mapping[str, Endpoint]:
    """The endpoints of the chosen instances, by peer ID: at the manifest's addresses and ports."""
    slots = _slots(manifest, route)
    return {one.peer_id: slots[one.peer_id] for one in chosen}


def _member(route: RouteEntry, slots: Mapping[str, Endpoint]) -> tuple[Instance, ...]:
    """The one CVM behind a member route, whether Consul lists it or not: members ask each other exactly when Consul is
    in trouble.
    """
    if route.peer is None or route.peer not in slots:
        return ()
    own = f"{route.service}-{route.peer}"
    return (Instance(service_id=own, peer_id=route.peer, tags=(), modify_index=0),)


def _services(world: World) -> Mapping[str, tuple[SrvTarget, ...]]:
    """The instances of each service behind a route, where Consul has answered for it."""
    found: dict[str, dict[str, int]] = {}
    for route in world.manifest.routes:
        listed = world.catalog.get(route.service)
        if listed is None:
            continue
        slots = _slots(world.manifest, route)
        ports = {one.peer_id: slots[one.peer_id].port for one in _in_slots(slots, listed)}
        found[route.service] = ports | found.get(route.service, {})
    return {
        service: tuple(SrvTarget(peer_id=peer_id, port=port) for peer_id, port in sorted(ports.items()))
        for service, ports in found.items()
    }


def identity(manifest: Manifest, group: str) -> str:
    """The SPIFFE ID in the certificates of a group's CVMs, as `coordinator.authority` gives it."""
    return f"spiffe://{manifest.cluster}/{group}"


def callers(manifest: Manifest, group: str, name: str) -> tuple[Principal, ...]:
    """Who may call backend `name` of `group`: the groups that the newest manifest lists, and nobody where it lacks the
    backend. What this CVM started with came by the host's hands and grants nothing.
    """
    newest = manifest.groups.get(group)
    if newest is None or name not in newest.backends:
        return ()
    listed = newest.backends[name].callers
    groups = manifest.groups if EVERYBODY in listed else set(listed) & manifest.groups.keys()
    return tuple(Principal(uri=identity(manifest, each)) for each in sorted(groups))


def may_call(manifest: Manifest, group: str, route: RouteEntry) -> bool:
    """Whether CVMs of `group` may call `route`: whoever serves it goes by the same list."""
    own = identity(manifest, group)
    return any(each.uri == own for each in callers(manifest, route.group, route.backend))


def _dialled(world: World) -> Dialled:
    """What our own group's programs may dial beside the VIPs, by the newest manifest."""
    group = world.manifest.groups.get(world.group)
    return dialled(group.egress if group is not None else (), world.roots_file)


def _spec(
    world: World,
    choices: Mapping[str, Choice],
    behind: Mapping[str, Mapping[str, Endpoint]],
    egresses: Dialled,
) -> Spec | None:
    held, address, manifest = world.certificate, world.address, world.manifest
    if held is None or address is None:
        return None
    public = _publics(world, held)
    return Spec(
        egress=tuple(
            _egress(world, route, choices[route.name].instances, behind[route.name], egresses.doors.get(route.name, ()))
            for route in manifest.routes
        ),
        outside=egresses.outside,
        resolver=RESOLVER,
        ingress=tuple(_ingress(world, name, backend, address) for name, backend in sorted(_served(world).items())),
        leaves=(
            Leaf(
                name=world.group,
                uri=identity(manifest, world.group),
                chain_pem=held.leaf.pem,
                key_pem=world.leaf_key,
            ),
            *(_public_leaf(world, name, held.newest.public[name]) for name in public),
        ),
        roots_pem=held.trusted_pem,
        public=tuple(_listener(name, listener) for name, listener in public.items()),
    )


def _publics(world: World, held: Certificate) -> Mapping[str, Public]:
    """Our public listeners by backend, those that have a certificate: one that a newer manifest brings has it with the
    next renewal, which asks for it at once.
    """
    return {
        name: backend.public
        for name, backend in sorted(_served(world).items())
        if backend.public is not None and name in held.newest.public
    }


def _public_leaf(world: World, name: str, chain_pem: str) -> Leaf:
    return Leaf(name=_public_name(name), uri=None, chain_pem=chain_pem, key_pem=world.public_key)


def _listener(name: str, public: Public) -> PublicListener:
    return PublicListener(
        name=name, address=ANY_ADDRESS, port=public.port, identity=_public_name(name), ingress=name, alpn=public.alpn
    )


def _public_name(backend: str) -> str:
    """No group has such a name: a label has no '/'."""
    return f"public/{backend}"


def _egress(
    world: World,
    route: RouteEntry,
    chosen: tuple[Instance, ...],
    found: Mapping[str, Endpoint],
    doors: tuple[Endpoint, ...],
) -> EgressRoute:
    behind = set(found.values())
    sole: Sole | None = None
    if route.role in EXCLUSIVE_ROLES:
        # Envoy knows every slot that may come to lead: when one does, only that is to be said, and nothing ever of the
        # others' health.
        sole = Sole(endpoint=next(iter(behind), None))
        behind |= set(_slots(world.manifest, route).values())
    return EgressRoute(
        name=route.name,
        vip=route.vip,
        port=route.port,
        endpoints=tuple(sorted(behind)),
        sole=sole,
        identity=world.group,
        peer_sans=(identity(world.manifest, route.group),),
        generation=generation(route, chosen),
        doors=doors,
    )


def _backends(world: World) -> Mapping[str, BackendEntry]:
    """Our own backends by name, by the newest manifest alone: which local server answers, and from where it is dialled,
    is a grant, too, and what this CVM started with came by the host's hands.
    """
    newest = world.manifest.groups.get(world.group)
    return newest.backends if newest is not None else {}


def _served(world: World) -> Mapping[str, BackendEntry]:
    """Those that anybody outside of this CVM reaches."""
    return {name: backend for name, backend in _backends(world).items() if backend.ingress != OFF}


def _ingress(world: World, name: str, backend: BackendEntry, address: str) -> Ingress:
    return Ingress(
        name=name,
        address=address,
        port=backend.sidecar_port,
        identity=world.group,
        target=Endpoint(address=LOOPBACK, port=backend.port),
        source=backend.source,
        proxy_protocol=backend.proxy_protocol,
        allowed=callers(world.manifest, world.group, name),
        denied=_revoked_addresses(world.manifest),
    )


def _revoked_addresses(manifest: Manifest) -> tuple[str, ...]:
    """Mesh addresses of revoked slots: what a CVM there has been given is good for a while yet, and no list that it may
    have written counts.
    """
    entries: tuple[GroupEntry | Coordinators, ...] = (manifest.coordinators, *manifest.groups.values())
    peers = [peer for entry in entries for peer in entry.peers]
    return tuple(sorted(it.address for it in peers if why_revoked(manifest.revoked, peer_id=it.peer_id)))


def _peer_addresses(world: World) -> Mapping[str, str]:
    """Every slot of the manifest has its address, admitted or not: a name must not come and go with its CVM."""
    manifest = world.manifest
    slots = {peer.peer_id: peer.address for entry in manifest.groups.values() for peer in entry.peers}
    return slots | {peer.peer_id: peer.address for peer in manifest.coordinators.peers}
