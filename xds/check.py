"""Is a spec consistent? Pure. Envoy itself accepts references to nothing, so they are checked here, before publishing.

Checks that look at one entry (`check_egress` …) run when that entry changed; `check_together` looks across entries
and is cheap enough to run each time.
"""

from __future__ import annotations

import ipaddress

from xds import outside
from xds.spec import EgressRoute, Endpoint, Ingress, Leaf, Outside, Spec, SpecError


def check_together(spec: Spec) -> None:
    """SpecError if two entries claim one name or one address, or an entry names a leaf that is not there."""
    _unique("egress route", [route.name for route in spec.egress])
    _unique("ingress", [ingress.name for ingress in spec.ingress])
    _unique("outside", [each.name for each in spec.outside])
    _unique("leaf", [leaf.name for leaf in spec.leaves])
    places: list[tuple[str, int]] = [(route.vip, route.port) for route in spec.egress]
    places += [door for route in spec.egress for door in route.doors]
    places += [each.listen for each in spec.outside]
    places += [(ingress.address, ingress.port) for ingress in spec.ingress]
    places += [(listener.address, listener.port) for listener in spec.public]
    # Thousands of routes are checked at every change: sets first, names only when there is something to say.
    if len(set(places)) != len(places):
        _say_who_clash(spec)
    leaves = {leaf.name for leaf in spec.leaves}
    _check_public(spec, leaves)
    leaves -= {leaf.name for leaf in spec.leaves if leaf.uri is None}
    users = {route.identity for route in spec.egress} | {ingress.identity for ingress in spec.ingress}
    if not users <= leaves:
        _say_who_lacks(spec, leaves)
    if users and "-----BEGIN CERTIFICATE-----" not in spec.roots_pem:
        raise SpecError("roots_pem holds no certificate, so nobody could be trusted; expected PEM certificates")


def _check_public(spec: Spec, leaves: set[str]) -> None:
    _unique("public listener", [listener.name for listener in spec.public])
    ingresses = {ingress.name for ingress in spec.ingress}
    for listener in spec.public:
        entry = f"public listener {listener.name!r}"
        _place(listener.address, listener.port, entry)
        if listener.ingress not in ingresses:
            raise SpecError(f"{entry} leads to {listener.ingress!r}, expected an ingress: {sorted(ingresses)}")
        if listener.identity not in leaves:
            raise SpecError(f"{entry} presents leaf {listener.identity!r}, expected one of {sorted(leaves)}")
        if not listener.alpn:
            raise SpecError(f"{entry} offers nothing by ALPN; expected h2, http/1.1 or both")


def check_egress(route: EgressRoute) -> None:
    """SpecError if the route cannot work by itself."""
    entry = f"egress route {route.name!r}"
    _named(route.name, entry)
    _place(route.vip, route.port, entry)
    for door in route.doors:
        _place(door.address, door.port, f"a door of {entry}")
    for endpoint in route.endpoints:
        _place(endpoint.address, endpoint.port, f"an endpoint of {entry}")
    if route.sole is not None and route.sole.endpoint not in (None, *route.endpoints):
        raise SpecError(f"{entry} leads to {route.sole.endpoint}; expected one of its endpoints, or nobody")
    if not route.peer_sans or not all(route.peer_sans):
        raise SpecError(
            f"{entry} has peer_sans {route.peer_sans!r}; expected the URI SAN of its service, or any server would do"
        )


def check_outside(each: Outside, resolver: Endpoint | None) -> None:
    """SpecError if the server outside cannot be reached, or if any server would do."""
    entry = f"outside {each.name!r}"
    _named(each.name, entry)
    _place(each.listen.address, each.listen.port, f"the listener of {entry}")
    if not each.host or not each.server_name or not 0 < each.port < 65536:
        raise SpecError(f"{entry} has host {each.host!r}, port {each.port!r} and server name {each.server_name!r}")
    if outside.is_name(each.host) and resolver is None:
        raise SpecError(f"{entry} has a name as its host, and the spec no resolver; expected both")
    if each.roots_pem is None and not each.roots_file:
        raise SpecError(f"{entry} has no roots, so any server would do; expected certificates, or a file with them")
    if each.roots_pem is not None and "-----BEGIN CERTIFICATE-----" not in each.roots_pem:
        raise SpecError(f"{entry} has roots without a certificate; expected PEM certificates")


