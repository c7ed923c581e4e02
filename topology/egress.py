"""What the programs of a group may dial beside the routes' own names: explicit egress. Pure.

An egress is a loopback address of the group's CVMs (`listen`) that leads either to a route of the mesh, by the mesh's
own mutual TLS, or to a TLS server outside, to which the sidecar's Envoy speaks TLS. Both cluster.tf and the manifest
have it in this form, and `faults` judges both.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address
from typing import NamedTuple

from topology.addresses import DNS_ADDRESS, PLATFORM_PORTS, network
from topology.names import why_no_host, why_no_label

MESH, WEB = "mesh", "web"
TLS_MODES = (MESH, WEB)
"""What `tls` may be: to a route, by the mesh's certificates; to a server outside, by its public ones."""
MAX_ENTRIES = 256
"""Egresses of one group. Each is a listener in every CVM of the group; programs that call more places than this are not
told apart by hand any more."""
MAX_ROOTS_BYTES = 64 << 10
"""Bytes of the certificates that one egress pins: some 40 of them. The whole manifest goes to every CVM."""
_LOOPBACK = IPv4Network("127.0.0.0/8")
_APEX = "mesh"
"""The zone of the mesh's own names (dns.zone)."""
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class EgressError(ValueError):
    """A text is not what it must be. The message is the end of a sentence that begins with the entry."""


class Place(NamedTuple):
    """Where a connection goes, or where it is taken."""

    host: str
    """IP address or name; an IPv6 address without brackets."""
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressEntry:
    """A loopback address, and where connections to it lead."""

    name: str
    """Label; once in its group."""
    listen: str
    """`ip:port` in 127.0.0.0/8: what programs of the group's CVMs dial, in clear."""
    remote: str
    """`<route>:<port>`, or a host outside: `<name>:<port>`, `<IPv4>:<port>`, `[<IPv6>]:<port>`."""
    tls: str = MESH
    """One of TLS_MODES."""
    sni: str | None = None
    """Name that the server outside is asked for and whose certificate it has to show; None: the host in `remote`."""
    ca: str | None = None
    """Certificates (PEM) of which the outside server's must chain to one; None: the roots in the sidecar's image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What an egress may lead to inside of the mesh: one name of a route."""

    port: int
    callers: tuple[str, ...]
    """Groups that may call it, for messages."""
    open: bool
    """Whether the group that is judged may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the egresses of one group are judged by."""

    group: str
    targets: Mapping[str, Target]
    """By route name."""
    own_ports: frozenset[int]
    """Where the group's own backends listen on 127.0.0.1."""
    vip_pool: str
    mesh_pool: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is wrong with one egress."""

    index: int
    field: str
    """Name of the field; empty for the entry as a whole."""
    message: str
    """The end of a sentence that begins with the field."""


@functools.lru_cache(maxsize=2 * MAX_ENTRIES)
def listen_of(text: str) -> Place:
    """The place in `text`, an `ip:port` of loopback. EgressError says why it is none."""
    expected = "expected ip:port with an address of 127.0.0.0/8, such as 127.137.0.1:8081"
    host, colon, port = text.rpartition(":")
    try:
        address = IPv4Address(host)
    except AddressValueError:
        raise EgressError(f"is {text!r:.80}, {expected}") from None
    if not colon or not _LOOPBACK[1] <= address <= _LOOPBACK[-2]:
        raise EgressError(f"is {text!r:.80}, {expected}")
    return Place(host, _port(text, port))


@functools.lru_cache(maxsize=2 * MAX_ENTRIES)
def remote_of(text: str) -> Place:
    """The place in `text`, a `host:port`. EgressError says why it is none."""
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise EgressError(f"is {text!r:.80}, expected host:port, such as emoji:8080 or bank.example.com:443")
    number = _port(text, port)
    if host.startswith("[") and host.endswith("]"):
        return Place(_ipv6(text, host[1:-1]), number)
    if ":" in host:
        raise EgressError(f"is {text!r:.80}, expected an IPv6 address in brackets, such as [2001:db8::1]:443")
    if host.replace(".", "").isdigit():
        try:
            return Place(str(IPv4Address(host)), number)
        except AddressValueError:
            raise EgressError(f"is {text!r:.80}, whose host is neither an IPv4 address nor a name") from None
    if (reason := why_no_host(host)) is not None:
        raise EgressError(f"is {text!r:.80}, {reason}")
    return Place(host, number)


def is_address(host: str) -> bool:
    """Whether a Place's host is an IP address."""
    return ":" in host or host.replace(".", "").isdigit()


