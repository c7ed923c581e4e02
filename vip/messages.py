"""Messages of nfnetlink that make our nftables table, and their parts. Pure; says nothing of what the rules are for.

Messages are built here rather than by pyroute2: in 0.9.7 its `nlm_request_batch` waits for ever when the kernel refuses
a whole batch, and its classes take 0.3 ms to encode one pair on the path of a failover. Numbers are those of Linux'
include/uapi/linux/netfilter/nf_tables.h, nfnetlink.h and netlink.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import IPv4Network
from typing import NamedTuple

TABLE = "cvm_mesh"
"""Name of the table, of family inet. A network namespace has one sidecar or coordinator, and so one table."""
PREROUTING, INPUT, FORWARD, OUTPUT = 0, 1, 2, 3
"""Hooks of netfilter, linux/netfilter.h: before the route is looked up, to this machine, through it, from it."""
ADDRESS_TYPE, PORT_TYPE = 7, 13
PAIR_TYPE = ADDRESS_TYPE << 6 | PORT_TYPE
"""ipv4_addr, inet_service and ipv4_addr . inet_service, as the `nft` program numbers them: it shows sets with these."""
REGISTER_1, REGISTER_2 = 1, 9
"""The first 32-bit register, under its old name, and the one beside it: a pair lies in both."""
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2
DESTINATION_ADDRESS, DESTINATION_PORT, TCP_FLAGS, ICMP_TYPE = 16, 2, 13, 0
"""Where they begin in the header of IPv4, of TCP or UDP, of TCP and of ICMP: bytes."""
ICMP, TCP, UDP = 1, 6, 17
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
"""Flags of TCP, RFC 9293."""

_CHUNK = 1000
"""Elements in one message: 20 bytes each at most, in an attribute that holds 65,535."""
_REQUEST, _ACK, _CREATE, _APPEND = 0x1, 0x4, 0x400, 0x800
_SUBSYSTEM = 10
_BEGIN, _END = 0x10, 0x11
_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE, _NEWSET, _NEWELEMENT, _DELELEMENT = 0, 2, 3, 6, 9, 12, 14
_INET, _IPV4 = 1, 2
_NESTED = 0x8000
_ERROR = 2
_META_IIFNAME, _META_NFPROTO, _META_L4PROTO = 6, 15, 16
_INTERFACE_BYTES = 16
"""IFNAMSIZ, linux/if.h: a name is compared with the zeros behind it."""
_EQUAL, _UNEQUAL = 0, 1
_VERDICT = 0
"""The register that a verdict is put into."""
_DROP, _ACCEPT = 0, 1
_REJECT_TCP_RESET = 1


class Batch(NamedTuple):
    """Messages that the kernel carries out as a whole or not at all."""

    data: bytes
    acks: int
    """How many messages it acknowledges when it does."""


def batch(*messages: bytes) -> Batch:
    """The messages as one transaction; none at all where there are none."""
    if not messages:
        return Batch(data=b"", acks=0)
    begin, end = (_framed(kind, _REQUEST, 0, struct.pack("!H", _SUBSYSTEM), b"") for kind in (_BEGIN, _END))
    return Batch(data=b"".join((begin, *messages, end)), acks=len(messages))


def errors(answer: bytes) -> list[int]:
    """The error numbers in one datagram of the kernel's: 0 is an acknowledgement. ValueError when it is malformed."""
    found = []
    while answer:
        if len(answer) < 20:
            raise ValueError(f"the kernel's answer ends with {len(answer)} bytes, expected a message of 20 or more")
        length, kind = struct.unpack_from("=IH", answer)
        if length < 20 or length > len(answer):
            raise ValueError(f"the kernel's answer has a message of {length} bytes in {len(answer)}")
        if kind == _ERROR:
            found.append(-struct.unpack_from("=i", answer, 16)[0])
        answer = answer[(length + 3) & ~3 :]
    return found


# ---- messages


def new_table() -> bytes:
    """Makes the table, where there is none."""
    return _message(_NEWTABLE, _CREATE, _text(1, TABLE))


def no_table() -> bytes:
    """Takes the table away; an error where there is none."""
    return _message(_DELTABLE, 0, _text(1, TABLE))


def new_set(name: str, number: int, key_type: int, key_bytes: int) -> bytes:
    """Makes a set; `number` tells it from others of the batch."""
    # Without interval flags a hash set: one look-up for each packet.
    key = _number(4, key_type) + _number(5, key_bytes)
    return _message(_NEWSET, _CREATE, _text(1, TABLE) + _text(2, name) + _number(3, 0) + key + _number(10, number))


def new_chain(name: str, hook: int, priority: int = 0) -> bytes:
    """Makes a chain that sees the packets at `hook`, and lets pass what no rule takes."""
    where = _nest(4, _number(1, hook) + _bytes(2, struct.pack("!i", priority)))
    return _message(_NEWCHAIN, _CREATE, _text(1, TABLE) + _text(3, name) + where + _text(7, "filter"))


def new_rule(chain: str, *expressions: bytes) -> bytes:
    """Appends a rule: what comes first decides whether the next is looked at."""
    listed = _nest(4, b"".join(_nest(1, one) for one in expressions))
    return _message(_NEWRULE, _CREATE | _APPEND, _text(1, TABLE) + _text(2, chain) + listed)


def elements(name: str, held: Iterable[bytes], wanted: Iterable[bytes]) -> Iterable[bytes]:
    """What makes the keys `held` of a set to `wanted`: what is new comes before what goes."""
    before, after = frozenset(held), frozenset(wanted)
    yield from _elements(_NEWELEMENT, name, after - before)
    yield from _elements(_DELELEMENT, name, before - after)


