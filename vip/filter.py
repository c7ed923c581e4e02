"""Which packets may reach this CVM by the mesh, as rules of our nftables table. Pure.

Linux answers for each of its addresses on every interface, and what a program binds to 0.0.0.0 answers on the mesh
address too. So:

    arrival:  iifname not lo, not mesh0   ip daddr in the mesh pool    drop
    forward:  iifname mesh0   tcp: reset, all else: drop
    input:    the first that matches:
        iifname not mesh0                                            accept
        not IPv4, or to an address outside of the mesh pool          drop
        icmp type echo-request, echo-reply, destination-unreachable  accept
        udp dport @mesh_udp                                          accept
        tcp, but not the first packet of a connection                accept
        tcp dport @mesh_tcp                                          accept
        tcp                                                          reset
        everything else                                              drop

An admitted CVM that connects to a closed port gets a reset, as from a machine without a filter, and tries the next
endpoint at once. What comes beside the tunnel gets no answer: nobody there has any business with these addresses.

No connection is tracked. Of TCP only a packet with SYN and without ACK can open a connection, so the others need no
memory of who opened it: connections that are held survive any change of the rules, and a restart of the sidecar, and
there is no table that fills up. With tracking, each connection over loopback would take a place in one table of the
whole machine, and a full one loses packets. UDP is let in by port alone: gossip has one port for both ways.

The first chain stands before the translation of addresses (DNAT): a port that Docker publishes is translated there, and
never comes to the input hook. For the same reason nothing that comes in by the mesh is forwarded. "Destination
unreachable" carries "fragmentation needed". The input hook sees packets that are put together again; a fragment of
gossip on a narrow path is no reason to lose it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import IPv4Network
from typing import NamedTuple

from vip import messages

_TCP_PORTS, _UDP_PORTS = "mesh_tcp", "mesh_udp"
_TCP_NUMBER, _UDP_NUMBER = 3, 4
"""Of the sets in a batch, beside `vip.resets`'."""
_ARRIVAL, _INPUT, _FORWARD = "arrival", "input", "forward"
_BEFORE_TRANSLATION = -300
"""Priority of the hook: NF_IP_PRI_RAW of linux/netfilter_ipv4.h, where tracking begins at -200, DNAT at -100."""
_LOOPBACK = "lo"
_ICMP_TYPES = (0, 3, 8)
"""Echo reply, destination unreachable and echo request: RFC 792."""


class Filter(NamedTuple):
    """What may come in by the mesh."""

    pool: str
    """The mesh's IPv4 network. Its addresses answer on `interface` and loopback only."""
    interface: str
    """Name of the tunnel's device, which need not be there yet."""
    tcp: frozenset[int] = frozenset()
    """Ports at which connections from the mesh may begin."""
    udp: frozenset[int] = frozenset()
    """Ports at which datagrams from the mesh may arrive."""


def made(wanted: Filter) -> Iterable[bytes]:
    """The messages that make sets, chains and rules for `wanted`, the sets empty. ValueError: `pool` is no network."""
    pool = IPv4Network(wanted.pool)
    inside = messages.from_interface(wanted.interface)
    tcp, udp = (messages.protocol(number) for number in (messages.TCP, messages.UDP))
    port = messages.load(messages.REGISTER_1, messages.TRANSPORT_HEADER, messages.DESTINATION_PORT, 2)
    beside = (*messages.not_from_interface(_LOOPBACK), *messages.not_from_interface(wanted.interface))
    yield messages.new_set(_TCP_PORTS, _TCP_NUMBER, messages.PORT_TYPE, 2)
    yield messages.new_set(_UDP_PORTS, _UDP_NUMBER, messages.PORT_TYPE, 2)
    yield messages.new_chain(_ARRIVAL, messages.PREROUTING, _BEFORE_TRANSLATION)
    yield messages.new_rule(_ARRIVAL, *beside, *messages.over_ipv4(), *messages.to_network(pool), messages.drop())
    yield messages.new_chain(_FORWARD, messages.FORWARD)
    yield messages.new_rule(_FORWARD, *inside, *tcp, messages.reset())
    yield messages.new_rule(_FORWARD, *inside, messages.drop())
    yield messages.new_chain(_INPUT, messages.INPUT)
    for rule in (
        (*messages.not_from_interface(wanted.interface), messages.accept()),
        (*messages.not_over_ipv4(), messages.drop()),
        (*messages.over_ipv4(), *messages.not_to_network(pool), messages.drop()),
        *((*_icmp(kind), messages.accept()) for kind in _ICMP_TYPES),
        (*udp, port, messages.lookup(_UDP_PORTS, _UDP_NUMBER), messages.accept()),
        (*tcp, *messages.opens_not(messages.SYN | messages.ACK), messages.accept()),
        (*tcp, port, messages.lookup(_TCP_PORTS, _TCP_NUMBER), messages.accept()),
        (*tcp, messages.reset()),
        (messages.drop(),),
    ):
        yield messages.new_rule(_INPUT, *rule)


def changed(held: Filter, wanted: Filter) -> Iterable[bytes]:
    """The messages that open and close ports, from `held` to `wanted` of the same pool and interface."""
    yield from messages.elements(_TCP_PORTS, map(_port_key, held.tcp), map(_port_key, wanted.tcp))
    yield from messages.elements(_UDP_PORTS, map(_port_key, held.udp), map(_port_key, wanted.udp))


def _icmp(kind: int) -> tuple[bytes, ...]:
    loaded = messages.load(messages.REGISTER_1, messages.TRANSPORT_HEADER, messages.ICMP_TYPE, 1)
    return *messages.protocol(messages.ICMP), loaded, messages.equal(bytes([kind]))


def _port_key(port: int) -> bytes:
    return struct.pack("!H", port)
