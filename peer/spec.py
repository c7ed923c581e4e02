"""The link's values: what a WireGuard device should be, what it is, and the operations between the two. Pure."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from runtime.secret import Secret

INTERFACE = "mesh0"
LISTEN_PORT = 51820
"""UDP. 9182 belongs to the platform."""
OVERHEAD = 60
"""Bytes that a packet in the tunnel grows by: IPv4 20, UDP 8, WireGuard's header 16 and tag 16 (its paper, 5.4.6)."""
PADDING = 16
"""Bytes: WireGuard pads packets to multiples of it (its paper, 5.4.6), so an MTU between two of them gains nothing."""
BASE_PATH_MTU, TOP_PATH_MTU = 1280, 1500
"""Bytes of an outer IP packet: what nearly every network carries (IPv6 demands it, RFC 8200), and Ethernet's."""
MAX_PATH_MTU = 9000
"""Bytes: a jumbo frame, the most that can be set by hand."""
IP_MTU_DISCOVER, IP_PMTUDISC_PROBE = 10, 3
"""linux/in.h; Python has no names for them: DF on every packet, whatever the kernel has learned of the path (ip(7))."""
KEEPALIVE = 25
"""Seconds: WireGuard's own advice for NATs. It keeps sessions fresh on idle links; probes watch the path."""
CONTROL_PORT = 51821
"""TCP, on a rendezvous' mesh address only."""

_PORT = re.compile(r"[1-9][0-9]{0,4}")


class LinkError(ValueError):
    """A link value is not what it must be. The message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceSpec:
    """A WireGuard device of our own."""

    private_key: Secret
    """Base64, 32 bytes; never leaves the process but by netlink or the device's socket."""
    address: str
    """Our mesh address, IPv4."""
    pool: str
    """The mesh's network, routed into the device."""
    name: str = INTERFACE
    listen_port: int = LISTEN_PORT
    path_mtu: int | None = None
    """Bytes of the largest outer IP packet that every path carries; None: measured, for each peer."""

    @property
    def mtu(self) -> int:
        """The device's MTU, bytes: that of the best path. Routes to peers on lesser paths have their own."""
        return link_mtu(self.path_mtu or TOP_PATH_MTU)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A CVM that we want a tunnel to."""

    public_key: str
    """WireGuard public key, base64."""
    address: str
    """Its mesh address, IPv4: the one source address that its packets may have."""
    peer_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RendezvousPeer:
    """A rendezvous as a CVM sees it."""

    public_key: str
    endpoint: str
    """Public `ip:port`."""
    address: str
    """Its mesh address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerState:
    """One peer as the device reports it."""

    public_key: str
    endpoint: str | None
    """`ip:port`, set by us or learned from its last authenticated packet."""
    latest_handshake: float
    """Unix seconds; 0 before the first."""
    rx: int
    """Bytes received, WireGuard's overhead included."""
    tx: int
    allowed: tuple[str, ...]
    """Networks in CIDR form."""
    keepalive: int
    """Seconds; 0 is off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """A device as it is now."""

    public_key: str
    """Empty when the device has no key yet: it is new."""
    listen_port: int
    peers: Mapping[str, PeerState] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedPeer:
    """What the device should have for one peer."""

    public_key: str
    allowed: tuple[str, ...]
    """Networks in CIDR form, canonical."""
    endpoint: str | None = None
    """None leaves whatever the device has or learns."""
    keepalive: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovePeer:
    """The peer is no longer wanted: its sessions end."""

    public_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetPeer:
    """Adds a peer, or changes the named parts of one. A session survives every change that this can make."""

    public_key: str
    allowed: tuple[str, ...] | None = None
    """Replaces the peer's networks; None keeps them."""
    endpoint: str | None = None
    keepalive: int | None = None
    """From 0 to more, WireGuard sends a packet at once, and so starts a handshake where there is no session."""


Operation = RemovePeer | SetPeer


def link_mtu(path_mtu: int) -> int:
    """The MTU of the tunnel, bytes, over a path that carries outer IP packets of `path_mtu` bytes."""
    return (path_mtu - OVERHEAD) // PADDING * PADDING


def parse_path_mtu(text: str) -> int:
    """`text` as the MTU of a path that somebody sets by hand, bytes, else LinkError."""
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise LinkError(f"is {text!r:.40}, expected bytes, such as 1400")
    if not BASE_PATH_MTU <= int(text) <= MAX_PATH_MTU:
        raise LinkError(f"is {text!r}, expected {BASE_PATH_MTU} to {MAX_PATH_MTU} bytes")
    return int(text)


def check_key(key: str) -> str:
    """`key` when it is a WireGuard key in canonical base64, else LinkError."""
    try:
        raw = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError) as error:
        raise LinkError(f"{key!r:.80} is not a WireGuard public key: expected 32 bytes in base64") from error
    if len(raw) != 32 or base64.b64encode(raw).decode() != key:
        raise LinkError(f"{key!r:.80} is not a WireGuard public key: expected 32 bytes in canonical base64")
    return key


def check_address(address: str, pool: str) -> str:
    """`address` when it is one IPv4 address of `pool`, else LinkError."""
    try:
        good = ipaddress.IPv4Address(address) in ipaddress.IPv4Network(pool)
    except ValueError as error:
        raise LinkError(f"{address!r:.80} is not an IPv4 address") from error
    if not good:
        raise LinkError(f"mesh address {address!r:.80} is outside the mesh's pool {pool}")
    return str(ipaddress.IPv4Address(address))


def parse_endpoint(endpoint: str) -> tuple[str, int]:
    """(IPv4 address, port) of `ip:port`, else LinkError."""
    host, _, port = endpoint.rpartition(":")
    try:
        address = str(ipaddress.IPv4Address(host))
    except ValueError as error:
        raise LinkError(f"{endpoint!r:.80} is not an endpoint: expected IPv4:port") from error
    # In its one form: it becomes a line of what the WireGuard device is told, and Python's int() takes spaces and line
    # ends around a number, signs, '_' and other alphabets' digits.
    number = int(port) if _PORT.fullmatch(port) else 0
    if not 0 < number < 65536:
        raise LinkError(f"{endpoint!r:.80} has no port from 1 to 65535")
    return address, number
