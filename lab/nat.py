"""The lab's NAT routers: nftables rules, and the netlink calls that install them in the current namespace.

No `nft` or `iptables` binary is needed: pyroute2 speaks nfnetlink. A router here does what the gateways of real clouds
do: it masquerades what leaves, and it *drops* unsolicited packets. The drop matters: an unsolicited packet that reached
the router's own stack would make conntrack keep its tuple, and the CVM's next packet to that sender would then get
another port.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pyroute2.nftables.expressions import genex, verdict
from pyroute2.nftables.main import NFTables

Nat = Literal["preserving", "random"]
"""`preserving` keeps the source port (direct tunnels work); `random` picks a port per destination (they cannot)."""
Direction = Literal["both", "in", "out"]

# linux/netfilter/nf_tables.h and nf_conntrack_common.h; pyroute2 has names for none of these as arguments.
_ACCEPT, _DROP = 1, 0
_META_IIFNAME, _META_OIFNAME, _META_L4PROTO = 6, 7, 16
_CT_STATE, _ESTABLISHED_OR_RELATED = 0, 0b110
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_SOURCE_OFFSET, _DESTINATION_OFFSET = 12, 16
_UNREACHABLE = 3
"""ICMP type of "destination unreachable"."""
_IFNAMSIZ = 16
_PRIORITY_SOURCE_NAT, _PRIORITY_FILTER, _PRIORITY_FAULT = 100, 0, -200
_PRIORITY_ARRIVAL = -300
"""Before connection tracking (-200): a packet that is lost on the wire leaves no trace in the router."""

Expressions = list[dict[str, Any]]


def install_router(wan: str, lan: str, nat: Nat) -> None:
    """Makes the current namespace a NAT router from `lan` to `wan` (interface names)."""
    masquerade = {"flags": {"NF_NAT_RANGE_PROTO_RANDOM_FULLY"}} if nat == "random" else {}
    with _nftables() as nft:
        nft.table("add", name="router")
        nft.chain("add", table="router", name="nat", hook="postrouting", type="nat", priority=_PRIORITY_SOURCE_NAT)
        _rule(nft, "router", "nat", [*_interface(_META_OIFNAME, wan), genex("masq", masquerade)])
        for hook in ("input", "forward"):
            nft.chain("add", table="router", name=hook, hook=hook, priority=_PRIORITY_FILTER, policy=_DROP)
            _rule(nft, "router", hook, [*_interface(_META_IIFNAME, lan), *verdict(_ACCEPT)])
            _rule(nft, "router", hook, [*_known_connection(), *verdict(_ACCEPT)])
    # Last, so that nothing is forwarded before it is translated. /proc/sys/net shows the calling thread's namespace.
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def install_faults(wan: str, lan: str, blocks: Sequence[tuple[str | None, Direction]], cut: Direction | None) -> None:
    """Replaces the faults of the current namespace, a router's.

    Each of `blocks` (remote address or None for all, direction) drops UDP; `cut` drops everything to (`in`) or from
    (`out`) the CVM behind it.
    """
    with _nftables() as nft:
        _renew_table(nft)
        if blocks:
            nft.chain("add", table="fault", name="forward", hook="forward", priority=_PRIORITY_FAULT)
        for remote, direction in blocks:
            for match in _directions(remote, direction):
                _rule(nft, "fault", "forward", [*_udp(), *match, *verdict(_DROP)])
        _drop_on_arrival(nft, [way for way, parts in ((lan, ("out", "both")), (wan, ("in", "both"))) if cut in parts])


def drop_unreachables(drop: bool) -> None:
    """Whether the current namespace, a router's, keeps ICMP "destination unreachable" of its own to itself.

    "Fragmentation needed" is one of them (RFC 792): without it, a sender never learns why its packets are lost.
    """
    with _nftables() as nft:
        nft.table("add", name="silence")
        nft.table("del", name="silence")
        if drop:
            nft.table("add", name="silence")
            nft.chain("add", table="silence", name="output", hook="output", priority=_PRIORITY_FILTER)
            _rule(nft, "silence", "output", [*_icmp(_UNREACHABLE), *verdict(_DROP)])


def drop_arrivals(interfaces: Sequence[str]) -> None:
    """Replaces the faults of the current namespace: everything that arrives on `interfaces` is dropped."""
    with _nftables() as nft:
        _renew_table(nft)
        _drop_on_arrival(nft, interfaces)


def _renew_table(nft: Any) -> None:
    # `add` first: deleting a table that is not there is an error, adding one that is there is none.
    nft.table("add", name="fault")
    nft.table("del", name="fault")
    nft.table("add", name="fault")


def _drop_on_arrival(nft: Any, interfaces: Sequence[str]) -> None:
    if interfaces:
        nft.chain("add", table="fault", name="arrival", hook="prerouting", priority=_PRIORITY_ARRIVAL)
    for interface in interfaces:
        _rule(nft, "fault", "arrival", [*_interface(_META_IIFNAME, interface), *verdict(_DROP)])


@contextmanager
def _nftables() -> Iterator[Any]:
    nft = NFTables(nfgen_family=socket.AF_INET)
    try:
        yield nft
    finally:
        nft.close()


def _rule(nft: Any, table: str, chain: str, expressions: Expressions) -> None:
    nft.rule("add", table=table, chain=chain, expressions=[expressions])


def _equal(value: bytes) -> dict[str, Any]:
    data: dict[str, Any] = genex("cmp", {"sreg": 1, "op": 0, "data": {"attrs": [("NFTA_DATA_VALUE", value)]}})
    return data


def _interface(key: int, name: str) -> Expressions:
    return [genex("meta", {"key": key, "dreg": 1}), _equal(name.encode().ljust(_IFNAMSIZ, b"\0"))]


def _udp() -> Expressions:
    return [genex("meta", {"key": _META_L4PROTO, "dreg": 1}), _equal(bytes([socket.IPPROTO_UDP]))]


def _icmp(kind: int) -> Expressions:
    return [
        genex("meta", {"key": _META_L4PROTO, "dreg": 1}),
        _equal(bytes([socket.IPPROTO_ICMP])),
        genex("payload", {"dreg": 1, "base": _TRANSPORT_HEADER, "offset": 0, "len": 1}),
        _equal(bytes([kind])),
    ]


def _known_connection() -> Expressions:
    # The kernel keeps the state in its own byte order.
    mask = {"attrs": [("NFTA_DATA_VALUE", struct.pack("=I", _ESTABLISHED_OR_RELATED))]}
    zero = {"attrs": [("NFTA_DATA_VALUE", bytes(4))]}
    not_zero = genex("cmp", {"sreg": 1, "op": 1, "data": zero})
    return [
        genex("ct", {"key": _CT_STATE, "dreg": 1}),
        genex("bitwise", {"sreg": 1, "dreg": 1, "len": 4, "mask": mask, "xor": zero}),
        not_zero,
    ]


def _directions(remote: str | None, direction: Direction) -> list[Expressions]:
    """Matches for packets of the forward hook, where the CVM's side is already (or still) its private address."""
    offsets = {"in": [_SOURCE_OFFSET], "out": [_DESTINATION_OFFSET], "both": [_SOURCE_OFFSET, _DESTINATION_OFFSET]}
    if remote is None:
        ways = {"in": ["wan"], "out": ["lan"], "both": ["wan", "lan"]}[direction]
        return [_interface(_META_IIFNAME, way) for way in ways]
    packed = socket.inet_aton(remote)
    return [
        [genex("payload", {"dreg": 1, "base": _NETWORK_HEADER, "offset": offset, "len": 4}), _equal(packed)]
        for offset in offsets[direction]
    ]
