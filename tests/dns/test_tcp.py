"""TCP connections: pipelining, bounds, and clients that behave badly."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from dnslib import DNSRecord

from dns import tcp, zone
from dns.message import Transport
from dns.server import DnsServer
from tests.dns.servers import answer, ask_tcp, connection, free_port, read_tcp, silent, upstream
from tests.support import eventually

ONE, OURS = "127.11.9.1", "127.11.9.53"
ZONE = zone.build({f"r{index}": f"127.10.1.{index}" for index in range(1, 200)}, {}, {}, serial=1)


def query(name: str) -> bytes:
    """A framed query."""
    wire = bytes(DNSRecord.question(name).pack())
    return struct.pack("!H", len(wire)) + wire


@asynccontextmanager
async def running(tmp_path: Path, *servers: str, port: int = 53) -> AsyncIterator[tuple[DnsServer, tuple[str, int]]]:
    """A started server with ZONE, and where it listens."""
    conf = tmp_path / "resolv.conf"
    conf.write_text("".join(f"nameserver {name}\n" for name in servers) + "options timeout:1 attempts:1\n")
    dns = DnsServer(OURS, 0, resolv_conf=conf, upstream_port=port)
    await dns.start()
    dns.set_zone(ZONE)
    try:
        yield dns, dns.addresses[0]
    finally:
        await dns.stop()


async def test_many_queries_on_one_connection(tmp_path: Path) -> None:
    """Sent at once, answered in order where nothing has to be forwarded."""
    async with running(tmp_path) as (_, where):
        replies = await ask_tcp(where, *(query(f"r{index}")[2:] for index in range(1, 200)))
    assert [str(DNSRecord.parse(reply).a.rdata) for reply in replies] == [
        f"127.10.1.{index}" for index in range(1, 200)
    ]


async def test_a_query_may_come_octet_by_octet(tmp_path: Path) -> None:
    """A stream has no edges."""
    async with running(tmp_path) as (_, where), connection(where) as (reader, writer):
        for octet in query("r1") + query("r2"):
            writer.write(bytes([octet]))
            await writer.drain()
        names = [str(DNSRecord.parse(await read_tcp(reader)).q.qname) for _ in range(2)]
    assert names == ["r1.", "r2."]


async def test_our_answers_do_not_wait_for_forwarded_ones(tmp_path: Path) -> None:
    """RFC 7766 7: answers may overtake each other; a forwarded query does not hold up the next."""
    port = free_port(ONE)
    async with (
        upstream(ONE, port, silent),
        running(tmp_path, ONE, port=port) as (_, where),
        connection(where) as (reader, writer),
    ):
        writer.write(query("slow.example") + query("r1"))
        names = [str(DNSRecord.parse(await read_tcp(reader)).q.qname) for _ in range(2)]
    assert names == ["r1.", "slow.example."]


async def test_what_was_asked_before_the_end_is_answered(tmp_path: Path) -> None:
    """A client that shuts down its side gets its answers, forwarded ones too, and then the end."""
    port = free_port(ONE)
    async with (
        upstream(ONE, port, lambda q, _: [answer(q)]),
        running(tmp_path, ONE, port=port) as (_, where),
        connection(where) as (reader, writer),
    ):
        writer.write(b"".join(query(f"n{index}.example") for index in range(50)) + query("r1"))
        writer.write_eof()
        names = [str(DNSRecord.parse(await read_tcp(reader)).q.qname) for _ in range(51)]
        assert await asyncio.wait_for(reader.read(), 5) == b""
    assert set(names) == {f"n{index}.example." for index in range(50)} | {"r1."}


async def test_an_idle_connection_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that trickles octets without ever finishing a query: only a whole query counts as life."""
    monkeypatch.setattr(tcp, "IDLE", 0.2)
    async with running(tmp_path) as (dns, where), connection(where), connection(where) as (_, writer):
        await eventually(lambda: len(dns._connections) == 2, "both connections open")
        end = asyncio.get_running_loop().time() + 5
        while dns._connections and asyncio.get_running_loop().time() < end:
            writer.write(b"\xff")
            await asyncio.sleep(0.02)
        assert not dns._connections


async def test_connections_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection idle longest gives way; the others and the new one work."""
    monkeypatch.setattr(tcp, "MAX_CONNECTIONS", 3)
    async with running(tmp_path) as (dns, where), AsyncExitStack() as stack:
        pairs = []
        for index in range(3):
            pairs.append(await stack.enter_async_context(connection(where)))
            pairs[-1][1].write(query(f"r{index + 1}"))
            await read_tcp(pairs[-1][0])
        pairs[0][1].write(query("r9"))
        await read_tcp(pairs[0][0])
        pairs.append(await stack.enter_async_context(connection(where)))
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(pairs[1][0].readexactly(1), 5)
        for index in (0, 2, 3):
            pairs[index][1].write(query("r1"))
            assert DNSRecord.parse(await read_tcp(pairs[index][0])).rr
        assert len(dns._connections) == 3


async def test_forwarded_queries_of_one_connection_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than MAX_PIPELINED of one client are under way; the rest waits its turn and is answered."""
    monkeypatch.setattr(tcp, "MAX_PIPELINED", 4)
    port = free_port(ONE)
    most = 0
    async with upstream(ONE, port, lambda q, _: [answer(q)]) as one, running(tmp_path, ONE, port=port) as (dns, where):

        def behave(message: DNSRecord, is_tcp: bool) -> list[DNSRecord]:
            nonlocal most
            assert dns._upstream is not None
            most = max(most, len(dns._upstream))
            return [answer(message)]

        one.behave = behave
        replies = await ask_tcp(where, *(query(f"n{index}.example")[2:] for index in range(40)))
    assert {str(DNSRecord.parse(reply).q.qname) for reply in replies} == {f"n{index}.example." for index in range(40)}
    assert 1 <= most <= 4


async def test_a_client_that_goes_away_takes_its_queries_along(tmp_path: Path) -> None:
    """A reset connection leaves nothing under way."""
    port = free_port(ONE)
    async with (
        upstream(ONE, port, silent) as one,
        running(tmp_path, ONE, port=port) as (dns, where),
        connection(where) as (_, writer),
    ):
        writer.write(query("a.example") + query("b.example"))
        await eventually(lambda: len(one.seen) >= 2, "both queries upstream")
        sock = writer.get_extra_info("socket")
        # Closing with a linger time of zero resets the connection.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()
        await eventually(lambda: not dns._connections, "the connection gone")
        assert dns._upstream is not None
        assert len(dns._upstream) == 0


class FakeTransport(asyncio.Transport):
    """Takes everything and remembers whether it may be read from."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_reading = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def is_closing(self) -> bool:
        return False


async def test_a_client_that_does_not_read_is_not_read_from() -> None:
    """While its answers pile up nothing more is read or answered; when it reads again, what it asked is answered."""

    def echo(wire: bytes, transport: Transport, send: Callable[[bytes], None]) -> None:
        send(wire)

    one, two = query("r1"), query("r2")
    wire = FakeTransport()
    client = tcp.Connection(echo, print, {})
    client.connection_made(wire)
    client.data_received(one)
    assert (wire.written, wire.is_reading) == (one, True)
    client.pause_writing()
    client.data_received(two)
    assert (wire.written, wire.is_reading) == (one, False)
    client.resume_writing()
    assert (wire.written, wire.is_reading) == (one + two, True)
    client.connection_lost(None)
