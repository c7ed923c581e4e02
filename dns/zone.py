"""The mesh's own names as one frozen value: names to addresses and to services. Pure.

Words: a *name* is a tuple of lower-case labels without the root, leftmost first, so that a label with a dot in it is
no other name. A route has two names, `worker` and `worker.mesh`; a peer is `api-0.peer.mesh`; a backend's service is
`_api._tcp.mesh`.

Why `worker.mesh`: `/run/mesh/resolv.conf` puts `mesh` first in the search list, so a resolver that appends search
domains asks us for `worker.mesh` before any other suffix and has its answer at once.

What is ours and must not reach anybody else's server, who could answer it: `mesh` and all below it; each route's label
and all below that; the same for routes that were (*former* ones), because programs still ask for them; and each of
these with one of the machine's search domains behind it, which is what a stub resolver asks for next when a name does
not exist or has no record of a type. So `worker.corp.example` does not exist while there is a route `worker` and
`corp.example` is searched, whatever its owner says. And the names of the addresses in the mesh's pools.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

Name = tuple[bytes, ...]
APEX = b"mesh"
TTL = 5
"""Seconds. Asking again costs microseconds on loopback; a name that a new manifest moves or drops is forgotten this
soon."""
REVERSE = (b"in-addr", b"arpa")
SERVER = (b"ns", b"dns", APEX)
"""Who serves the zone. Two labels, so that no route has it."""
NEGATIVE_TTL = 1
"""Seconds that "no such name" may be kept: a route that has just been added must not stay hidden."""
# Letters, digits, hyphen (RFC 1123 2.1) and the underscore that service labels and Consul names use; 63 octets (RFC
# 1035 2.3.4).
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE)


class ZoneError(ValueError):
    """An entry that cannot be served. The message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SrvTarget:
    """One instance of a backend."""

    peer_id: str
    """The peer that runs it; the record points at `<peer>.peer.mesh`."""
    port: int
    """TCP port, 1 to 65535."""
    priority: int = 0
    weight: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """Everything that the mesh answers for. Built by `build`; replaced whole, never changed."""

    serial: int
    """SOA serial, modulo 2**32."""
    addresses: Mapping[Name, str]
    """IPv4 address of each route and peer."""
    services: Mapping[Name, tuple[SrvTarget, ...]]
    """Instances of each backend, in a fixed order."""
    names: frozenset[Name]
    """Every name that exists, those between a name and the apex included: they have no records, but are no NXDOMAIN."""
    pointers: Mapping[Name, Name]
    """Reverse name of each address to the name that has it."""
    labels: frozenset[bytes]
    """Single labels that are ours: of routes, and of those that were."""
    pools: tuple[ipaddress.IPv4Network, ...]
    """Networks whose addresses only we name."""

    def owner(self, name: Name) -> Name | None:
        """The apex of our zone that `name` lies in, or None when the name is not ours.

        A route's single label is a zone of its own: it has no parent of ours that an SOA record could name.
        """
        if is_under_mesh(name):
            return (APEX,)
        if name[-1:] and name[-1] in self.labels:
            return name[-1:]
        return _reverse_top(name, self.pools) if name[-2:] == REVERSE else None

    def searched(self, name: Name, search: Sequence[Name]) -> Name | None:
        """Where `name` is one of ours with a search domain behind it: the zone in which it is denied."""
        for domain in search:
            size = len(name) - len(domain)
            if size > 0 and name[size:] == domain and (name[size - 1] == APEX or name[size - 1] in self.labels):
                return name[size - 1 :]
        return None


def is_under_mesh(name: Name) -> bool:
    """True for `mesh` and everything below it."""
    return name[-1:] == (APEX,)


def could_be_ours(name: Name, search: Sequence[Name] = ()) -> bool:
    """True when only a loaded zone can tell: below `mesh`, or a single label as route names are, with a search domain
    behind it or not."""
    asked = [name, *(name[: -len(domain)] for domain in search if domain and name[-len(domain) :] == domain)]
    return any(len(it) == 1 or is_under_mesh(it) for it in asked)


def peer_name(peer_id: str) -> str:
    """The DNS name of a peer, without trailing dot."""
    return f"{peer_id}.peer.{APEX.decode()}"


def parse_name(text: str) -> Name:
    """`Worker.Mesh.` as a name. No check of the labels."""
    return tuple(text.lower().rstrip(".").encode().split(b"."))


def search_names(domains: Sequence[str]) -> tuple[Name, ...]:
    """Search domains as names, longest first; our own, and the root, are none."""
    names = {parse_name(domain) for domain in domains if domain.strip(".")}
    return tuple(sorted((name for name in names if not is_under_mesh(name)), key=lambda name: (-len(name), name)))


