"""A Forwarder by hand: clients' questions, servers' answers, and time."""

from __future__ import annotations

from dnslib import EDNS0, QTYPE, RR, A, DNSRecord

from dns import message
from dns.forward import PATIENCE, Command, Forwarder, Reply, Send
from dns.message import Query, Transport

ONE, TWO, THREE = "10.0.0.1", "10.0.0.2", "10.0.0.3"


class Idents:
    """Query IDs 1000, 1001, … in place of chance."""

    def __init__(self) -> None:
        self.last = 999

    def __call__(self) -> int:
        self.last += 1
        return self.last


def machine(*servers: str, room: int = 8) -> Forwarder:
    """A Forwarder with predictable IDs."""
    return Forwarder(servers, ident=Idents(), room=room)


def question(name: str = "Example.org", payload: int | None = None) -> Query:
    """A client's query with ID 7."""
    record = DNSRecord.question(name)
    record.header.id = 7
    if payload is not None:
        record.add_ar(EDNS0(udp_len=payload))
    query = message.parse(bytes(record.pack()))
    assert isinstance(query, Query)
    return query


def answer(sent: Command, rcode: int = 0, *, cut: bool = False, addresses: int = 1, ttl: int = 60) -> bytes:
    """The server's reply to a Send."""
    assert isinstance(sent, Send)
    reply = DNSRecord.parse(sent.data).reply(aa=0)
    reply.ar.clear()
    reply.header.rcode = rcode
    reply.header.tc = int(cut)
    for index in range(addresses if rcode == 0 else 0):
        reply.add_answer(RR("example.org", QTYPE.A, ttl=ttl, rdata=A(f"192.0.2.{index}")))
    return bytes(reply.pack())


def sends(commands: list[Command]) -> list[tuple[str, Transport]]:
    """Whom the commands ask, and how."""
    return [(command.server, command.transport) for command in commands if isinstance(command, Send)]


def reply_in(commands: list[Command]) -> DNSRecord:
    """The one reply among the commands."""
    [reply] = [command for command in commands if isinstance(command, Reply)]
    return DNSRecord.parse(reply.data)


def live(upstream: Forwarder, until: float = PATIENCE * 3) -> list[tuple[float, Command]]:
    """What it orders by itself, and when."""
    found: list[tuple[float, Command]] = []
    while (wake := upstream.wake_at()) is not None and wake <= until:
        found += [(wake, command) for command in upstream.passed(wake)]
    return found
