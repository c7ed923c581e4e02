"""Upstream DNS servers to forward to, and a client: real sockets on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import cast

from dnslib import QTYPE, RR, TXT, A, DNSRecord

Behaviour = Callable[[DNSRecord, bool], list[DNSRecord]]
"""(query, is TCP) to the replies that are sent; none for a silent server."""


def answer(query: DNSRecord, address: str = "192.0.2.1", rcode: int = 0) -> DNSRecord:
    """A reply with one address, or with a code and none."""
    reply = query.reply(aa=0)
    reply.header.rcode = rcode
    if rcode == 0:
        reply.add_answer(RR(query.q.qname, QTYPE.A, ttl=60, rdata=A(address)))
    return reply


def big(query: DNSRecord, is_tcp: bool) -> list[DNSRecord]:
    """An answer of 3 KiB that UDP cuts."""
    reply = query.reply(aa=0)
    if is_tcp:
        reply.add_answer(*(RR(query.q.qname, QTYPE.TXT, ttl=60, rdata=TXT("x" * 250)) for _ in range(12)))
    else:
        reply.header.tc = 1
    return [reply]


def silent(query: DNSRecord, is_tcp: bool) -> list[DNSRecord]:
    """No answer."""
    return []


class UpstreamServer:
    """One server at one address; `seen` are the queries that came, with True for TCP."""

    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave
        self.seen: list[tuple[DNSRecord, bool]] = []
        self.streams: list[asyncio.Transport] = []

    def replies(self, wire: bytes, is_tcp: bool) -> list[bytes]:
        """What to send back for a query."""
        query = DNSRecord.parse(wire)
        self.seen.append((query, is_tcp))
        return [bytes(reply.pack()) for reply in self.behave(query, is_tcp)]


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: UpstreamServer) -> None:
        self.server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        for reply in self.server.replies(data, is_tcp=False):
            self.transport.sendto(reply, addr)


class _Stream(asyncio.Protocol):
    def __init__(self, server: UpstreamServer) -> None:
        self.server = server
        self.incoming = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.streams.append(transport)

    def data_received(self, data: bytes) -> None:
        self.incoming += data
        size = int.from_bytes(self.incoming[:2], "big")
        if len(self.incoming) >= size + 2:
            for reply in self.server.replies(self.incoming[2 : size + 2], is_tcp=True):
                framed = len(reply).to_bytes(2, "big") + reply
                # In two pieces: a stream has no edges.
                self.transport.write(framed[:1])
                self.transport.write(framed[1:])


def free_port(*addresses: str) -> int:
    """A port that is free for UDP and TCP at all addresses just now."""
    for _ in range(50):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as first:
            first.bind((addresses[0], 0))
            port = int(first.getsockname()[1])
        if all(
            _is_free(address, port, kind) for address in addresses for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)
        ):
            return port
    raise AssertionError("no port is free at all of the addresses")


def _is_free(address: str, port: int, kind: socket.SocketKind) -> bool:
    with socket.socket(socket.AF_INET, kind) as sock:
        try:
            sock.bind((address, port))
        except OSError:
            return False
    return True


@asynccontextmanager
async def upstream(address: str, port: int, behave: Behaviour, *, tcp: bool = True) -> AsyncIterator[UpstreamServer]:
    """Runs a server at `address`; without `tcp` connections are refused."""
    server = UpstreamServer(behave)
    loop = asyncio.get_running_loop()
    datagrams, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(server), local_addr=(address, port))
    stream = await loop.create_server(lambda: _Stream(server), address, port, reuse_address=True) if tcp else None
    try:
        yield server
    finally:
        datagrams.close()
        if stream is not None:
            stream.close()
        for connection in server.streams:
            connection.abort()
        await asyncio.sleep(0)


async def ask_udp(address: tuple[str, int], wire: bytes, seconds: float = 5.0) -> bytes:
    """The reply to `wire`; TimeoutError when none comes."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(address)
        await loop.sock_sendall(sock, wire)
        return await asyncio.wait_for(loop.sock_recv(sock, 65535), seconds)


async def read_tcp(reader: asyncio.StreamReader, seconds: float = 5.0) -> bytes:
    """The next message of a stream."""
    async with asyncio.timeout(seconds):
        size = int.from_bytes(await reader.readexactly(2), "big")
        return await reader.readexactly(size)


@asynccontextmanager
async def connection(address: tuple[str, int]) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client's TCP connection, closed at the end."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def ask_tcp(address: tuple[str, int], *wires: bytes) -> list[bytes]:
    """The replies to all `wires`, sent at once, as they come."""
    async with connection(address) as (reader, writer):
        writer.write(b"".join(len(wire).to_bytes(2, "big") + wire for wire in wires))
        return [await read_tcp(reader) for _ in wires]
