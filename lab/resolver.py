"""The internet's DNS in a lab: a fixed table of names on one UDP socket, NXDOMAIN for all else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import cast

import dnslib

_TTL = 30
"""Seconds; the table never changes while a lab runs."""


def answer(query: bytes, lookup: Callable[[str], str | None]) -> bytes | None:
    """The reply to `query`, or None when it is not a DNS query. `lookup` gives a lower-case name's IPv4 address."""
    try:
        record = dnslib.DNSRecord.parse(query)
        question = record.q
    except dnslib.DNSError:
        return None
    reply = record.reply()
    name = str(question.qname).rstrip(".").lower()
    address = lookup(name)
    if address is None:
        reply.header.rcode = dnslib.RCODE.NXDOMAIN
    elif question.qtype in (dnslib.QTYPE.A, dnslib.QTYPE.ANY):
        reply.add_answer(dnslib.RR(question.qname, dnslib.QTYPE.A, rdata=dnslib.A(address), ttl=_TTL))
    return bytes(reply.pack())


class Resolver(asyncio.DatagramProtocol):
    """Serves `answer` on a UDP socket."""

    def __init__(self, lookup: Callable[[str], str | None]) -> None:
        self._lookup = lookup
        self._transport: asyncio.DatagramTransport | None = None

    @classmethod
    async def start(cls, sock: socket.socket, lookup: Callable[[str], str | None]) -> Resolver:
        """Starts on a bound UDP socket."""
        loop = asyncio.get_running_loop()
        _, resolver = await loop.create_datagram_endpoint(lambda: cls(lookup), sock=sock)
        return resolver

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport for the answers."""
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answers one query."""
        reply = answer(data, self._lookup)
        if reply is not None and self._transport is not None:
            self._transport.sendto(reply, addr)

    def stop(self) -> None:
        """Closes the socket."""
        if self._transport is not None:
            self._transport.close()
