"""The mesh's own names as one frozen value: names to addresses and to services. Pure.

Words: a *name* is a tuple of lower-case labels without the root, leftmost first, so that a label with a dot in it is
no other name. A route has two names, `worker` and `worker.mesh`; a peer is `api-0.peer.mesh`; a backend's service is
`_api._tcp.mesh`.

Why `worker.mesh`: `/run/mesh/resolv.conf` puts `mesh` first in the search list, so a resolver that appends search
domains asks us for `worker.mesh` before any other suffix and has its answer at once. Names under the machine's own
search domains are never claimed: `worker.corp.example` may be a real host. With `ndots` above 1 a stub asks for
`worker.mesh.<search>` first; those questions are forwarded, and the name itself is asked for at the end.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

Name = tuple[bytes, ...]
APEX = b"mesh"
TTL = 5
"""Seconds. Asking again costs microseconds on loopback; a name that a new manifest moves or drops is forgotten this
soon."""
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

    def owner(self, name: Name) -> Name | None:
        """The apex of our zone that `name` lies in, or None when the name is not ours.

        A route's single label is a zone of its own: it has no parent of ours that an SOA record could name.
        """
        if is_under_mesh(name):
            return (APEX,)
        return name if name in self.names else None


def is_under_mesh(name: Name) -> bool:
    """True for `mesh` and everything below it."""
    return name[-1:] == (APEX,)


def could_be_ours(name: Name) -> bool:
    """True when only a loaded zone can tell: below `mesh`, or a single label as route names are."""
    return len(name) == 1 or is_under_mesh(name)


def peer_name(peer_id: str) -> str:
    """The DNS name of a peer, without trailing dot."""
    return f"{peer_id}.peer.{APEX.decode()}"


def parse_name(text: str) -> Name:
    """`Worker.Mesh.` as a name. No check of the labels."""
    return tuple(text.lower().rstrip(".").encode().split(b"."))


def build(
    routes: Mapping[str, str], peers: Mapping[str, str], services: Mapping[str, tuple[SrvTarget, ...]], *, serial: int
) -> Zone:
    """The zone for routes (name to VIP), peers (peer ID to mesh address) and services (backend to instances).

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
    targets: dict[Name, tuple[SrvTarget, ...]] = {}
    for backend, instances in sorted(services.items()):
        _check_label("backend", f"_{backend}")
        known = [target for target in instances if parse_name(peer_name(target.peer_id)) in addresses]
        targets[parse_name(f"_{backend}._tcp.mesh")] = tuple(
            sorted(known, key=lambda target: (target.peer_id, target.port))
        )
    names = {suffix for name in (*addresses, *targets) for suffix in _with_parents(name)} | {(APEX,)}
    return Zone(
        serial=serial % 2**32,
        addresses=MappingProxyType(addresses),
        services=MappingProxyType(targets),
        names=frozenset(names),
    )


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


def _check_label(kind: str, label: str) -> None:
    if not _LABEL.fullmatch(label):
        raise ZoneError(f"{kind} {label!r} is not one DNS label; use letters, digits and hyphens, 63 at most")
