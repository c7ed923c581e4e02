"""Streams of several kinds through a route and without one: a server that speaks first, a crowd, urgent data, TLS.

Each test runs directly and through the route, and has to see the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.xds.mesh import PORT, Handler, Pair, closing, echo, pair
from tests.xds.pki import Authority

pytestmark = pytest.mark.asyncio(loop_scope="module")
Place = tuple[str, int]
CROWD = 2000
"""Connections at once."""
DOOR = 100
"""Connections that are opened at once. A route bounds how long opening one may take (`xds.transport.CONNECT_ATTEMPTS`):
on a machine that has no CPU to spare, 2,000 handshakes at once would be a test of the machine."""
BODY = os.urandom(9 << 20)
"""What a server sends before it closes: as large as the download that was cut when routes were HTTP/2 streams."""


class Switch:
    """A backend whose behaviour each test chooses. A connection that another test gave up may come after it has."""

    def __init__(self) -> None:
        self.handler: Handler = echo

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        await self.handler(reader, writer)  # type: ignore[misc]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def switched() -> AsyncIterator[tuple[Switch, Pair]]:
    """A route to a backend that each test chooses."""
    switch = Switch()
    async with pair(serve=switch.serve) as both:
        yield switch, both


@pytest.fixture(params=["directly", "through the route"])
def way(request: pytest.FixtureRequest, switched: tuple[Switch, Pair]) -> tuple[Switch, Place]:
    """The backend, and where to dial it."""
    switch, both = switched
    return switch, (both.backend if request.param == "directly" else both.vip, PORT)


async def test_a_server_that_speaks_first_is_heard(way: tuple[Switch, Place]) -> None:
    """The client need not send a byte before the server's greeting comes."""
    switch, place = way

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(b"220 ready\r\n")
            await echo(reader, writer)

    switch.handler = greet
    reader, writer = await asyncio.open_connection(*place)
    with closing(writer):
        assert await reader.readline() == b"220 ready\r\n"
        writer.write(b"QUIT\r\n")
        assert await reader.readline() == b"QUIT\r\n"


async def test_a_client_that_says_nothing_and_closes_is_an_end_at_the_server(way: tuple[Switch, Place]) -> None:
    """A connection without a byte is one at the server too, and ends there as it ended here."""
    switch, place = way
    seen: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read())
        writer.close()

    switch.handler = note
    reader, writer = await asyncio.open_connection(*place)
    writer.write_eof()
    with closing(writer):
        assert await reader.read() == b""
    assert b"" in seen


async def test_an_urgent_byte_does_not_break_the_stream(way: tuple[Switch, Place]) -> None:
    """What comes before and after out-of-band data arrives. The urgent byte itself does not pass a route."""
    switch, place = way
    seen: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            seen.append(await reader.read())
            writer.write(b"done")
            writer.close()

    switch.handler = note

    def talk() -> bytes:
        with socket.create_connection(place, timeout=60) as client:
            client.sendall(b"before ")
            client.send(b"!", socket.MSG_OOB)
            client.sendall(b"after")
            client.shutdown(socket.SHUT_WR)
            return client.recv(100)

    assert await asyncio.to_thread(talk) == b"done"
    assert b"before after" in seen


async def test_many_connections_at_once_are_whole(way: tuple[Switch, Place]) -> None:
    """2,000 connections at the same time, each with an echo of its own bytes and an end."""
    switch, place = way
    switch.handler = echo
    arrived: list[int] = []
    everybody, door = asyncio.Event(), asyncio.Semaphore(DOOR)

    async def one(number: int) -> bool:
        data = hashlib.sha256(str(number).encode()).digest() * 64
        async with door:
            reader, writer = await asyncio.open_connection(*place)
            writer.write(data)
            first = await reader.readexactly(1)
        with closing(writer):
            # Nobody goes before everybody is there.
            arrived.append(number)
            if len(arrived) == CROWD:
                everybody.set()
            await everybody.wait()
            writer.write_eof()
            return first + await reader.read() == data

    assert sum(await asyncio.gather(*map(one, range(CROWD)))) == CROWD


async def test_tls_inside_a_route_is_the_applications_own(way: tuple[Switch, Place], tmp_path: Path) -> None:
    """An application's TLS goes end to end: the server's own certificate is seen, and its end too."""
    switch, place = way
    authority = Authority()
    leaf = authority.leaf("inner", "spiffe://inner/server")
    (tmp_path / "chain.pem").write_text(leaf.chain_pem)
    key = tmp_path / "key.pem"
    key.write_text(leaf.key_pem.reveal())
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(tmp_path / "chain.pem", key)
    ours = ssl.create_default_context(cadata=authority.pem)
    ours.check_hostname = False

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await writer.start_tls(theirs)
            writer.write(await reader.readexactly(4))
            writer.write(BODY)
            await writer.drain()
            writer.close()

    switch.handler = serve
    reader, writer = await asyncio.open_connection(*place, ssl=ours)
    with closing(writer):
        writer.write(b"ping")
        assert await reader.read() == b"ping" + BODY
        names = writer.get_extra_info("peercert")["subjectAltName"]
        assert ("URI", "spiffe://inner/server") in names