def check_ingress(ingress: Ingress) -> None:
    """SpecError if the ingress cannot work by itself."""
    entry = f"ingress {ingress.name!r}"
    _named(ingress.name, entry)
    _place(ingress.address, ingress.port, entry)
    _place(ingress.target.address, ingress.target.port, f"the target of {entry}")
    _source(ingress.source, entry)
    if not all(principal.uri for principal in ingress.allowed):
        raise SpecError(f"{entry} allows an empty principal; expected a URI such as spiffe://mesh/api")
    for address in ingress.denied:
        _place(address, ingress.port, f"an address that {entry} denies")


def check_leaf(leaf: Leaf) -> None:
    """SpecError if the texts are not even PEM. Whether key and certificate fit is Envoy's to say (it rejects them
    whole)."""
    _named(leaf.name, f"leaf {leaf.name!r}")
    if "-----BEGIN CERTIFICATE-----" not in leaf.chain_pem or "PRIVATE KEY-----" not in leaf.key_pem.reveal():
        raise SpecError(f"leaf {leaf.name!r} is not a PEM certificate chain with a PEM private key")
    if leaf.uri == "":
        raise SpecError(f"leaf {leaf.name!r} has no URI; expected the URI SAN of its certificate")


def _say_who_clash(spec: Spec) -> None:
    owner: dict[tuple[str, int], str] = {}
    places: list[tuple[tuple[str, int], str]] = [
        ((route.vip, route.port), f"egress route {route.name!r}") for route in spec.egress
    ]
    places += [(door, f"a door of egress route {route.name!r}") for route in spec.egress for door in route.doors]
    places += [(each.listen, f"outside {each.name!r}") for each in spec.outside]
    places += [((ingress.address, ingress.port), f"ingress {ingress.name!r}") for ingress in spec.ingress]
    places += [((each.address, each.port), f"public listener {each.name!r}") for each in spec.public]
    for place, entry in places:
        if place in owner:
            where = f"{place[0]}:{place[1]}"
            raise SpecError(f"{entry} and {owner[place]} both listen on {where}; give one another address or port")
        owner[place] = entry


def _say_who_lacks(spec: Spec, leaves: set[str]) -> None:
    users = [(route.identity, f"egress route {route.name!r}") for route in spec.egress]
    users += [(ingress.identity, f"ingress {ingress.name!r}") for ingress in spec.ingress]
    for identity, entry in users:
        if identity not in leaves:
            raise SpecError(
                f"{entry} presents leaf {identity!r}, which is not among {sorted(leaves)}; add the leaf first"
            )


def _unique(what: str, names: list[str]) -> None:
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SpecError(f"{what} {twice!r} is there twice; names are unique")


def _named(name: str, entry: str) -> None:
    # "*" alone is xDS's wildcard: a resource of that name could never be unsubscribed.
    if not name or name == "*":
        raise SpecError(f"{entry} has no usable name; expected a non-empty text other than '*'")


def _place(address: str, port: int, entry: str) -> None:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        raise SpecError(f"{entry} has address {address!r}; expected an IP address") from None
    if not 0 < port < 65536:
        raise SpecError(f"{entry} has port {port!r}; expected 1 to 65535")


def _source(source: str, entry: str) -> None:
    try:
        good = ipaddress.IPv4Address(source).is_loopback
    except ValueError:
        good = False
    if not good:
        raise SpecError(f"{entry} dials from {source!r}; expected an IPv4 address of 127.0.0.0/8")
