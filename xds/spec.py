"""What the local Envoy is to do, in our own words. Pure values; nothing here knows Envoy.

`sidecar.desired` writes a `Spec`, `xds.snapshot.build` turns it into Envoy's resources. The words: an *egress* route
is a virtual address (VIP) that local programs dial; an *ingress* is where other CVMs reach a local server; a *leaf*
is a certificate with its key; a *principal* is a caller named by the URI in its certificate (a SPIFFE ID); an *outside*
is a TLS server that is no part of the mesh, behind a local address.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from runtime.secret import Secret


class SpecError(ValueError):
    """The spec is inconsistent. The message names the entry; whoever built it keeps the last good snapshot."""


class Endpoint(NamedTuple):
    """One place to connect to.

    A tuple, because each event compares and sorts all of them: thousands, which a dataclass does in Python.
    """

    address: str
    """IP address as text; never a name, because Envoy does not resolve here."""
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sole:
    """The one endpoint that a route leads to."""

    endpoint: Endpoint | None
    """None: nobody, and new connections are closed at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressRoute:
    """A VIP and what is behind it."""

    name: str
    """Unique among the egress routes; names the cluster and shows in Envoy's statistics."""
    vip: str
    """IP address that local programs dial. One listener for each VIP and port."""
    port: int
    endpoints: tuple[Endpoint, ...]
    """Ingresses of the instances that may be used now, or (with `sole`) of all among which the one is. Order and
    repetition mean nothing; empty closes new connections at once."""
    identity: str
    """Name of the leaf that we present."""
    peer_sans: tuple[str, ...]
    """URI SANs of which the server's certificate must carry one, compared exactly."""
    generation: str = ""
    """Part of the filter chain's name. A new value closes every connection held through this route at once, idle ones
    too; as long as it and `sole` stay, no other change of the route cuts anything (a changed address or port apart)."""
    sole: Sole | None = None
    """None: connections are spread over all endpoints. Set: they go to this one of them, and another one closes every
    connection held through this route at once."""
    doors: tuple[Endpoint, ...] = ()
    """Further addresses that local programs may dial; they lead where the VIP leads. Sorted, each once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """A local address, which programs dial in clear, and the TLS server outside of the mesh that it leads to. Any
    change closes every connection held through it."""

    name: str
    """Unique among them; names the cluster and shows in Envoy's statistics."""
    listen: Endpoint
    host: str
    """IP address, or a name that Envoy resolves."""
    port: int
    server_name: str
    """Host name or IP address for which the server's certificate has to be; a host name is also what is asked for
    (SNI)."""
    roots_pem: str | None = None
    """Certificates, PEM, of which the server's must chain to one; None: those in `roots_file`."""
    roots_file: str | None = None
    """Absolute path of such certificates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A caller."""

    uri: str
    """The URI SAN."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingress:
    """Where other CVMs reach one local server."""

    name: str
    """Unique among the ingresses."""
    address: str
    """Mesh address that is listened on."""
    port: int
    identity: str
    """Name of the leaf that the server presents."""
    target: Endpoint
    """The local server."""
    source: str
    """Loopback address (IPv4) from which the local server is dialled. Not 127.0.0.1, unless the owner says so: what
    trusts local programs must not trust the mesh."""
    proxy_protocol: bool = False
    """True: each connection to the local server begins with a PROXY protocol v2 header that names the caller's mesh
    address."""
    allowed: tuple[Principal, ...]
    """Who may call. Empty: nobody. Adding one cuts nothing; taking one away closes every connection that it holds at
    once, and nobody else's."""
    denied: tuple[str, ...] = ()
    """Addresses (IPv4) that may not, whatever certificate they show. A connection that one holds is not closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicListener:
    """Where clients from outside the mesh reach the local server of an ingress: TLS, without a client certificate."""

    name: str
    """Unique among the public listeners."""
    address: str
    """IP address that is listened on."""
    port: int
    identity: str
    """Name of the leaf that it presents."""
    ingress: str
    """Name of the ingress whose local server it leads to, in the same way."""
    alpn: tuple[str, ...]
    """What it offers by ALPN, the preferred first. The server gets the bytes as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A certificate chain and its private key, both PEM."""

    name: str
    """What `identity` of a route or ingress refers to."""
    uri: str | None
    """The URI SAN of the certificate. A caller announces it to the ingress, which checks it in the certificate. None:
    of a public listener, and nobody's in the mesh."""
    chain_pem: str
    """Leaf first, then intermediates."""
    key_pem: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """Everything that the local Envoy is to do."""

    egress: tuple[EgressRoute, ...]
    ingress: tuple[Ingress, ...]
    leaves: tuple[Leaf, ...]
    roots_pem: str
    """The certificates that peers must chain to, PEM, one after the other."""
    outside: tuple[Outside, ...] = ()
    resolver: Endpoint | None = None
    """Where names outside are asked for; None: nowhere, and no `Outside` has a name as its host."""
    public: tuple[PublicListener, ...] = ()
