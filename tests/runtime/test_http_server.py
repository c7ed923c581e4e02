"""What a server grants its callers: so many connections, so much silence.

Long because it is a list: each way to take places or to keep them is a case of its own, against one server.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import socket
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from runtime.http_server import Limits, Server, keep, source_of
from tests.support import eventually
from tests.xds.pki import Authority

LIMITS = Limits(
    connections=100, head_seconds=60.0, idle_seconds=60.0, stop_seconds=0.1, answer_seconds=60.0, kept_each=5, kept=100
)
LONG = 32 << 20
"""Bytes of an answer that no socket takes at once."""
HELLO = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Served:
    """A server whose `/waits` answers never; who sends the header `Known` is known by it, until its text is `gone`."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.waiting = 0
        self.gone: set[str] = set()
        self.connections: Callable[[], int] = int

    async def open(self, source: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, local_addr=(source, 0))

    async def wait(self, _: web.Request) -> web.Response:
        self.waiting += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.waiting -= 1
        raise AssertionError


@contextlib.asynccontextmanager
async def serving(limits: Limits = LIMITS, tls: ssl.SSLContext | None = None) -> AsyncIterator[Served]:
    async def hello(request: web.Request) -> web.Response:
        if "Known" in request.headers:
            text = request.headers["Known"]
            keep(request, text.partition(" ")[0], lambda: text not in made.gone)
        return web.Response(text="hello")

    async def long(_: web.Request) -> web.Response:
        return web.Response(body=b"x" * LONG)

    made = Served(0)
    app = web.Application()
    app.router.add_get("/", hello)
    app.router.add_get("/long", long)
    app.router.add_get("/waits", made.wait)
    server = Server(app, "127.0.0.1", 0, tls, limits)
    made.port = await server.start()
    made.connections = server.connections
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
    """A connection that sends no whole request head in time is closed; one that has asked something stays."""
    async with serving(dataclasses.replace(LIMITS, head_seconds=0.05)) as made:
        asked, known = await made.open()
        known.write(HELLO)
        await asked.readuntil(b"hello")
        reader, writer = await made.open()
        writer.write(b"GET / HTTP/1.1\r\nHost:")
        assert await closed(reader)
        known.write(HELLO)
        await asked.readuntil(b"hello")
        await close([(reader, writer), (asked, known)])


async def test_connections_are_not_without_end() -> None:
    """One too many is closed where all places are those of known callers; these go on."""
    async with serving(dataclasses.replace(LIMITS, connections=1)) as made, aiohttp.ClientSession() as session:
        for _ in range(2):
            async with session.get(f"http://127.0.0.1:{made.port}/", headers={"Known": "1"}) as response:
                assert response.status == 200
            reader, writer = await made.open()
            assert await closed(reader)
            writer.close()


async def test_who_is_known_is_let_in_when_others_have_taken_all_places() -> None:
    """The oldest of who has asked nothing gives its place up, then the oldest of all strangers; who is known never."""
    async with serving(dataclasses.replace(LIMITS, connections=4)) as made, aiohttp.ClientSession() as session:
        asked = [await made.open() for _ in range(2)]
        for reader, writer in asked:
            writer.write(HELLO)
            await reader.readuntil(b"hello")
        idle = [await made.open() for _ in range(2)]
        async with session.get(f"http://127.0.0.1:{made.port}/", headers={"Known": "1"}) as response:
            assert response.status == 200
        assert await closed(idle[0][0])
        crowd = [await made.open() for _ in range(10)]
        async with session.get(f"http://127.0.0.1:{made.port}/", headers={"Known": "1"}) as response:
            assert response.status == 200
        assert await closed(idle[1][0])
        for _ in range(4):
            crowd.append(await made.open())
            crowd[-1][1].write(HELLO)
            await crowd[-1][0].readuntil(b"hello")
        assert await closed(asked[0][0])
        assert await closed(asked[1][0])
        await close([*asked, *idle, *crowd])