def roots_of(text: str) -> str:
    """The certificates in `text` as PEM and nothing else: what stands around them is dropped. EgressError says what
    else it is.
    """
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509 import load_pem_x509_certificate

    expected = "expected certificates in PEM (-----BEGIN CERTIFICATE-----)"
    if len(text) > MAX_ROOTS_BYTES:
        raise EgressError(f"has {len(text)} bytes, expected at most {MAX_ROOTS_BYTES}; pin the one root that is needed")
    if "PRIVATE KEY" in text:
        raise EgressError("holds a private key, and everybody reads a manifest; write the certificates alone")
    found = _PEM.findall(text)
    if not found:
        raise EgressError(f"holds no certificate, {expected}")
    whole = []
    for number, each in enumerate(found, 1):
        # What a parser makes of damaged bytes is many kinds of error, and here they all mean one thing.
        try:
            whole.append(load_pem_x509_certificate(each.encode()).public_bytes(Encoding.PEM).decode())
        except Exception as error:
            raise EgressError(f"has a certificate {number} that cannot be read ({error!s:.200}), {expected}") from error
    return "".join(whole)


def faults(entries: Sequence[EgressEntry], around: Surroundings) -> Iterator[Fault]:
    """Everything that is wrong with the egresses of one group, in their order."""
    if len(entries) > MAX_ENTRIES:
        yield Fault(
            index=MAX_ENTRIES, field="", message=f"is one of {len(entries)}, expected at most {MAX_ENTRIES} in a group"
        )
        return
    listens = {entry.listen: index for index, entry in reversed(list(enumerate(entries)))}
    names = {entry.name: index for index, entry in reversed(list(enumerate(entries)))}
    for index, entry in enumerate(entries):
        if names[entry.name] != index:
            message = f"is {entry.name!r:.80}, as that of another egress of the group; rename one"
            yield Fault(index=index, field="name", message=message)
        if listens[entry.listen] != index:
            other = entries[listens[entry.listen]].name
            message = f"is {entry.listen!r:.80}, where {other!r:.80} listens; choose another"
            yield Fault(index=index, field="listen", message=message)
        found = [("name", why_no_label(entry.name)), ("listen", _listen_fault(entry, around))]
        if entry.tls == MESH:
            found += [("remote", _mesh_fault(entry, around, listens)), *_web_only(entry)]
        elif entry.tls == WEB:
            found += [("remote", _web_fault(entry, around)), ("sni", _sni_fault(entry)), ("ca", _ca_fault(entry))]
        else:
            found.append(("tls", f'is {entry.tls!r:.80}, expected "mesh" (a route) or "web" (a TLS server outside)'))
        yield from (Fault(index=index, field=field, message=message) for field, message in found if message is not None)


def called_by(entries: Iterable[EgressEntry]) -> frozenset[str]:
    """The names of routes that `entries` lead to; what is no remote is left out."""
    found = set()
    for entry in entries:
        with contextlib.suppress(EgressError):
            if entry.tls == MESH:
                found.add(remote_of(entry.remote).host)
    return frozenset(found)


def server_name(entry: EgressEntry) -> str:
    """What the certificate of the server behind a web egress has to be for: a host name or an IP address."""
    return entry.sni or remote_of(entry.remote).host


