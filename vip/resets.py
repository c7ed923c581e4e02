"""Which connections the kernel resets, as rules of our nftables table. Pure.

A connection to a refused address and port ends with a TCP reset at its first packet, as at a closed port; a connection
that is held already is not touched. To the mesh address of a lost peer every TCP packet is answered with a reset, also
one of a connection that is held. A set and a rule for each:

    ip daddr @lost  meta l4proto tcp  reject with tcp reset
    ip daddr . tcp dport @refused  tcp flags & (fin|syn|rst|ack) == syn  reject with tcp reset

A local server that refuses what comes in from the mesh is not here: Envoy resets that (`xds.refusal`).

Both rules see what leaves this machine for such an address. The tunnel's own packets are UDP to the peer's public
address and match neither.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import NamedTuple

from vip import messages

_REFUSED, _LOST, _CHAIN = "refused", "lost", "output"
_REFUSED_NUMBER, _LOST_NUMBER = 1, 2
"""Of the sets in a batch, beside `vip.filter`'s."""


class Refusal(NamedTuple):
    """A virtual address and port that refuses connections."""

    vip: str
    port: int


class Resets(NamedTuple):
    """What the kernel is to reset."""

    refused: frozenset[Refusal] = frozenset()
    """Where new connections are refused."""
    lost: frozenset[str] = frozenset()
    """Mesh addresses (IPv4) to which every TCP packet is answered with a reset."""


def made() -> Iterable[bytes]:
    """The messages that make sets, chain and rules, the sets empty."""
    over_tcp = (*messages.over_ipv4(), *messages.protocol(messages.TCP))
    address = messages.load(messages.REGISTER_1, messages.NETWORK_HEADER, messages.DESTINATION_ADDRESS, 4)
    port = messages.load(messages.REGISTER_2, messages.TRANSPORT_HEADER, messages.DESTINATION_PORT, 2)
    opens = messages.opens(messages.FIN | messages.SYN | messages.RST | messages.ACK)
    refused, lost = messages.lookup(_REFUSED, _REFUSED_NUMBER), messages.lookup(_LOST, _LOST_NUMBER)
    yield messages.new_set(_REFUSED, _REFUSED_NUMBER, messages.PAIR_TYPE, 8)
    yield messages.new_set(_LOST, _LOST_NUMBER, messages.ADDRESS_TYPE, 4)
    yield messages.new_chain(_CHAIN, messages.OUTPUT)
    yield messages.new_rule(_CHAIN, *over_tcp, address, lost, messages.reset())
    yield messages.new_rule(_CHAIN, *over_tcp, address, port, refused, *opens, messages.reset())


def changed(held: Resets, wanted: Resets) -> Iterable[bytes]:
    """The messages that lead from `held` to `wanted`: only the elements that change."""
    yield from messages.elements(_REFUSED, map(_pair_key, held.refused), map(_pair_key, wanted.refused))
    yield from messages.elements(_LOST, map(_address_key, held.lost), map(_address_key, wanted.lost))


def _pair_key(pair: Refusal) -> bytes:
    """As the two registers hold it: each part begins a register."""
    return IPv4Address(pair.vip).packed + struct.pack("!H2x", pair.port)


def _address_key(address: str) -> bytes:
    return IPv4Address(address).packed
