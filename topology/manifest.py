"""The manifest: which measured workloads may join, as whom, with which rights, routes and addresses.

Lives here: the frozen value and its JSON form. Pure. `topology.envelope` signs it, `topology.succession` says which one
may follow which. The coordinator enforces a manifest, a sidecar reads its coordinator entry and its routes,
`topology.render` writes it.

Long because the form is one value: each entry is here once, with what it means, beside the checks that it must pass.
"""

from __future__ import annotations

import dataclasses
import json
import re
import reprlib
from dataclasses import dataclass, field

from runtime.jsons import once
from topology import egress, handover, places, references, texts
from topology import revocation as revocations
from topology.addresses import INGRESS_SOURCE
from topology.egress import EgressEntry, Surroundings, Target
from topology.handover import Handover, HandoverError
from topology.named import named
from topology.names import why_no_label
from topology.owners import OwnerError, Owners, check
from topology.places import Dialled, Place, PlacesError
from topology.public import MTLS, OFF, Public, check_group, shared
from topology.references import Reference, ReferencesError
from topology.revocation import Revocation, RevocationError
from topology.texts import TextsError
from topology.trees import ManifestError, field_names, from_tree, shown_names
from topology.variables import VARIABLE, why_obeyed

MANIFEST_VERSION = 2
EXCLUSIVE_ROLES = frozenset({"master"})
"""Roles that one instance holds at a time."""
EVERYBODY = "*"
"""As the only caller of a backend: every admitted CVM may call."""
COORDINATORS = "coordinator"
"""The coordinators' app, where a group is named."""
OVERLAP_SECONDS = (60, 3600)
"""Least and greatest `overlap_seconds`. At least twice what the slowest CVM may take to show a new certificate (25 s,
`sidecar.certificate.PRESENT_SECONDS`), for one that missed an epoch shows its old one for two such times; and no longer
than one has to wait until an evicted CVM's certificate is worth nothing."""
LEAF_HOURS = (1, 72)
"""Least and greatest `leaf_hours`: above the window, and no more than a few days, for nothing else ends a certificate
whose CVM is evicted while coordinators are away."""
RESERVED_KEYS = ("mesh/", "coordinator/")
"""Prefixes in Consul's KV that only coordinators write."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_APP_ID = re.compile(r"[0-9a-f]{40}")


class NewerError(ManifestError):
    """The manifest says itself that it is for a newer program: by its version, or by what `critical` names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerEntry:
    """One CVM that may exist: its peer ID and its mesh address."""

    peer_id: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorPeer:
    """One coordinator CVM and the URL at which its admission broker answers (RA-TLS)."""

    peer_id: str
    address: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinators:
    """The coordinators' app: what they must measure, and where they are."""

    app_id: str
    compose_hashes: tuple[str, ...]
    peers: tuple[CoordinatorPeer, ...]
    handover: Handover | None = None
    """Who has the mesh until they have it; None: they have it, or it begins with them."""

    @property
    def apps(self) -> frozenset[str]:
        """Their app, and the one before it where there is a handover."""
        return handover.apps(self.app_id, self.handover)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendezvous:
    """A UDP-reachable host that learns NAT mappings and relays ciphertext. A WireGuard peer of every admitted CVM."""

    public_key: str
    """WireGuard public key, base64."""
    endpoint: str
    """Public `ip:port` (UDP)."""
    address: str
    """Its mesh address; its control API listens there only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """Extra Consul rights of a backend's identity (the template's `consul_permissions`)."""

    key_prefixes: tuple[str, ...] = ()
    session_write: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendEntry:
    """One local server of a group."""

    port: int
    """Where the workload listens on 127.0.0.1."""
    sidecar_port: int
    """Where the ingress Envoy listens on the mesh address."""
    service: str
    """The Consul service: the template's `registration.parent`."""
    identity: str
    """`spiffe://<cluster>/<workload>`."""
    owner: str
    """`platform` or `workload`."""
    permissions: Permissions = Permissions()
    callers: tuple[str, ...] = ()
    """Groups whose CVMs may call, or EVERYBODY alone. Nobody else may, its own group neither."""
    source: str = INGRESS_SOURCE
    """Loopback address from which the ingress dials the server."""
    proxy_protocol: bool = False
    """The ingress begins each connection to the server with a PROXY protocol v2 header."""
    ingress: str = MTLS
    """How it is reached (`topology.public.INGRESSES`)."""
    public: Public | None = None
    """The listener for clients from outside; exactly where `ingress` is `tls`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupEntry:
    """One workload group: one dstack app."""

    app_id: str
    compose_hashes: tuple[str, ...]
    peers: tuple[PeerEntry, ...]
    backends: dict[str, BackendEntry]
    env: dict[str, str] = field(default_factory=dict)
    """Variables of the group's applications: a container that has one of these names with another value is not started
    (`sidecar/exec.sh`): whoever runs the host sets the environment and not the manifest. Public, as all of it is."""
    egress: tuple[EgressEntry, ...] = ()
    """Further loopback addresses of the group's CVMs, and where each leads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteEntry:
    """A stable name that applications dial."""

    name: str
    group: str
    backend: str
    service: str
    """Consul service whose passing instances are the endpoints."""
    role: str | None
    vip: str
    port: int
    fallback: str | None = None
    """Where no instance has the role, those with this one are the endpoints."""
    leader_key: str | None = None
    """Consul KV key of the lock that says who has the exclusive role; its value is the holder's peer ID."""
    peer: str | None = None
    """Peer ID of the one CVM behind a member route, whatever Consul lists; None: the service's instances."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretEntry:
    """One workload secret: a random text that coordinators derive, the same at every start."""

    owner: str
    """The group that declares it, which receives it too."""
    groups: tuple[str, ...]
    """The groups that it is granted to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotate:
    """What is derived anew when its number changes."""

    secrets: dict[str, int] = field(default_factory=dict)
    """By name: how often the secret was rotated; not named: never. A number of before gives the text of before."""
    gossip: int = 0
    """How often the gossip key was rotated. Likewise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What the coordinator enforces."""

    version: int
    epoch: int
    """1 for the first manifest of a cluster, and one more with every change."""
    cluster: str
    owners: Owners
    """Who signs the manifest that follows this one."""
    references: tuple[Reference, ...]
    """What a CVM may be: one of them has to hold completely. At least one."""
    coordinators: Coordinators
    rendezvous: tuple[Rendezvous, ...]
    groups: dict[str, GroupEntry]
    routes: tuple[RouteEntry, ...]
    secrets: dict[str, SecretEntry] = field(default_factory=dict)
    """By name, which is the name of the file that holds it."""
    vip_pool: str = "127.10.0.0/16"
    mesh_pool: str = "100.96.0.0/16"
    previous: str | None = None
    """Digest of the manifest that this one follows (`topology.envelope.digest`, hex); None in the first one."""
    overlap_seconds: int = 120
    """How long after this manifest is adopted certificates under the one before are still good, for those who cannot
    hear of it at once."""
    leaf_hours: int = 8
    """Life of a CVM's certificate. It is renewed at half of that."""
    rotate: Rotate = Rotate()
    revoked: tuple[Revocation, ...] = ()
    """Who is refused whatever else is allowed. Name it in `critical` where programs run that do not know it."""
    critical: tuple[str, ...] = ()
    """Fields that a reader must know, as names with dots (`groups.backends.callers`). A program that does not know one
    refuses the manifest; other fields that it does not know it leaves out."""

    def identities(self, group: str) -> tuple[str, ...]:
        """The SPIFFE identities that a CVM of `group` is admitted as: the node's, then one a backend."""
        own = [backend.identity for _, backend in sorted(self.groups[group].backends.items())]
        return (f"spiffe://{self.cluster}/node", *dict.fromkeys(own))

    def secrets_of(self, group: str) -> tuple[str, ...]:
        """The names of the secrets that a CVM of `group` receives. Sorted."""
        return tuple(sorted(name for name, it in self.secrets.items() if group == it.owner or group in it.groups))

    def leader_keys(self) -> tuple[str, ...]:
        """The leader keys of all routes. Sorted."""
        return tuple(sorted({route.leader_key for route in self.routes if route.leader_key is not None}))


