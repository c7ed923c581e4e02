from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from coordinator.bodies import Bodies
from coordinator.refusal import RefusalError
from tests.runtime.test_http_server import close
from tests.support import eventually

TEN = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def serving(bodies: Bodies) -> AsyncIterator[int]:
    """A server that says what it has read, or why it has not; its port."""

    async def answer(request: web.Request) -> web.Response:
        try:
            return web.Response(body=b"read " + await bodies.read(request, 60.0))
        except RefusalError as error:
            return web.Response(text=error.reason)

    app = web.Application()
    app.router.add_post("/", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def test_the_first_gives_way_when_all_are_too_much() -> None:
    """However slow it is; the others are read whole, and what was counted is given back."""
    bodies = Bodies(most=25)
    async with serving(bodies) as port:
        begun: list[Streams] = []
        for count in range(1, 4):
            begun.append(await asyncio.open_connection("127.0.0.1", port))
            begun[-1][1].write(TEN + b"x" * 9)
            await eventually(lambda count=count: bodies.size == min(9 * count, 18), "it is counted")  # type: ignore[misc]
        assert await begun[0][0].read() == b""
        for reader, writer in begun[1:]:
            writer.write(b"y")
            assert await reader.readuntil(b"y") != b""
        assert bodies.size == 0
        await close(begun)


async def test_a_caller_who_goes_in_the_middle_leaves_nothing() -> None:
    """What it had sent is counted no more."""
    bodies = Bodies()
    async with serving(bodies) as port:
        gone = await asyncio.open_connection("127.0.0.1", port)
        gone[1].write(TEN + b"x" * 9)
        await eventually(lambda: bodies.size == 9, "it is counted")
        await close([gone])
        await eventually(lambda: bodies.size == 0, "it is not any more")
