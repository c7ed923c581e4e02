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
        self.ports: list[int] = []
        """From which ports datagrams came."""

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
        self.server.ports.append(addr[1])
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


@asynccontextmanager
async def fast_upstream(address: str, port: int) -> AsyncIterator[None]:
    """A server that answers every query without EDNS alike, costs little, and reads all that has come at once."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.bind((address, port))

    def readable() -> None:
        with suppress(BlockingIOError):
            while True:
                data, client = sock.recvfrom(512)
                # One A record of the question's name, for 60 s; the query has no records beside its question.
                head = data[:2] + b"\x81\x80\0\1\0\1\0\0\0\0"
                sock.sendto(head + data[12:] + b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xc0\0\2\1", client)

    loop = asyncio.get_running_loop()
    loop.add_reader(sock, readable)
    try:
        yield
    finally:
        loop.remove_reader(sock)
        sock.close()


class _Forwarder(asyncio.DatagramProtocol):
    """Asks `target` whatever it is asked, as it stands, and hands the answer back."""

    def __init__(self) -> None:
        self.target = ("", 0)
        self.asked = 0
        self.tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.asked += 1
        task = asyncio.get_running_loop().create_task(self._ask(data, addr))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _ask(self, data: bytes, addr: tuple[str, int]) -> None:
        with suppress(TimeoutError, OSError):
            self.transport.sendto(await ask_udp(self.target, data), addr)


@asynccontextmanager
async def forwarder(address: str, port: int) -> AsyncIterator[_Forwarder]:
    """A server that forwards to wherever its `target` is set."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(_Forwarder, local_addr=(address, port))
    try:
        yield protocol
    finally:
        for task in protocol.tasks:
            task.cancel()
        transport.close()


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