async def test_a_known_caller_keeps_some_places_and_not_all() -> None:
    """Its further connections are like anybody's."""
    async with serving(dataclasses.replace(LIMITS, connections=6, kept_each=2)) as made:
        greedy = [await made.open() for _ in range(6)]
        for reader, writer in greedy:
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nKnown: 1\r\n\r\n")
            await reader.readuntil(b"hello")
        others = []
        for _ in range(4):
            reader, writer = await made.open()
            others.append((reader, writer))
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nKnown: 2\r\n\r\n")
            await reader.readuntil(b"hello")
        assert [await closed(reader) for reader, _ in greedy[2:]] == [True] * 4
        for reader, writer in (*greedy[:2], *others[:2]):
            writer.write(HELLO)
            await reader.readuntil(b"hello")
        await close([*greedy, *others])


async def test_places_for_who_comes_new_are_never_kept() -> None:
    """However many are known, each in its own right."""
    async with serving(dataclasses.replace(LIMITS, connections=6, kept=4)) as made:
        held = [await known_as(made, str(n)) for n in range(6)]
        for _ in range(10):
            reader, writer = await made.open()
            writer.write(HELLO)
            await reader.readuntil(b"hello")
            held.append((reader, writer))
        for reader, writer in held[:4]:
            writer.write(HELLO)
            await reader.readuntil(b"hello")
        assert [await closed(reader) for reader, _ in held[4:6]] == [True] * 2
        await close(held)


async def test_who_is_known_no_more_keeps_nothing() -> None:
    """Its connections are strangers' as soon as they are needed, or ask again; and a caller that is another than before
    has as many as anybody.
    """
    async with serving(dataclasses.replace(LIMITS, connections=4, kept_each=2, kept=3)) as made:
        before = [await known_as(made, "a old") for _ in range(2)]
        other = await known_as(made, "b")
        made.gone.add("a old")
        after = await known_as(made, "a new")
        crowd = []
        for _ in range(4):
            crowd.append(await made.open())
            crowd[-1][1].write(HELLO)
            await crowd[-1][0].readuntil(b"hello")
        assert [await closed(reader) for reader, _ in before] == [True] * 2
        made.gone |= {"b"}
        other[1].write(HELLO)
        await other[0].readuntil(b"hello")
        third = await known_as(made, "c")
        fourth = await known_as(made, "a new")
        for reader, writer in (after, third, fourth):
            writer.write(HELLO)
            await reader.readuntil(b"hello")
        await close([*before, other, after, *crowd, third, fourth])


async def test_all_places_of_who_is_known_no_more_go_to_who_comes() -> None:
    """Where every place may be kept, too."""
    async with serving(dataclasses.replace(LIMITS, connections=2, kept_each=2, kept=2)) as made:
        before = [await known_as(made, "a") for _ in range(2)]
        reader, writer = await made.open()
        assert await closed(reader)
        made.gone.add("a")
        new = await known_as(made, "b")
        assert await closed(before[0][0])
        await close([*before, (reader, writer), new])


