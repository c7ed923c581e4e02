"""Which virtual addresses and ports refuse connections, and the nftables messages that make it so. Pure.

A connection to a refused address and port ends with a TCP reset at its first packet, as at a closed port; a connection
that is held already is not touched. One table of ours holds one set of refused pairs and one rule:

    ip daddr . tcp dport @refused  tcp flags & (fin|syn|rst|ack) == syn  reject with tcp reset

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
_SET, _CHAIN = "refused", "output"
_CHUNK = 1000
"""Pairs in one message: 20 bytes each in an attribute that holds 65,535 at most."""

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
_KEY_TYPE = 7 << 6 | 13
"""ipv4_addr . inet_service, as the `nft` program numbers them: it shows the set with these types."""
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


def whole(wanted: frozenset[Refusal]) -> Batch:
    """Replaces our table, whoever left it, by one that refuses `wanted`; nothing is open in between."""
    name = _text(1, TABLE)
    table = (_message(_NEWTABLE, _CREATE, name), _message(_DELTABLE, 0, name), _message(_NEWTABLE, _CREATE, name))
    # Without interval flags a hash set: one look-up for each new connection.
    pairs = _text(1, TABLE) + _text(2, _SET) + _number(3, 0) + _number(4, _KEY_TYPE) + _number(5, 8) + _number(10, 1)
    hook = _nest(4, _number(1, _HOOK_OUTPUT) + _number(2, 0))
    chain = _text(1, TABLE) + _text(3, _CHAIN) + hook + _text(7, "filter")
    rule = _text(1, TABLE) + _text(2, _CHAIN) + _nest(4, b"".join(_nest(1, one) for one in _expressions()))
    return _batch(
        *table,
        _message(_NEWSET, _CREATE, pairs),
        _message(_NEWCHAIN, _CREATE, chain),
        _message(_NEWRULE, _CREATE | _APPEND, rule),
        *_elements(_NEWELEMENT, wanted),
    )


def change(held: frozenset[Refusal], wanted: frozenset[Refusal]) -> Batch:
    """What leads from the refused pairs `held` to `wanted`: only those that change. No message where none does."""
    return _batch(*_elements(_NEWELEMENT, wanted - held), *_elements(_DELELEMENT, held - wanted))


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


def _expressions() -> Iterable[bytes]:
    """The rule. The first four leave everything but TCP over IPv4 alone."""
    yield _expression("meta", _number(1, _REGISTER_1) + _number(2, _META_NFPROTO))
    yield _equal(bytes([_IPV4]))
    yield _expression("meta", _number(1, _REGISTER_1) + _number(2, _META_L4PROTO))
    yield _equal(bytes([_TCP]))
    yield _load(_REGISTER_1, _NETWORK_HEADER, 16, 4)
    yield _load(_REGISTER_2, _TRANSPORT_HEADER, 2, 2)
    yield _expression("lookup", _text(1, _SET) + _number(2, _REGISTER_1) + _number(4, 1))
    yield _load(_REGISTER_1, _TRANSPORT_HEADER, 13, 1)
    mask = _nest(4, _bytes(1, _FIN_SYN_RST_ACK)) + _nest(5, _bytes(1, b"\0"))
    yield _expression("bitwise", _number(1, _REGISTER_1) + _number(2, _REGISTER_1) + _number(3, 1) + mask)
    yield _equal(_SYN)
    yield _expression("reject", _number(1, _REJECT_TCP_RESET))


def _equal(value: bytes) -> bytes:
    return _expression("cmp", _number(1, _REGISTER_1) + _number(2, 0) + _nest(3, _bytes(1, value)))


def _load(register: int, base: int, offset: int, length: int) -> bytes:
    return _expression("payload", _number(1, register) + _number(2, base) + _number(3, offset) + _number(4, length))


def _expression(name: str, data: bytes) -> bytes:
    return _text(1, name) + _nest(2, data)


def _elements(kind: int, pairs: frozenset[Refusal]) -> Iterable[bytes]:
    ordered = sorted(pairs)
    for start in range(0, len(ordered), _CHUNK):
        listed = b"".join(_nest(1, _nest(1, _bytes(1, _key(pair)))) for pair in ordered[start : start + _CHUNK])
        flags = _CREATE if kind == _NEWELEMENT else 0
        yield _message(kind, flags, _text(1, TABLE) + _text(2, _SET) + _nest(3, listed))


def _key(pair: Refusal) -> bytes:
    """As the two registers hold it: each part begins a register."""
    return IPv4Address(pair.vip).packed + struct.pack("!H2x", pair.port)


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
