"""The DNS of the lab's internet."""

from __future__ import annotations

import asyncio
import socket

import dnslib

from lab.resolver import Resolver, answer

TABLE = {"pccs.lab.test": "198.18.0.2"}


def ask(name: str, kind: str = "A") -> dnslib.DNSRecord:
    """The parsed reply to one question."""
    reply = answer(dnslib.DNSRecord.question(name, kind).pack(), TABLE.get)
    assert reply is not None
    return dnslib.DNSRecord.parse(reply)


def test_known_name_has_an_address_in_any_case() -> None:
    """A known name gets its address however it is spelled."""
    assert [str(rr.rdata) for rr in ask("PCCS.lab.TEST").rr] == ["198.18.0.2"]


def test_other_types_of_a_known_name_are_empty_and_unknown_names_do_not_exist() -> None:
    """AAAA of a known name is an empty answer, an unknown name is NXDOMAIN."""
    assert (ask("pccs.lab.test", "AAAA").header.rcode, ask("pccs.lab.test", "AAAA").rr) == (0, [])
    assert ask("nobody.test").header.rcode == dnslib.RCODE.NXDOMAIN


def test_garbage_gets_no_answer() -> None:
    """Bytes that are not DNS are dropped."""
    assert answer(b"\x00\x01garbage", TABLE.get) is None


async def test_a_client_is_answered_over_udp() -> None:
    """A query sent to the resolver's socket comes back answered."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    resolver = await Resolver.start(sock, TABLE.get)
    try:
        reply = await asyncio.to_thread(dnslib.DNSRecord.question("pccs.lab.test").send, *sock.getsockname(), timeout=5)
        assert str(dnslib.DNSRecord.parse(reply).rr[0].rdata) == "198.18.0.2"
    finally:
        resolver.stop()
