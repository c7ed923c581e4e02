"""Where routes and CVMs live: stable VIPs, mesh addresses and sidecar ports. Pure.

An address depends on nothing but the name, so adding or removing a group moves no one else's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

VIP_POOL = "127.10.0.0/16"
MESH_POOL = "100.96.0.0/16"
DNS_ADDRESS = "127.10.0.53"
DNS_PORT = 53
"""Where the sidecar answers for names (RFC 1035, 4.2)."""
INGRESS_SOURCE = "127.10.0.54"
"""Loopback address from which the ingress Envoy dials a local server, unless a backend says otherwise: not 127.0.0.1,
which many programs trust (PostgreSQL's image has `host all all 127.0.0.1/32 trust`), and none that a name gets."""
RESERVED = 256
"""Addresses at the start of a pool that no name gets: the network, the DNS server, what comes to need a fixed one."""
_HASH_DIGITS = 12
"""Hex digits of the hash that are used: 48 bits, which every number type holds exactly, JSON's too."""
_SMALLEST_PREFIX = 22
"""A pool with fewer than 1,024 addresses would collide all the time."""

SIDECAR_OFFSET = 20000
PLATFORM_PORTS: Mapping[int, str] = {
    8090: "the dstack guest agent",
    9182: "the platform's WireGuard (dstack-wg0)",
    8787: "the admission broker",
    51820: "the mesh's WireGuard",
    51821: "the rendezvous",
    8300: "Consul's RPC",
    8301: "Consul's serf",
    8302: "Consul's serf (WAN)",
    8500: "Consul's HTTP API for workloads",
    61054: "the ingress's listener that resets",
}
"""Ports that are taken inside every CVM (dstack.md 5 and 6; docs/architecture.md). A test compares them with the port
constants of the packages that run there. DNS (DNS_PORT) is not among them: it has an address of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clash:
    """Two names that got one address."""

    first: str
    second: str
    address: str
    free: str
    """An address of the pool that nobody has: what to pin one of the two to."""


def network(pool: str) -> IPv4Network:
    """The pool as a network. ValueError when it is not an IPv4 network of at least a /22."""
    found = IPv4Network(pool)
    if found.prefixlen > _SMALLEST_PREFIX:
        raise ValueError(f"the pool {pool!r} is too small, expected a /{_SMALLEST_PREFIX} or greater; try a /16")
    return found


def vip_of(route_name: str, pool: str = VIP_POOL) -> str:
    """The loopback address of a route, before pins."""
    return _address_of(route_name, pool)


def mesh_address_of(peer_id: str, pool: str = MESH_POOL) -> str:
    """The mesh address of a CVM, before pins."""
    return _address_of(peer_id, pool)


def rendezvous_address(index: int, pool: str = MESH_POOL) -> str:
    """The mesh address of the rendezvous with `index`, from the start of the pool, where no CVM is."""
    return str(network(pool)[1 + index])


def sidecar_port_of(port: int) -> int:
    """The port of the ingress listener on the mesh address for the backend that listens on `port`."""
    return port + SIDECAR_OFFSET if port + SIDECAR_OFFSET < 61000 else port - SIDECAR_OFFSET


def why_not(address: str, pool: str) -> str | None:
    """Why `address` cannot be pinned in `pool`, as the end of a sentence; None when it can."""
    net = network(pool)
    first, last = net[RESERVED], net[-2]
    try:
        found = IPv4Address(address)
    except ValueError:
        return f"is {address!r:.80}, expected an IPv4 address from {first} to {last}"
    if not first <= found <= last:
        return f"is {address!r:.80}, outside of what may be given out; expected an address from {first} to {last}"
    return None


def why_no_source(address: str, pool: str = VIP_POOL) -> str | None:
    """Why an ingress cannot dial from `address`, as the end of a sentence; None when it can.

    Linux lets a program bind every address of 127.0.0.0/8. One that applications dial is refused, and so is the DNS
    server's: what comes from there would look like an answer.
    """
    net = network(pool)
    expected = (
        f"expected an IPv4 address of 127.0.0.0/8 other than {DNS_ADDRESS} (DNS) and {net[RESERVED]} to {net[-1]} "
        "(VIPs); leave it out for the default"
    )
    try:
        found = IPv4Address(address)
    except ValueError:
        return f"is {address!r:.80}, {expected}"
    loopback = IPv4Network("127.0.0.0/8")
    if not loopback[1] <= found <= loopback[-2] or net[RESERVED] <= found <= net[-1] or address == DNS_ADDRESS:
        return f"is {address!r:.80}, {expected}"
    return None


def clashes(addresses: Mapping[str, str], pool: str) -> tuple[Clash, ...]:
    """Every pair of names that share an address, each with a free address as the way out."""
    taken: set[str] = set(addresses.values())
    owners: dict[str, str] = {}
    found: list[Clash] = []
    for name, address in addresses.items():
        if address not in owners:
            owners[address] = name
            continue
        free = _free_address(name, taken, pool)
        taken.add(free)
        found.append(Clash(first=owners[address], second=name, address=address, free=free))
    return tuple(found)


def _address_of(name: str, pool: str) -> str:
    net = network(pool)
    # Everything between the reserved start and the broadcast address.
    usable = net.num_addresses - RESERVED - 1
    number = int(hashlib.sha256(name.encode()).hexdigest()[:_HASH_DIGITS], 16)
    return str(net[RESERVED + number % usable])


def _free_address(name: str, taken: set[str], pool: str) -> str:
    attempt = 0
    while True:
        candidate = _address_of(f"{name}#{attempt}", pool)
        if candidate not in taken:
            return candidate
        attempt += 1
