"""Where a manifest puts things: addresses, ports and names have their form, lie in their pools, and are there once.

Pure. Every program carries out what the manifest says. A value that none of them can carry out is refused here, before
an owner signs it, where a coordinator judges it, and where a CVM takes it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import TypeVar
from urllib.parse import urlsplit

from topology.addresses import DNS_ADDRESS, network, why_no_source

_Entry = TypeVar("_Entry", "Place", "Dialled")
_PORTS = range(1, 1 << 16)
_KEY_BYTES = 32
"""Of a WireGuard public key."""


class PlacesError(ValueError):
    """A value that nobody can carry out. The message is the end of a sentence that begins with `manifest`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A name with an address. `entry` is where it stands in the manifest."""

    entry: str
    name: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialled:
    """A route's name, VIP and port."""

    entry: str
    name: str
    vip: str
    port: int


def check_pools(pools: Mapping[str, str]) -> None:
    """PlacesError unless each of `pools`, by the manifest's field, is a network that addresses can be given out of."""
    for field, pool in pools.items():
        try:
            network(pool)
        except ValueError as error:
            raise PlacesError(f".{field} is {pool!r:.80}, which is no pool: {error!s:.200}") from error


def check_cvms(places: Iterable[Place], pool: str) -> None:
    """PlacesError unless each of `places` (CVMs, then rendezvous) has a name and an address of `pool` of its own."""
    listed, net = tuple(places), network(pool)
    _check_once(listed, lambda it: it.name, "the name")
    _check_once(listed, lambda it: it.address, "the address")
    for each in listed:
        _check_address(f"{each.entry}.address", each.address, net)


def check_routes(routes: Iterable[Dialled], pool: str) -> None:
    """PlacesError unless each of `routes` has a name of its own, and a VIP of `pool` and a port that are its own."""
    listed, net = tuple(routes), network(pool)
    _check_once(listed, lambda it: it.name, "the name")
    _check_once(listed, lambda it: f"{it.vip}:{it.port}", "VIP and port")
    for each in listed:
        _check_address(f"{each.entry}.vip", each.vip, net)
        if each.vip == DNS_ADDRESS:
            raise PlacesError(f"{each.entry}.vip is {DNS_ADDRESS}, where names are asked for; expected another one")
        check_port(f"{each.entry}.port", each.port)


def check_port(entry: str, port: int) -> None:
    """PlacesError unless `port` is one."""
    if port not in _PORTS:
        raise PlacesError(f"{entry} is {port}, expected a port from {_PORTS[0]} to {_PORTS[-1]}")


def check_source(entry: str, address: str, pool: str) -> None:
    """PlacesError unless an ingress can dial from `address`."""
    if (reason := why_no_source(address, pool)) is not None:
        raise PlacesError(f"{entry} {reason}")


def check_rendezvous(entry: str, public_key: str, endpoint: str) -> None:
    """PlacesError unless there is a WireGuard key, and `ip:port`."""
    try:
        key = base64.b64decode(public_key, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != _KEY_BYTES or base64.b64encode(key).decode() != public_key:
        raise PlacesError(f"{entry}.public_key is {public_key!r:.80}, expected a WireGuard key, 32 bytes in base64")
    host, _, port = endpoint.rpartition(":")
    try:
        right = str(IPv4Address(host)) == host and port.isascii() and port.isdigit() and int(port) in _PORTS
    except ValueError:
        right = False
    if not right:
        raise PlacesError(f"{entry}.endpoint is {endpoint!r:.80}, expected an IPv4 address and a port, not a name")


def check_url(entry: str, url: str) -> None:
    """PlacesError unless `url` is where a coordinator can be asked."""
    try:
        parts = urlsplit(url)
        right = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        right = False
    if not right:
        raise PlacesError(f"{entry} is {url!r:.200}, expected https://host:port")


def _check_address(entry: str, address: str, pool: IPv4Network) -> None:
    try:
        found = IPv4Address(address)
        right = str(found) == address and found in pool
    except ValueError:
        right = False
    if not right:
        raise PlacesError(f"{entry} is {address!r:.80}, expected an IPv4 address of {pool}")


def _check_once(items: Iterable[_Entry], key: Callable[[_Entry], str], what: str) -> None:
    """PlacesError where two of `items` have one `key`."""
    seen: dict[str, str] = {}
    for each in items:
        found = key(each)
        if found in seen:
            raise PlacesError(f"{each.entry} has {what} {found!r:.80}, as {seen[found].removeprefix('.')} has")
        seen[found] = each.entry