def _elements(kind: int, name: str, keys: Iterable[bytes]) -> Iterable[bytes]:
    ordered = sorted(keys)
    for start in range(0, len(ordered), _CHUNK):
        listed = b"".join(_nest(1, _nest(1, _bytes(1, key))) for key in ordered[start : start + _CHUNK])
        flags = _CREATE if kind == _NEWELEMENT else 0
        yield _message(kind, flags, _text(1, TABLE) + _text(2, name) + _nest(3, listed))


# ---- parts of a rule


def from_interface(name: str) -> tuple[bytes, ...]:
    """Matches what came in by the interface called `name`, whether there is one now or not."""
    return _meta(_META_IIFNAME), _compare(_EQUAL, _interface(name))


def not_from_interface(name: str) -> tuple[bytes, ...]:
    """Matches what came in by any other interface."""
    return _meta(_META_IIFNAME), _compare(_UNEQUAL, _interface(name))


def over_ipv4() -> tuple[bytes, ...]:
    """Matches IPv4."""
    return _meta(_META_NFPROTO), equal(bytes([_IPV4]))


def not_over_ipv4() -> tuple[bytes, ...]:
    """Matches everything else, which is IPv6."""
    return _meta(_META_NFPROTO), _compare(_UNEQUAL, bytes([_IPV4]))


def protocol(number: int) -> tuple[bytes, ...]:
    """Matches the transport `number`."""
    return _meta(_META_L4PROTO), equal(bytes([number]))


def to_network(pool: IPv4Network) -> tuple[bytes, ...]:
    """Matches IPv4 packets to an address of `pool`."""
    return *_masked_destination(pool), equal(pool.network_address.packed)


def not_to_network(pool: IPv4Network) -> tuple[bytes, ...]:
    """Matches IPv4 packets to any other address."""
    return *_masked_destination(pool), _compare(_UNEQUAL, pool.network_address.packed)


def opens(looked_at: int) -> tuple[bytes, ...]:
    """Matches TCP packets that have SYN and no other of the flags `looked_at`."""
    return *_flags(looked_at), equal(bytes([SYN]))


def opens_not(looked_at: int) -> tuple[bytes, ...]:
    """Matches all other TCP packets."""
    return *_flags(looked_at), _compare(_UNEQUAL, bytes([SYN]))


def load(register: int, base: int, offset: int, length: int) -> bytes:
    """Puts `length` bytes of a header into `register`."""
    return _expression("payload", _number(1, register) + _number(2, base) + _number(3, offset) + _number(4, length))


def equal(value: bytes) -> bytes:
    """Matches when the first register has `value`."""
    return _compare(_EQUAL, value)


def lookup(name: str, number: int) -> bytes:
    """Matches when the set called `name`, `number` in this batch, has what the first register has."""
    return _expression("lookup", _text(1, name) + _number(2, REGISTER_1) + _number(4, number))


def reset() -> bytes:
    """Answers with a TCP reset, and lets go of the packet."""
    return _expression("reject", _number(1, _REJECT_TCP_RESET))


def accept() -> bytes:
    """Ends our rules of this hook; those of other tables still see the packet."""
    return _verdict(_ACCEPT)


def drop() -> bytes:
    """Lets go of the packet, without a word."""
    return _verdict(_DROP)


def _verdict(code: int) -> bytes:
    return _expression("immediate", _number(1, _VERDICT) + _nest(2, _nest(2, _number(1, code))))


def _flags(looked_at: int) -> tuple[bytes, ...]:
    return load(REGISTER_1, TRANSPORT_HEADER, TCP_FLAGS, 1), _mask(bytes([looked_at]))


def _masked_destination(pool: IPv4Network) -> tuple[bytes, ...]:
    return load(REGISTER_1, NETWORK_HEADER, DESTINATION_ADDRESS, 4), _mask(pool.netmask.packed)


def _mask(mask: bytes) -> bytes:
    both = _nest(4, _bytes(1, mask)) + _nest(5, _bytes(1, bytes(len(mask))))
    return _expression("bitwise", _number(1, REGISTER_1) + _number(2, REGISTER_1) + _number(3, len(mask)) + both)


def _interface(name: str) -> bytes:
    return name.encode().ljust(_INTERFACE_BYTES, b"\0")


def _meta(key: int) -> bytes:
    return _expression("meta", _number(1, REGISTER_1) + _number(2, key))


def _compare(operation: int, value: bytes) -> bytes:
    return _expression("cmp", _number(1, REGISTER_1) + _number(2, operation) + _nest(3, _bytes(1, value)))


def _expression(name: str, data: bytes) -> bytes:
    return _text(1, name) + _nest(2, data)


# ---- attributes


def _message(kind: int, flags: int, attributes: bytes) -> bytes:
    return _framed(_SUBSYSTEM << 8 | kind, _REQUEST | _ACK | flags, _INET, b"\0\0", attributes)


def _framed(kind: int, flags: int, family: int, resource: bytes, attributes: bytes) -> bytes:
    body = struct.pack("=BB", family, 0) + resource + attributes
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 0, 0) + body


def _bytes(kind: int, value: bytes) -> bytes:
    """One attribute; the padding is not part of its length."""
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _nest(kind: int, attributes: bytes) -> bytes:
    return _bytes(kind | _NESTED, attributes)


def _text(kind: int, value: str) -> bytes:
    return _bytes(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return _bytes(kind, struct.pack("!I", value))