def build(
    routes: Mapping[str, str],
    peers: Mapping[str, str],
    services: Mapping[str, tuple[SrvTarget, ...]],
    *,
    serial: int,
    former: Iterable[str] = (),
    pools: Sequence[str] = (),
    server: str | None = None,
) -> Zone:
    """The zone for routes (name to VIP), peers (peer ID to mesh address) and services (backend to instances); `former`
    are names of routes that were, `pools` the networks of our addresses, `server` is our own address.

    Raises ZoneError for a name that is no DNS label, a name given twice in different case, or an address that is not
    IPv4. A service target whose peer is unknown is left out: its name would not resolve.
    """
    addresses: dict[Name, str] = {}
    for kind, entries in (("route", routes), ("peer", peers)):
        for entry, address in sorted(entries.items()):
            _check(kind, entry, address)
            for name in _names(kind, entry):
                if name in addresses:
                    raise ZoneError(
                        f"{kind} {entry!r} has the same DNS name as another; names must differ in more than case"
                    )
                addresses[name] = str(ipaddress.IPv4Address(address))
    pointers = {_reverse_name(address): name for name, address in addresses.items() if is_under_mesh(name)}
    if server is not None:
        addresses[SERVER] = str(ipaddress.IPv4Address(server))
        pointers.setdefault(_reverse_name(server), SERVER)
    targets: dict[Name, tuple[SrvTarget, ...]] = {}
    for backend, instances in sorted(services.items()):
        _check_label("backend", f"_{backend}")
        known = [target for target in instances if parse_name(peer_name(target.peer_id)) in addresses]
        targets[parse_name(f"_{backend}._tcp.mesh")] = tuple(
            sorted(known, key=lambda target: (target.peer_id, target.port))
        )
    named = {suffix for name in (*addresses, *targets, SERVER) for suffix in _with_parents(name)}
    labels = frozenset(parse_name(route)[0] for route in (*routes, *former))
    networks = tuple(ipaddress.IPv4Network(pool) for pool in pools)
    # Reverse names exist down from the top of their zone; an address outside of all pools is somebody else's to name.
    tops = {name: top for name in pointers if (top := _reverse_top(name, networks)) is not None}
    reverse = {name[start:] for name, top in tops.items() for start in range(len(name) - len(top) + 1)}
    return Zone(
        serial=serial % 2**32,
        addresses=MappingProxyType(addresses),
        services=MappingProxyType(targets),
        names=frozenset(named | reverse),
        pointers=MappingProxyType({name: pointers[name] for name in tops}),
        labels=labels,
        pools=networks,
    )


def _reverse_name(address: str) -> Name:
    return (*(octet.encode() for octet in reversed(address.split("."))), *REVERSE)


def _reverse_top(name: Name, pools: Sequence[ipaddress.IPv4Network]) -> Name | None:
    """The zone of a reverse name, when its addresses are in a pool. Such zones are cut at octets: a /20 is sixteen."""
    octets = [label.decode() if label.isdigit() else "" for label in reversed(name[:-2])][:4]
    for pool in pools:
        size = max(1, -(-pool.prefixlen // 8))
        if size > len(octets):
            continue
        try:
            first = ipaddress.IPv4Address(".".join([*octets[:size], "0", "0", "0"][:4]))
        except ValueError:
            # Not numbers, or not as one writes them.
            continue
        if first in pool:
            return name[-2 - size :]
    return None


def _names(kind: str, entry: str) -> tuple[Name, ...]:
    if kind == "peer":
        return (parse_name(peer_name(entry)),)
    return (parse_name(entry), parse_name(f"{entry}.mesh"))


def _with_parents(name: Name) -> Iterator[Name]:
    yield name
    if is_under_mesh(name):
        for start in range(1, len(name)):
            yield name[start:]


def _check(kind: str, entry: str, address: str) -> None:
    _check_label(kind, entry)
    # RFC 6761 6.3: localhost is always this host.
    if kind == "route" and entry.lower() == "localhost":
        raise ZoneError("route 'localhost' cannot be served: every resolver answers that name itself; choose another")
    try:
        ipaddress.IPv4Address(address)
    except ValueError as error:
        raise ZoneError(f"{kind} {entry!r} has address {address!r}, expected an IPv4 address") from error


def is_label(text: str) -> bool:
    """Whether `text` is one label that can be served."""
    return _LABEL.fullmatch(text) is not None


def _check_label(kind: str, label: str) -> None:
    if not is_label(label):
        raise ZoneError(f"{kind} {label!r} is not one DNS label; use letters, digits and hyphens, 63 at most")