def _listen_fault(entry: EgressEntry, around: Surroundings) -> str | None:
    try:
        place = listen_of(entry.listen)
    except EgressError as error:
        return str(error)
    if IPv4Address(place.host) in network(around.vip_pool):
        return (
            f"is {entry.listen!r}, in {around.vip_pool}, the pool of the routes' VIPs; choose 127.137.0.1, for example"
        )
    if place.host == DNS_ADDRESS:
        return f"is {entry.listen!r}, at {DNS_ADDRESS}, where the mesh answers for names; choose another address"
    if place.port in PLATFORM_PORTS:
        return f"is {entry.listen!r}, whose port {PLATFORM_PORTS[place.port]} uses inside every CVM; choose another"
    if place.host == "127.0.0.1" and place.port in around.own_ports:
        return (
            f"is {entry.listen!r}, where a backend of the group listens: what comes in for it would go out again, in a "
            "loop; choose another address"
        )
    return None


def _mesh_fault(entry: EgressEntry, around: Surroundings, listens: Mapping[str, int]) -> str | None:
    if entry.remote in listens:
        return f"is {entry.remote!r:.80}, where an egress of this group listens: a loop; write a route and its port"
    try:
        place = remote_of(entry.remote)
    except EgressError as error:
        return str(error)
    target = around.targets.get(place.host)
    if target is None:
        known = ", ".join(sorted(around.targets)[:8]) or "none"
        return (
            f"is {entry.remote!r:.80}, but {place.host!r:.80} is no route (there are: {known:.200}); for a server "
            'outside of the mesh add tls = "web"'
        )
    if target.port != place.port:
        right = f"{place.host}:{target.port}"
        return f"is {entry.remote!r:.80}, but the route {place.host!r} has port {target.port}; write {right}"
    if not target.open:
        return (
            f"is {entry.remote!r:.80}, which group {around.group!r} may not call: the callers of its backend are "
            f"{', '.join(target.callers)[:200] or 'nobody'}; add the group there, or remove this egress"
        )
    return None


def _web_only(entry: EgressEntry) -> list[tuple[str, str | None]]:
    message = 'is only for tls = "web": who serves a route is known by the mesh; remove it'
    return [(field, message) for field in ("sni", "ca") if getattr(entry, field) is not None]


def _web_fault(entry: EgressEntry, around: Surroundings) -> str | None:
    try:
        host = remote_of(entry.remote).host
    except EgressError as error:
        return str(error)
    inside = f"is {entry.remote!r:.80}"
    if not is_address(host):
        if host in around.targets or host.rpartition(".")[2] == _APEX:
            return f'{inside}, a name of the mesh; expected a host outside, or tls = "mesh" and a route'
        if host.rpartition(".")[2] == "localhost":
            return f"{inside}, this CVM itself: a loop; expected a host outside"
        return None
    address = IPv6Address(host) if ":" in host else IPv4Address(host)
    if address.is_loopback or address.is_unspecified:
        return f"{inside}, this CVM itself: a loop; expected a host outside"
    if isinstance(address, IPv4Address) and address in network(around.mesh_pool):
        return f'{inside}, a mesh address; expected a host outside, or tls = "mesh" and a route'
    if address.is_multicast:
        return f"{inside}, a multicast address; expected that of one host"
    return None


def _sni_fault(entry: EgressEntry) -> str | None:
    if entry.sni is None or (reason := why_no_host(entry.sni)) is None:
        return None
    return f"is {entry.sni!r:.80}, {reason}"


def _ca_fault(entry: EgressEntry) -> str | None:
    if entry.ca is None:
        return None
    try:
        right = roots_of(entry.ca) == entry.ca
    except EgressError as error:
        return str(error)
    return None if right else "holds more than certificates in PEM; expected them alone, one after the other"


def _port(text: str, port: str) -> int:
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise EgressError(f"is {text!r:.80}, expected a port from 1 to 65535 after the last ':'")
    return int(port)


def _ipv6(text: str, inner: str) -> str:
    try:
        address = IPv6Address(inner)
    except AddressValueError:
        raise EgressError(f"is {text!r:.80}, expected an IPv6 address in the brackets") from None
    if address.scope_id is not None or address.ipv4_mapped is not None or address.is_link_local:
        raise EgressError(f"is {text!r:.80}, expected an IPv6 address that means the same on every machine")
    if str(address) != inner:
        raise EgressError(f"is {text!r:.80}, write the address as [{address}]")
    return inner