async def known_as(made: Served, text: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that has asked as that one."""
    reader, writer = await made.open()
    writer.write(f"GET / HTTP/1.1\r\nHost: x\r\nKnown: {text}\r\n\r\n".encode())
    await reader.readuntil(b"hello")
    return reader, writer


async def test_connections_that_ended_hold_no_place() -> None:
    """However many there were, known ones and others."""
    async with serving(dataclasses.replace(LIMITS, connections=3, kept_each=1)) as made:
        for known in (b"", b"Known: 1\r\n") * 100:
            reader, writer = await made.open()
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n" + known + b"\r\n")
            await reader.readuntil(b"hello")
            await close([(reader, writer)])


async def test_who_does_not_read_an_answer_is_cut_off() -> None:
    """And not held open for as long as it likes."""
    async with serving(dataclasses.replace(LIMITS, answer_seconds=0.5)) as made:
        reader, writer = await made.open()
        writer.write(b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readexactly(12)
        received = 0
        await eventually(lambda: writer.transport.is_closing() or made.connections() == 0, "it is cut off")
        with contextlib.suppress(ConnectionError):
            while part := await reader.read(1 << 20):
                received += len(part)
        assert received < LONG
        await close([(reader, writer)])


async def test_a_crowd_at_once_neither_overshoots_nor_stays() -> None:
    """More connections than the kernel hands over in one turn: most are closed at once, the rest in time, and who
    counts is let in.
    """
    limits = dataclasses.replace(LIMITS, connections=20, head_seconds=2.0)
    async with serving(limits) as made, aiohttp.ClientSession() as session:
        crowd = await asyncio.gather(*(made.open() for _ in range(400)))
        await eventually(lambda: ended(crowd) >= 380, "no more than the limit are open")
        async with session.get(f"http://127.0.0.1:{made.port}/", headers={"Known": "1"}) as response:
            assert response.status == 200
        await eventually(lambda: ended(crowd) == 400, "who brings nothing is closed in time")
        await close(crowd)


async def test_strangers_have_no_more_places_than_they_may() -> None:
    """However many there are beside; who is known is not counted among them."""
    async with serving(dataclasses.replace(LIMITS, strangers=3)) as made:
        known = [await known_as(made, str(n)) for n in range(4)]
        crowd = [await made.open() for _ in range(10)]
        await eventually(lambda: ended(crowd) == 7, "all but the newest have ended")
        assert made.connections() == 7
        for reader, writer in known:
            writer.write(HELLO)
            await reader.readuntil(b"hello")
        await close([*known, *crowd])


async def test_one_address_does_not_take_what_another_one_has() -> None:
    """Whoever has the most gives up his own; be it silent or asking all the time."""
    async with serving(dataclasses.replace(LIMITS, strangers=6)) as made:
        silent, asking = await made.open("127.0.0.2"), await made.open("127.0.0.2")
        asking[1].write(HELLO)
        await asking[0].readuntil(b"hello")
        crowd = [await made.open() for _ in range(20)]
        for _ in range(10):
            crowd.append(await made.open())
            crowd[-1][1].write(HELLO)
            await crowd[-1][0].readuntil(b"hello")
        for reader, writer in (silent, asking):
            writer.write(HELLO)
            await reader.readuntil(b"hello")
        await close([silent, asking, *crowd])


async def test_one_address_does_not_take_the_handshakes_of_another_one(tmp_path: Path) -> None:
    """A slow one goes through while another address begins one after the other."""
    limits = dataclasses.replace(LIMITS, handshakes=5)
    async with serving(limits, tls(tmp_path)) as made:
        slow = await made.open("127.0.0.2")
        crowd = [await made.open() for _ in range(40)]
        await eventually(lambda: ended(crowd) == 36, "the crowd's own have ended")
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        await slow[1].start_tls(client)
        slow[1].write(HELLO)
        await slow[0].readuntil(b"hello")
        await close([slow, *crowd])


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("", ""),
    ],
)
def test_a_source_is_an_address_or_a_network_of_one_host(address: str, source: str) -> None:
    """A host with IPv6 has as many addresses as it likes."""
    assert source_of(address) == source


def _new_handshakes(before: list[SSLProtocol]) -> list[SSLProtocol]:
    """Those that live, and are not what an earlier test of this process has left."""
    known = {id(it) for it in before}
    return [it for it in gc.get_objects() if type(it) is SSLProtocol and id(it) not in known]


async def test_handshakes_leave_nothing_to_the_collector(tmp_path: Path) -> None:
    """Those that are displaced, that their client gives up, and that last too long: the collector may take its time
    while a crowd goes on.
    """
    limits = dataclasses.replace(LIMITS, handshakes=5, head_seconds=2.0)
    async with serving(limits, tls(tmp_path)) as made:
        gc.collect()
        before = [it for it in gc.get_objects() if type(it) is SSLProtocol]
        gc.disable()
        try:
            crowd = [await made.open() for _ in range(40)]
            await eventually(lambda: ended(crowd) == 35, "the oldest have ended")
            await close(crowd[35:37])
            await eventually(lambda: made.connections() == 0, "the rest has lasted too long")
            await close(crowd)
            await eventually(lambda: not _new_handshakes(before), "nothing is left")
        finally:
            gc.enable()


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


@pytest.mark.parametrize("turns", range(8))
async def test_a_stop_closes_what_was_just_accepted(turns: int) -> None:
    """Whatever the loop had come to: accepted, waiting for its turn, or with a handshake that has not begun."""
    async with contextlib.AsyncExitStack() as stack:
        stopping = await stack.enter_async_context(contextlib.AsyncExitStack())
        made = await stopping.enter_async_context(serving())
        # Without a turn of the loop: the kernel connects them, and the server has accepted none yet.
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", made.port))) for _ in range(5)]
        for _ in range(turns):
            await asyncio.sleep(0)
        await stopping.aclose()
        assert clients
    # What was left open would be told of here, which ends the run.
    gc.collect()