def encode(manifest: Manifest) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8."""
    return json.dumps(dataclasses.asdict(manifest), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def decode(data: bytes) -> Manifest:
    """The manifest in `data`, or ManifestError naming the entry. Unknown and missing keys are refused: for a manifest
    that this program, or a person, has just written.
    """
    return _decoded(data, None)


def decode_signed(data: bytes) -> tuple[Manifest, tuple[str, ...]]:
    """The manifest in `data`, which a newer program may have written, and the entries that were left out because this
    program does not know them. ManifestError naming the entry, also where `critical` names an unknown one.
    """
    unknown: list[str] = []
    return _decoded(data, unknown), tuple(unknown)


def _decoded(data: bytes, unknown: list[str] | None) -> Manifest:
    try:
        tree = json.loads(data, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"the manifest is not JSON: {error}") from error
    found = tree.get("version") if isinstance(tree, dict) else None
    if found is not None and found != MANIFEST_VERSION:
        newer = isinstance(found, int) and found > MANIFEST_VERSION
        kind, advice = (NewerError, "; upgrade this program") if newer else (ManifestError, "")
        raise kind(f"manifest.version is {reprlib.repr(found)}, expected {MANIFEST_VERSION}{advice}")
    if isinstance(tree, dict):
        # First: of what it names, and this program does not know, the form may be another one, too.
        _check_critical(tree.get("critical"))
    manifest: Manifest = from_tree(Manifest, tree, "manifest", unknown)
    _check(manifest)
    return manifest


def _check_critical(named: object) -> None:
    texts = {each for each in named if isinstance(each, str)} if isinstance(named, list) else set()
    missing = sorted(texts - field_names(Manifest))
    if missing:
        raise NewerError(
            f"manifest.critical names {shown_names(missing)}, which this program does not know; upgrade it"
        )


def _check(manifest: Manifest) -> None:
    try:
        check(manifest.owners)
    except OwnerError as error:
        raise ManifestError(f"manifest.owners {error}") from error
    _check_names(manifest)
    _check_rotate(manifest)
    try:
        _check_places(manifest)
    except PlacesError as error:
        raise ManifestError(f"manifest{error}") from error
    try:
        references.check(manifest.references)
    except ReferencesError as error:
        raise ManifestError(f"manifest.references{error}") from error
    try:
        revocations.check(manifest.revoked)
    except RevocationError as error:
        raise ManifestError(f"manifest.revoked{error}") from error
    _check_app("coordinators", manifest.coordinators)
    _check_handover(manifest)
    for name, group in manifest.groups.items():
        _check_app(f"groups.{name:.80}", group)
    _check_env(manifest)
    _check_egress(manifest)
    _check_callers(manifest)
    if manifest.epoch < 1:
        raise ManifestError(f"manifest.epoch is {manifest.epoch}, expected 1 or more")
    _in_range(manifest.overlap_seconds, OVERLAP_SECONDS, "overlap_seconds")
    _in_range(manifest.leaf_hours, LEAF_HOURS, "leaf_hours")
    if manifest.previous is not None and not _DIGEST.fullmatch(manifest.previous):
        raise ManifestError(f"manifest.previous is {manifest.previous!r:.80}, expected 64 hex digits")
    if (manifest.previous is None) != (manifest.epoch == 1):
        raise ManifestError(
            f"manifest.previous is {manifest.previous!r} in epoch {manifest.epoch}; expected null in epoch 1 and the "
            "digest of the manifest before in every other"
        )


def _check_names(manifest: Manifest) -> None:
    """Of entries, for they become part of URIs, paths and what owners read; and that every text is one to read."""
    for entry, name in named(manifest, EVERYBODY):
        if (why := why_no_label(name)) is not None:
            raise ManifestError(f"manifest{entry} {why}")
    if COORDINATORS in manifest.groups:
        raise ManifestError(f"manifest.groups has {COORDINATORS!r}, which is the coordinators' name; expected another")
    try:
        # Values of variables are the applications'; they are shown in quotes. `ca` has certificates in PEM.
        texts.check(manifest, free=frozenset({"env"}), lines=frozenset({"ca"}))
    except TextsError as error:
        raise ManifestError(f"manifest{error}") from error


def _check_app(entry: str, app: Coordinators | GroupEntry) -> None:
    """What evidence is compared with as text: in another form no CVM would ever have it."""
    if not _APP_ID.fullmatch(app.app_id):
        raise ManifestError(f"manifest.{entry}.app_id is {app.app_id!r:.80}, expected 40 hex digits in lower case")
    for n, compose_hash in enumerate(app.compose_hashes):
        if not _DIGEST.fullmatch(compose_hash):
            raise ManifestError(
                f"manifest.{entry}.compose_hashes[{n}] is {compose_hash!r:.80}, expected 64 hex digits in lower case"
            )


def _check_handover(manifest: Manifest) -> None:
    own = manifest.coordinators
    try:
        handover.check(own.handover, own.app_id, (peer.url for peer in own.peers), manifest.epoch)
    except (HandoverError, PlacesError) as error:
        raise ManifestError(f"manifest{error}") from error


def _check_env(manifest: Manifest) -> None:
    for name, group in manifest.groups.items():
        for variable, value in group.env.items():
            # The sidecar writes both into a file that a shell reads.
            if not VARIABLE.fullmatch(variable) or "\0" in value:
                raise ManifestError(
                    f"manifest.groups.{name}.env.{variable:.80} is no variable of an environment; expected a name of "
                    "letters, digits and '_', and a value without NUL"
                )
            if (obeyed := why_obeyed(variable)) is not None:
                raise ManifestError(f"manifest.groups.{name}.env.{variable:.80} {obeyed}; expected another name")


def _check_callers(manifest: Manifest) -> None:
    for name, group in manifest.groups.items():
        for backend, it in group.backends.items():
            if EVERYBODY in it.callers and len(it.callers) > 1:
                raise ManifestError(
                    f"manifest.groups.{name:.80}.backends.{backend:.80}.callers has {EVERYBODY!r} beside "
                    f"{len(it.callers) - 1} more; expected {EVERYBODY!r} alone, or names of groups"
                )


def _check_egress(manifest: Manifest) -> None:
    for name, group in manifest.groups.items():
        if not group.egress:
            continue
        around = Surroundings(
            group=name,
            targets={route.name: _target(manifest, name, route) for route in manifest.routes},
            own_ports=frozenset(backend.port for backend in group.backends.values()),
            vip_pool=manifest.vip_pool,
            mesh_pool=manifest.mesh_pool,
        )
        for fault in egress.faults(group.egress, around):
            field = f".{fault.field}" if fault.field else ""
            raise ManifestError(f"manifest.groups.{name:.80}.egress[{fault.index}]{field} {fault.message}")


def _target(manifest: Manifest, caller: str, route: RouteEntry) -> Target:
    group = manifest.groups.get(route.group)
    backend = group.backends.get(route.backend) if group is not None else None
    callers = backend.callers if backend is not None else ()
    return Target(port=route.port, callers=callers, open=bool({caller, EVERYBODY} & set(callers)))


def _check_places(manifest: Manifest) -> None:
    places.check_pools({"vip_pool": manifest.vip_pool, "mesh_pool": manifest.mesh_pool})
    found: list[Place] = []
    for n, lead in enumerate(manifest.coordinators.peers):
        entry = f".coordinators.peers[{n}]"
        places.check_url(f"{entry}.url", lead.url)
        found.append(Place(entry=entry, name=lead.peer_id, address=lead.address))
    for name, group in manifest.groups.items():
        entry = f".groups.{name:.80}"
        found += [
            Place(entry=f"{entry}.peers[{n}]", name=peer.peer_id, address=peer.address)
            for n, peer in enumerate(group.peers)
        ]
        for backend, it in group.backends.items():
            inside = f"{entry}.backends.{backend:.80}"
            places.check_port(f"{inside}.port", it.port)
            places.check_port(f"{inside}.sidecar_port", it.sidecar_port)
            places.check_source(f"{inside}.source", it.source, manifest.vip_pool)
        check_group(entry, group.app_id, group.backends, (it.sidecar_port for it in group.backends.values()))
    for n, host in enumerate(manifest.rendezvous):
        entry = f".rendezvous[{n}]"
        places.check_rendezvous(entry, host.public_key, host.endpoint)
        found.append(Place(entry=entry, name=host.public_key, address=host.address))
    places.check_cvms(found, manifest.mesh_pool)
    places.check_routes(
        (
            Dialled(entry=f".routes[{n}]", name=it.name, vip=it.vip, port=it.port)
            for n, it in enumerate(manifest.routes)
        ),
        manifest.vip_pool,
    )
    _check_off(manifest)
    for entry, why in shared(
        (name, f".groups.{name:.80}.backends.{backend:.80}.public.sans", san)
        for name, group in manifest.groups.items()
        for backend, it in group.backends.items()
        if it.public is not None
        for san in it.public.sans
    ):
        raise PlacesError(f"{entry} {why}")


def _check_off(manifest: Manifest) -> None:
    """What is served to its own CVM alone has no callers. A program that does not know `ingress` goes by these."""
    off = {
        (name, backend): entry.callers
        for name, group in manifest.groups.items()
        for backend, entry in group.backends.items()
        if entry.ingress == OFF
    }
    for (name, backend), callers in off.items():
        if callers:
            raise PlacesError(
                f'.groups.{name:.80}.backends.{backend:.80} has callers, but ingress is "{OFF}"; remove one'
            )
    for n, route in enumerate(manifest.routes):
        if (route.group, route.backend) in off:
            raise PlacesError(f'.routes[{n}] leads to {route.backend!r:.80}, whose ingress is "{OFF}"; remove one')


def _check_rotate(manifest: Manifest) -> None:
    _check_count(manifest.rotate.gossip, "gossip")
    for name, number in manifest.rotate.secrets.items():
        if name not in manifest.secrets:
            raise ManifestError(
                f"manifest.rotate.secrets names {name!r:.80}, expected one of {shown_names(sorted(manifest.secrets))}"
            )
        _check_count(number, f"secrets.{name:.80}")


def _check_count(number: int, name: str) -> None:
    if not 0 <= number < 1 << 31:
        raise ManifestError(f"manifest.rotate.{name} is {number}, expected a count: 1, and one more each time")


def _in_range(value: int, bounds: tuple[int, int], name: str) -> None:
    least, greatest = bounds
    if not least <= value <= greatest:
        raise ManifestError(f"manifest.{name} is {value}, expected {least} to {greatest}")
