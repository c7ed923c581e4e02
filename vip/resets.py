"""Which connections the kernel resets, and the nftables messages that make it so. Pure.

A connection to a refused address and port ends with a TCP reset at its first packet, as at a closed port; a connection
that is held already is not touched. To the mesh address of a lost peer every TCP packet is answered with a reset, also
one of a connection that is held. One table of ours has a set and a rule for each:

    ip daddr @lost  meta l4proto tcp  reject with tcp reset
    ip daddr . tcp dport @refused  tcp flags & (fin|syn|rst|ack) == syn  reject with tcp reset

A local server that refuses what comes in from the mesh is not here: Envoy resets that (`xds.refusal`).

Both rules see what leaves this machine for such an address. The tunnel's own packets are UDP to the peer's public
address and match neither.

Messages are built here rather than by pyroute2: in 0.9.7 its `nlm_request_batch` waits for ever when the kernel refuses
a whole batch, and its classes take 0.3 ms to encode one pair on the path of a failover. Numbers are those of Linux'
include/uapi/linux/netfilter/nf_tables.h, nfnetlink.h and netlink.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import NamedTuple

TABLE = "cvm_mesh"
"""Name of the table, of family inet. A network namespace has one sidecar, and so one table."""
_REFUSED, _LOST, _CHAIN = "refused", "lost", "output"
_CHUNK = 1000
"""Elements in one message: 20 bytes each at most, in an attribute that holds 65,535."""

_REQUEST, _ACK, _CREATE, _APPEND = 0x1, 0x4, 0x400, 0x800
_SUBSYSTEM = 10
_BEGIN, _END = 0x10, 0x11
_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE, _NEWSET, _NEWELEMENT, _DELELEMENT = 0, 2, 3, 6, 9, 12, 14
_INET, _IPV4 = 1, 2
_TCP = 6
_NESTED = 0x8000
_ERROR = 2
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_META_NFPROTO, _META_L4PROTO = 15, 16
_HOOK_OUTPUT = 3
_REGISTER_1, _REGISTER_2 = 1, 9
"""The first 32-bit register, under its old name, and the one beside it: a pair lies in both."""
_ADDRESS_TYPE = 7
_PAIR_TYPE = 7 << 6 | 13
"""ipv4_addr, and ipv4_addr . inet_service, as the `nft` program numbers them: it shows the sets with these types."""
_FIN_SYN_RST_ACK, _SYN = b"\x17", b"\x02"
_REJECT_TCP_RESET = 1


class Refusal(NamedTuple):
    """A virtual address and port that refuses connections."""

    vip: str
    port: int


class Batch(NamedTuple):
    """Messages that the kernel carries out as a whole or not at all."""

    data: bytes
    acks: int
    """How many messages it acknowledges when it does."""


class Resets(NamedTuple):
    """What the kernel is to reset."""

    refused: frozenset[Refusal] = frozenset()
    """Where new connections are refused."""
    lost: frozenset[str] = frozenset()
    """Mesh addresses (IPv4) to which every TCP packet is answered with a reset."""


def whole(wanted: Resets) -> Batch:
    """Replaces our table, whoever left it, by one that resets `wanted`; nothing is open in between."""
    name = _text(1, TABLE)
    table = (_message(_NEWTABLE, _CREATE, name), _message(_DELTABLE, 0, name), _message(_NEWTABLE, _CREATE, name))
    hook = _nest(4, _number(1, _HOOK_OUTPUT) + _number(2, 0))
    chain = _text(1, TABLE) + _text(3, _CHAIN) + hook + _text(7, "filter")
    return _batch(
        *table,
        _set(_REFUSED, 1, _PAIR_TYPE, 8),
        _set(_LOST, 2, _ADDRESS_TYPE, 4),
        _message(_NEWCHAIN, _CREATE, chain),
        _rule(_resets_lost()),
        _rule(_refuses()),
        *_changed(Resets(), wanted),
    )


def change(held: Resets, wanted: Resets) -> Batch:
    """What leads from `held` to `wanted`: only the elements that change. No message where none does."""
    return _batch(*_changed(held, wanted))


def gone() -> Batch:
    """Takes our table away; no error where there is none."""
    name = _text(1, TABLE)
    return _batch(_message(_NEWTABLE, _CREATE, name), _message(_DELTABLE, 0, name))


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


def _set(name: str, number: int, key_type: int, key_bytes: int) -> bytes:
    # Without interval flags a hash set: one look-up for each packet. `number` tells it from others of the batch.
    key = _number(4, key_type) + _number(5, key_bytes)
    return _message(_NEWSET, _CREATE, _text(1, TABLE) + _text(2, name) + _number(3, 0) + key + _number(10, number))


def _rule(expressions: Iterable[bytes]) -> bytes:
    listed = _nest(4, b"".join(_nest(1, one) for one in expressions))
    return _message(_NEWRULE, _CREATE | _APPEND, _text(1, TABLE) + _text(2, _CHAIN) + listed)


def _tcp_over_ipv4() -> Iterable[bytes]:
    """Leaves everything but TCP over IPv4 alone."""
    yield _expression("meta", _number(1, _REGISTER_1) + _number(2, _META_NFPROTO))
    yield _equal(bytes([_IPV4]))
    yield _expression("meta", _number(1, _REGISTER_1) + _number(2, _META_L4PROTO))
    yield _equal(bytes([_TCP]))


def _resets_lost() -> Iterable[bytes]:
    yield from _tcp_over_ipv4()
    yield _load(_REGISTER_1, _NETWORK_HEADER, 16, 4)
    yield _lookup(_LOST, 2)
    yield _expression("reject", _number(1, _REJECT_TCP_RESET))


def _refuses() -> Iterable[bytes]:
    yield from _tcp_over_ipv4()
    yield _load(_REGISTER_1, _NETWORK_HEADER, 16, 4)
    yield _load(_REGISTER_2, _TRANSPORT_HEADER, 2, 2)
    yield _lookup(_REFUSED, 1)
    yield _load(_REGISTER_1, _TRANSPORT_HEADER, 13, 1)
    mask = _nest(4, _bytes(1, _FIN_SYN_RST_ACK)) + _nest(5, _bytes(1, b"\0"))
    yield _expression("bitwise", _number(1, _REGISTER_1) + _number(2, _REGISTER_1) + _number(3, 1) + mask)
    yield _equal(_SYN)
    yield _expression("reject", _number(1, _REJECT_TCP_RESET))


def _lookup(name: str, number: int) -> bytes:
    return _expression("lookup", _text(1, name) + _number(2, _REGISTER_1) + _number(4, number))


def _equal(value: bytes) -> bytes:
    return _expression("cmp", _number(1, _REGISTER_1) + _number(2, 0) + _nest(3, _bytes(1, value)))


def _load(register: int, base: int, offset: int, length: int) -> bytes:
    return _expression("payload", _number(1, register) + _number(2, base) + _number(3, offset) + _number(4, length))


def _expression(name: str, data: bytes) -> bytes:
    return _text(1, name) + _nest(2, data)


def _changed(held: Resets, wanted: Resets) -> Iterable[bytes]:
    """What is new comes before what goes."""
    yield from _elements(_NEWELEMENT, _REFUSED, map(_pair_key, wanted.refused - held.refused))
    yield from _elements(_NEWELEMENT, _LOST, map(_address_key, wanted.lost - held.lost))
    yield from _elements(_DELELEMENT, _REFUSED, map(_pair_key, held.refused - wanted.refused))
    yield from _elements(_DELELEMENT, _LOST, map(_address_key, held.lost - wanted.lost))


def _elements(kind: int, name: str, keys: Iterable[bytes]) -> Iterable[bytes]:
    ordered = sorted(keys)
    for start in range(0, len(ordered), _CHUNK):
        listed = b"".join(_nest(1, _nest(1, _bytes(1, key))) for key in ordered[start : start + _CHUNK])
        flags = _CREATE if kind == _NEWELEMENT else 0
        yield _message(kind, flags, _text(1, TABLE) + _text(2, name) + _nest(3, listed))


def _pair_key(pair: Refusal) -> bytes:
    """As the two registers hold it: each part begins a register."""
    return IPv4Address(pair.vip).packed + struct.pack("!H2x", pair.port)


def _address_key(address: str) -> bytes:
    return IPv4Address(address).packed


def _batch(*messages: bytes) -> Batch:
    if not messages:
        return Batch(data=b"", acks=0)
    begin, end = (_framed(kind, _REQUEST, 0, struct.pack("!H", _SUBSYSTEM), b"") for kind in (_BEGIN, _END))
    return Batch(data=b"".join((begin, *messages, end)), acks=len(messages))


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
