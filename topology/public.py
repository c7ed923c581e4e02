"""A listener for clients from outside the mesh: its port, the names in its certificate, what it speaks. Pure.

A *public name* is what a client from outside checks in the certificate (a SAN): a DNS name, an IP address or a URI. It
says where the client is, and never who a CVM is in the mesh: `spiffe://` URIs and the mesh's own zone are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Protocol
from urllib.parse import urlsplit

from topology.addresses import DNS_ADDRESS, DNS_PORT, PLATFORM_PORTS
from topology.places import PlacesError, check_port

MTLS, TLS, OFF = "mtls", "tls", "off"
INGRESSES = (MTLS, TLS, OFF)
"""How a backend is reached. `mtls`: by other CVMs of the mesh. `tls`: by them, and by anybody on a public port, without
a client certificate. `off`: by programs of its own CVM alone."""
GATEWAY = "gateway"
"""Stands in `sans` for the name under which the platform's gateway leads to the listener."""
HTTP1, HTTP2 = "http/1.1", "h2"
PROTOCOLS = (HTTP2, HTTP1)
"""What a listener may offer by ALPN (RFC 7301), by the names that IANA has for them."""
MAX_SANS = 100
"""Names of one certificate: as many as public certificate authorities take (Let's Encrypt, "Rate Limits")."""
MAX_NAME = 253
"""Characters of a DNS name (RFC 1035, 2.3.4, without the root's dot)."""
MAX_URI = 512
"""Characters of a URI. Longer than any origin, and small beside a certificate's own limit."""
WILDCARD = "*."
MESH_ZONE = "mesh"
"""Top-level domain of names in the mesh (`<peer_id>.peer.mesh`)."""
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_GATEWAY_LABEL = re.compile(r"(?P<id>[0-9a-f]{40})(?P<port>-[0-9]+[a-z]*)?")
"""How dstack's gateway calls an app or a CVM (by app ID or instance ID), with a port and how it goes on or without."""
_URI = re.compile(r"[a-z][a-z0-9+.-]*://[!-~]+")
_EXPECTED = (
    'expected a DNS name such as "web.example.com", an IP address such as "203.0.113.34", a URI such as '
    f'"https://web.example.com", or "{GATEWAY}" for the name that the platform\'s gateway has for this listener'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Public:
    """A TLS listener on every address of the CVM, for clients without a client certificate."""

    port: int
    sans: tuple[str, ...]
    """The names of its certificate, and no others."""
    wildcard: bool = False
    """Names may begin with `*.`: the certificate is then good for every name of that domain."""
    alpn: tuple[str, ...] = (HTTP1,)
    """What the listener offers by ALPN, the preferred first. The application gets the bytes as they are, so it must
    speak each of them without TLS (`h2` as HTTP/2 with prior knowledge)."""


class Listening(Protocol):
    """What is checked of a backend, whoever describes it."""

    @property
    def port(self) -> int:
        """Where the local server listens."""

    @property
    def ingress(self) -> str:
        """One of INGRESSES, if it is right."""

    @property
    def public(self) -> Public | None:
        """The listener for clients from outside."""


def normal(name: str) -> str:
    """`name` in the one form that a certificate and a manifest have: DNS names in lower case, IP addresses as RFC 5952
    writes them. What is no name stays as it is.
    """
    address = _address(name)
    if address is not None:
        return str(address)
    return name if "://" in name else name.lower()


def why_no_san(name: str, *, wildcard: bool) -> str | None:
    """Why `name` cannot stand in a public certificate, as the end of a sentence; None when it can. GATEWAY can, in
    cluster.tf: `./mesh generate` puts the name in its place.
    """
    if name == GATEWAY:
        return None
    if "://" in name:
        return _why_no_uri(name, wildcard=wildcard)
    return _why_no_host(name, wildcard=wildcard)


def _why_no_host(name: str, *, wildcard: bool) -> str | None:
    address = _address(name)
    if address is not None:
        return _why_no_address(name, address)
    if not name.isascii():
        return f"is {name!r:.100}, which is not ASCII; write the name as DNS has it, in punycode (xn--…)"
    if "*" in name and (name.count("*") > 1 or not name.startswith(WILDCARD)):
        return f"is {name!r:.100}; a wildcard stands for the first label alone, as in *.example.com"
    plain = name.removeprefix(WILDCARD)
    labels = plain.split(".")
    if len(plain) > MAX_NAME or not all(_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        return f"is {name!r:.100}; {_EXPECTED}"
    if labels[-1] == MESH_ZONE:
        return f"is {name!r:.100}, a name of the mesh's own zone, which is no public name; choose another"
    if name != plain and len(labels) < 2:
        return f"is {name!r:.100}, every name of a whole top-level domain; name what is meant, as in *.example.com"
    if name != plain and not wildcard:
        return (
            f"is {name!r:.100}, and whoever takes this listener over could then speak for every name of that domain; "
            "list the names, or say wildcard = true beside it"
        )
    return None


def gateway_name(app_id: str, port: int, base: str) -> str:
    """The name under which the platform's gateway passes TLS through to `port` of the app's CVMs; `base` is the
    gateway's own domain. dstack's form: `<app_id>-<port>s.<base>`, `s` for TLS that ends in the CVM.
    """
    return f"{_gateway_label(app_id, port)}.{base}".lower()


def gateway_bases(app_id: str, public: Public) -> tuple[str, ...]:
    """The gateways' domains, out of the names that a manifest has."""
    label = f"{_gateway_label(app_id, public.port)}."
    return tuple(name.removeprefix(label) for name in public.sans if name.startswith(label))


def as_written(app_id: str, public: Public) -> tuple[str, ...]:
    """The names of `public` as cluster.tf has them: GATEWAY for that of the gateway."""
    label = f"{_gateway_label(app_id, public.port)}."
    return tuple(dict.fromkeys(GATEWAY if name.startswith(label) else name for name in public.sans))


def why_taken(port: int, backends: Mapping[str, Listening], own: str) -> str | None:
    """Why the backend called `own` of a group cannot have this public port, as the end of a sentence."""
    if port in PLATFORM_PORTS:
        return f"is {port}, which {PLATFORM_PORTS[port]} uses inside every CVM; choose another"
    if port == DNS_PORT:
        return f"is {port}, where the mesh answers for names in every CVM ({DNS_ADDRESS}); choose another"
    for name, backend in backends.items():
        if port == backend.port:
            return f"is {port}, where the local server of backend {name!r} listens in the same CVM; choose another"
        if name != own and backend.public is not None and backend.public.port == port:
            return f"is {port}, as that of backend {name!r} in the same CVM; choose another"
    return None


def check_group(entry: str, app_id: str, backends: Mapping[str, Listening], sidecar_ports: Iterable[int]) -> None:
    """PlacesError unless the backends of a group of a manifest can be served as they say."""
    taken = frozenset(sidecar_ports)
    for name, backend in backends.items():
        inside = f"{entry}.backends.{name:.80}"
        if backend.ingress not in INGRESSES:
            raise PlacesError(f'{inside}.ingress is {backend.ingress!r:.80}, expected "mtls", "tls" or "off"')
        public = backend.public
        if (public is not None) != (backend.ingress == TLS):
            raise PlacesError(f'{inside}.public and ingress = "{TLS}" belong together; remove one or add the other')
        if public is None:
            continue
        check_port(f"{inside}.public.port", public.port)
        why = why_taken(public.port, backends, name)
        if why is None and public.port in taken:
            why = f"is {public.port}, a sidecar port of the same CVM; choose another"
        if why is not None:
            raise PlacesError(f"{inside}.public.port {why}")
        _check_names(f"{inside}.public", public, app_id)


def covers(san: str, name: str) -> bool:
    """Whether a certificate with `san` is good for the DNS name or address `name`."""
    if san.startswith(WILDCARD):
        head, _, rest = name.partition(".")
        return _LABEL.fullmatch(head) is not None and rest == san.removeprefix(WILDCARD)
    return san == name


def why_not_own(san: str, app_id: str | None, port: int) -> str | None:
    """Why `san`, in the form that the platform's gateway gives to the names of apps and CVMs, is not that of this
    listener, as the end of a sentence; None for every other name. `app_id` None: not known yet, and its form counts.
    """
    found = _GATEWAY_LABEL.fullmatch(_host_of(san).partition(".")[0])
    if found is None or (found["port"] == f"-{port}s" and app_id in (None, found["id"])):
        return None
    return (
        f"is {san!r:.100}, in the form of a name that the platform's gateway gives, and not the one of this listener, "
        f"{_gateway_label(app_id or '<app ID>', port)}.<gateway>; remove it"
    )


def shared(sans: Iterable[tuple[str, str, str]]) -> Iterator[tuple[str, str]]:
    """Of `sans` (group, entry, name): the entries whose name another group has, too, each with what is wrong as the end
    of a sentence. A certificate for such a name would let the CVMs of one group answer in the place of the other's.
    """
    listed = [(group, entry, san, _host_of(san)) for group, entry, san in sans if san != GATEWAY]
    having: dict[str, dict[str, str]] = {}
    for group, _, san, host in listed:
        having.setdefault(host, {}).setdefault(group, san)
    for group, entry, san, host in listed:
        others = {**having.get(f"{WILDCARD}{host.partition('.')[2]}", {}), **having[host]}
        other = next((name for name in others if name != group), None)
        if other is not None:
            yield entry, f"is {san!r:.100}, and group {other!r:.80} has {others[other]!r:.100}; a name is one group's"


def _check_names(entry: str, public: Public, app_id: str) -> None:
    if not 1 <= len(public.sans) <= MAX_SANS or len(set(public.sans)) != len(public.sans):
        raise PlacesError(f"{entry}.sans has {len(public.sans)} names, expected 1 to {MAX_SANS}, each once")
    for name in public.sans:
        why = why_no_san(name, wildcard=public.wildcard)
        if name == GATEWAY:
            why = f"is {GATEWAY!r}, a word of cluster.tf in whose place ./mesh generate puts a name; write the name"
        elif name != normal(name):
            why = f"is {name!r:.100}, expected {normal(name)!r:.100}"
        why = why or why_not_own(name, app_id, public.port)
        if why is not None:
            raise PlacesError(f"{entry}.sans {why}")
    if (why := why_no_alpn(public.alpn)) is not None:
        raise PlacesError(f"{entry}.alpn {why}")


def why_no_alpn(alpn: tuple[str, ...]) -> str | None:
    """Why a listener cannot offer these, as the end of a sentence; None when it can."""
    if alpn and set(alpn) <= set(PROTOCOLS) and len(set(alpn)) == len(alpn):
        return None
    return f'is {list(alpn)!r:.100}, expected "{HTTP2}", "{HTTP1}" or both, the preferred first'


def _gateway_label(app_id: str, port: int) -> str:
    return f"{app_id}-{port}s"


def _address(name: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(name)
    except ValueError:
        return None


def _why_no_address(name: str, address: IPv4Address | IPv6Address) -> str | None:
    if address.is_unspecified or address.is_multicast or "%" in name:
        return f"is {name!r:.100}, an address that no client dials; {_EXPECTED}"
    return None


def _why_no_uri(name: str, *, wildcard: bool) -> str | None:
    host = _host_of(name)
    if not host or not _URI.fullmatch(name) or len(name) > MAX_URI:
        return f"is {name!r:.100}, which is no URI of the form scheme://host; {_EXPECTED}"
    if name.startswith("spiffe:"):
        return f"is {name!r:.100}, and spiffe:// is how CVMs are named in the mesh: no public name; choose another"
    why = _why_no_host(host, wildcard=wildcard)
    return None if why is None else f"is {name!r:.100}, whose host {why}"


def _host_of(name: str) -> str:
    """The host that `name` is for: a URI's, as `normal` has it; else `name`. Empty for what is no URI."""
    if "://" not in name:
        return name
    try:
        return normal(urlsplit(name).hostname or "")
    except ValueError:
        return ""
