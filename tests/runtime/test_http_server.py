"""What a server grants its callers: so many connections, so much silence."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from runtime.http_server import Limits, Server
from tests.support import eventually
from tests.xds.pki import Authority

LIMITS = Limits(connections=100, head_seconds=60.0, idle_seconds=60.0, stop_seconds=0.1)


class Served:
    """A server whose `/waits` answers never; requests with the header `Known` count."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.waiting = 0

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def wait(self, _: web.Request) -> web.Response:
        self.waiting += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.waiting -= 1
        raise AssertionError


@contextlib.asynccontextmanager
async def serving(limits: Limits = LIMITS, tls: ssl.SSLContext | None = None) -> AsyncIterator[Served]:
    async def hello(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    made = Served(0)
    app = web.Application()
    app.router.add_get("/", hello)
    app.router.add_get("/waits", made.wait)
    server = Server(app, "127.0.0.1", 0, tls, limits, counts=lambda request: "Known" in request.headers)
    made.port = await server.start()
    try:
        yield made
    finally:
        await server.stop()


async def closed(reader: asyncio.StreamReader) -> bool:
    """Whether the other side ends the connection without a word."""
    with contextlib.suppress(ConnectionResetError):
        return await asyncio.wait_for(reader.read(), 10) == b""
    return True


async def test_a_slow_head_is_given_up() -> None:
    """A connection that sends no whole request head in time is closed; one that asked what does not count, too."""
    async with serving(dataclasses.replace(LIMITS, head_seconds=0.05)) as made:
        reader, writer = await made.open()
        writer.write(b"GET / HTTP/1.1\r\nHost:")
        assert await closed(reader)
        writer.close()
        reader, writer = await made.open()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"hello")).endswith(b"hello")
        assert await closed(reader)
        writer.close()


async def test_connections_are_not_without_end() -> None:
    """One too many is closed; those that are there go on."""
    async with serving(dataclasses.replace(LIMITS, connections=1)) as made, aiohttp.ClientSession() as session:
        for _ in range(2):
            async with session.get(f"http://127.0.0.1:{made.port}/", headers={"Known": "1"}) as response:
                assert response.status == 200
            reader, writer = await made.open()
            assert await closed(reader)
            writer.close()


async def test_who_counts_is_let_in_when_others_have_taken_all_places() -> None:
    """The oldest connection that has brought nothing gives its place up; one that counts never does."""
    limits = dataclasses.replace(LIMITS, connections=3, displaces=True)
    async with serving(limits) as made, aiohttp.ClientSession() as session:
        idle = [await made.open() for _ in range(3)]
        async with session.get(f"http://127.0.0.1:{made.port}/", headers={"Known": "1"}) as response:
            assert response.status == 200
        assert await closed(idle[0][0])
        idle += [await made.open() for _ in range(10)]
        async with session.get(f"http://127.0.0.1:{made.port}/", headers={"Known": "1"}) as response:
            assert response.status == 200
        await close(idle)


async def test_a_crowd_at_once_neither_overshoots_nor_stays() -> None:
    """More connections than the kernel hands over in one turn: most are closed at once, the rest in time, and who
    counts is let in.
    """
    limits = dataclasses.replace(LIMITS, connections=20, head_seconds=2.0, displaces=True)
    async with serving(limits) as made, aiohttp.ClientSession() as session:
        crowd = await asyncio.gather(*(made.open() for _ in range(400)))
        await eventually(lambda: ended(crowd) >= 380, "no more than the limit are open")
        async with session.get(f"http://127.0.0.1:{made.port}/", headers={"Known": "1"}) as response:
            assert response.status == 200
        await eventually(lambda: ended(crowd) == 400, "who brings nothing is closed in time")
        await close(crowd)


async def test_handshakes_that_never_end_are_counted(tmp_path: Path) -> None:
    """They hold no more places than handshakes may, and a client that goes through with its own is served."""
    limits = dataclasses.replace(LIMITS, connections=20, handshakes=5)
    async with serving(limits, tls(tmp_path)) as made:
        silent = [await made.open() for _ in range(40)]
        await eventually(lambda: ended(silent) == 35, "the oldest have ended")
        connector = aiohttp.TCPConnector(ssl=False)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(f"https://127.0.0.1:{made.port}/", headers={"Known": "1"}) as response,
        ):
            assert response.status == 200
        await close(silent)


async def test_a_crowd_of_handshakes_at_once_ends_but_for_the_newest(tmp_path: Path) -> None:
    """Also where all are accepted in one go; and the server goes on with everything else meanwhile."""
    limits = dataclasses.replace(LIMITS, connections=1000, handshakes=5)
    async with serving(limits, tls(tmp_path)) as made:
        crowd = await asyncio.gather(*(made.open() for _ in range(300)))
        await eventually(lambda: ended(crowd) == 295, "all but the newest have ended")
        connector = aiohttp.TCPConnector(ssl=False)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(f"https://127.0.0.1:{made.port}/", headers={"Known": "1"}) as response,
        ):
            assert response.status == 200
        await close(crowd)


async def test_a_handshake_that_fails_is_its_clients(tmp_path: Path) -> None:
    """It costs a place for no longer than it lasts."""
    async with serving(dataclasses.replace(LIMITS, connections=1), tls(tmp_path)) as made:
        for _ in range(10):
            reader, writer = await made.open()
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            await closed(reader)
            writer.close()
        connector = aiohttp.TCPConnector(ssl=False)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(f"https://127.0.0.1:{made.port}/", headers={"Known": "1"}) as response,
        ):
            assert response.status == 200


async def close(connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> None:
    """Closes them on this side."""
    for _, writer in connections:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def ended(connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> int:
    """How many the other side has ended."""
    return sum(reader.at_eof() or reader.exception() is not None for reader, _ in connections)


def tls(folder: Path) -> ssl.SSLContext:
    """A server's, with a certificate that nobody vouches for."""
    leaf = Authority().leaf("server", "spiffe://test/server")
    (folder / "tls.pem").write_text(leaf.key_pem.reveal() + leaf.chain_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.pem")
    return context


async def test_nothing_goes_on_for_a_caller_who_has_gone() -> None:
    """Where the server is told so: a blocking query must not outlive its caller."""
    async with serving(dataclasses.replace(LIMITS, cancels=True)) as made:
        _, writer = await made.open()
        writer.write(b"GET /waits HTTP/1.1\r\nHost: x\r\nKnown: 1\r\n\r\n")
        await eventually(lambda: made.waiting == 1, "the request is worked on")
        writer.close()
        await eventually(lambda: made.waiting == 0, "it is not any more")


@pytest.mark.filterwarnings("error::ResourceWarning")
async def test_a_stop_in_the_middle_of_a_crowd_leaves_no_connection() -> None:
    """Whatever turn of the loop it comes in: each that was accepted is closed, also where no handshake has begun."""
    for turns in range(8):
        clients: list[socket.socket] = []
        try:
            async with serving() as made:
                clients += [socket.create_connection(("127.0.0.1", made.port)) for _ in range(5)]
                for _ in range(turns):
                    await asyncio.sleep(0)
            for client in clients:
                client.settimeout(10)
                with contextlib.suppress(ConnectionResetError):
                    assert await asyncio.to_thread(client.recv, 1) == b""
        finally:
            for client in clients:
                client.close()
        gc.collect()
