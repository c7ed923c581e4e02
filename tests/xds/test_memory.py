"""Envoy's memory is bounded, whatever its callers and its local server do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import psutil
import pytest

from tests.xds.mesh import CALLER, PORT, Node, Pair, closing, echo, loopback, pair
from tests.xds.test_transport import OTHER, held, says
from xds import transport
from xds.spec import Principal

STUCK = 500
"""Connections into a server that does not read. With windows of 4 MiB, as streams had, they took over 600 MiB."""
BLOCK = bytes(1 << 16)


class Wall:
    """A server that echoes where `e` comes first, and else does not read on."""

    def __init__(self) -> None:
        self._held: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self._held.append(writer)
        first = await reader.read(1)
        if first == b"e":
            writer.write(first)
            await echo(reader, writer)
        else:
            writer.transport.pause_reading()  # type: ignore[attr-defined]

    def fall(self) -> None:
        """Ends all connections."""
        for writer in self._held:
            writer.transport.abort()


def resident(node: Node) -> int:
    """MiB that a node's Envoy takes."""
    assert node.process is not None
    return int(psutil.Process(node.process.pid).memory_info().rss) >> 20


@asynccontextmanager
async def stuck(both: Pair, wall: Wall, count: int) -> AsyncIterator[list[socket.socket]]:
    """Connections on which was sent whatever anybody took."""
    loop = asyncio.get_running_loop()
    held: list[socket.socket] = []
    try:
        for _ in range(count):
            client = socket.socket()
            held.append(client)
            client.setblocking(False)
            await loop.sock_connect(client, (both.vip, PORT))
        quiet = 0
        while quiet < 20:
            sent = sum(map(_push, held))
            quiet = 0 if sent else quiet + 1
            await asyncio.sleep(0.01)
        yield held
    finally:
        for client in held:
            client.close()
        wall.fall()


def _push(client: socket.socket) -> int:
    try:
        return client.send(BLOCK)
    except BlockingIOError:
        return 0


async def test_a_server_that_does_not_read_costs_neither_envoy_much() -> None:
    """What Envoy holds of a connection is bounded on both sides, and so is the sum; others are served meanwhile."""
    wall = Wall()
    async with pair(serve=wall.serve) as both:
        before = max(resident(both.caller), resident(both.callee))
        async with stuck(both, wall, STUCK):
            for node in (both.caller, both.callee):
                assert resident(node) - before < STUCK // 2, await node.get("/memory")
            assert await both.caller.stat("listener.*downstream_cx_active") >= STUCK


async def test_at_its_heaps_limit_envoy_accepts_no_more_and_what_is_held_goes_on() -> None:
    """New connections wait until memory is free again; those that are held are not cut, the admin socket answers."""
    stopped = "overload.envoy.overload_actions.stop_accepting_connections.active"
    wall = Wall()
    async with pair(serve=wall.serve, max_heap=48 << 20) as both:
        held = await both.dial()
        held[1].write(b"eping")
        assert await held[0].readexactly(5) == b"eping"
        async with AsyncExitStack() as crowd:
            for _ in range(12):
                await crowd.enter_async_context(stuck(both, wall, STUCK // 2))
                if await both.callee.stat(stopped):
                    break
            await both.callee.counted(stopped)
            held[1].write(b"still")
            assert await held[0].readexactly(5) == b"still"
            assert json.loads(await both.callee.get("/memory"))["allocated"]
        async with asyncio.timeout(20):
            while await both.callee.stat(stopped) or await both.ask(b"eping") != b"eping":
                pass
        held[1].transport.abort()
        wall.fall()


async def test_one_listener_and_one_caller_hold_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs hold so many connections through a VIP, and a caller so many at an ingress, whichever VIPs they came by;
    the next one is closed at once, the other caller is served, and a place that is free again is given away."""
    monkeypatch.setattr(transport, "MAX_HELD", 4)
    async with pair() as both:
        leaf, again, other = both.authority.leaf("other", OTHER.uri), loopback(), loopback()
        routes = (both.route(), both.route(name="again", vip=again), both.route(name="o", vip=other, identity="other"))
        spec = both.egress(*routes)
        await both.callee.apply(both.ingress(Principal(uri=CALLER), OTHER))
        await both.caller.apply(replace(spec, leaves=(*spec.leaves, leaf)))

        async def served(vip: str) -> bool:
            with contextlib.suppress(ConnectionError):
                stream = await asyncio.open_connection(vip, PORT)
                with closing(stream[1]):
                    return await says(stream)
            return False

        for vip in (again, other):
            await becomes(lambda vip=vip: served(vip))  # type: ignore[misc]
        async with held(both, 4) as streams:
            assert not await served(both.vip)
            assert not await served(again)
            assert await served(other)
            streams.pop()[1].transport.abort()
            await becomes(lambda: served(again))


async def becomes(holds: Callable[[], Awaitable[bool]]) -> None:
    """Returns once `holds`: each worker of Envoy hears of a change a moment later."""
    for _ in range(200):
        if await holds():
            return
    pytest.fail("it never holds")
