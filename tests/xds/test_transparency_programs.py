"""Real programs through a route and without one: curl, Python's HTTP server, aiohttp, gRPC, nc.

Each runs directly and through a route, between two real Envoys, and has to give the same answer. A program that the
machine does not have is skipped, by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from aiohttp import web

from tests.support import eventually, spawn
from tests.xds.mesh import PORT, Pair, pair

BODY = os.urandom(9 << 20)
"""As large as the download that was cut in four of five tries when routes were HTTP/2 streams."""
MESSAGES = 2000
"""Messages each way of a websocket and of a gRPC stream."""
BYE, CODE = b"bye", 4321
"""What makes the server close a websocket, and the code that it gives (4000 to 4999 are for applications, RFC 6455)."""
DOWNLOADS = 8
"""Of which about one would be whole if four of five were cut."""


def program(name: str) -> str:
    """A program of this machine; skips without it."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def places(both: Pair) -> tuple[str, str]:
    """Where a client finds the server: directly, and through the route."""
    return both.backend, both.vip


async def run(*argv: str, data: bytes | None = None, **environment: str) -> tuple[int, bytes]:
    """Exit code and output of a program; errors are part of the output."""
    process = await spawn(
        *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **environment},
    )  # fmt: skip
    async with asyncio.timeout(60):
        out, _ = await process.communicate(data)
    return process.returncode or 0, out


@contextlib.asynccontextmanager
async def http_1_0(folder: Path, address: str) -> AsyncIterator[None]:
    """Python's own server: HTTP/1.0, it closes at the end of each answer."""
    process = await spawn(
        sys.executable, "-m", "http.server", "--bind", address, "--directory", str(folder), str(PORT),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        await listens(address)
        yield
    finally:
        process.kill()
        await process.wait()


async def listens(address: str) -> None:
    """Returns when a server takes connections."""

    def tried() -> bool:
        with socket.socket() as client:
            return client.connect_ex((address, PORT)) == 0

    await eventually(tried, "the server listens")


async def test_curl_downloads_whole_from_a_server_that_closes_at_the_end(tmp_path: Path) -> None:
    """HTTP/1.0: each download is whole, directly and through the route."""
    curl = program("curl")
    (tmp_path / "file").write_bytes(BODY)
    async with pair(behind=lambda address: http_1_0(tmp_path, address)) as both:
        for host in places(both):
            for _ in range(DOWNLOADS):
                assert await run(curl, "-sS", "-0", f"http://{host}:{PORT}/file") == (0, BODY)


@contextlib.asynccontextmanager
async def http_1_1(address: str) -> AsyncIterator[None]:
    """Downloads with and without a length, an upload that is answered by its digest, an echo on a websocket."""

    async def length(_request: web.Request) -> web.Response:
        return web.Response(body=BODY)

    async def chunked(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        answer.enable_chunked_encoding()
        await answer.prepare(request)
        for at in range(0, len(BODY), 100_000):
            await answer.write(BODY[at : at + 100_000])
        return answer

    async def upload(request: web.Request) -> web.Response:
        return web.Response(text=hashlib.sha256(await request.read()).hexdigest())

    async def talk(request: web.Request) -> web.WebSocketResponse:
        socket_ = web.WebSocketResponse()
        await socket_.prepare(request)
        async for message in socket_:
            if message.data == BYE:
                await socket_.close(code=CODE)
            else:
                await socket_.send_bytes(message.data)
        return socket_

    app = web.Application(client_max_size=2 * len(BODY))
    app.add_routes(
        [
            web.get("/length", length),
            web.get("/chunked", chunked),
            web.put("/upload", upload),
            web.get("/talk", talk),
        ]
    )
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, address, PORT).start()
        yield
    finally:
        await runner.cleanup()


async def test_curl_downloads_by_length_and_in_chunks_and_uploads(tmp_path: Path) -> None:
    """HTTP/1.1: the body is whole both ways, also of an upload in chunks that waits for `100 Continue`."""
    curl, file = program("curl"), tmp_path / "file"
    file.write_bytes(BODY)
    digest = hashlib.sha256(BODY).hexdigest().encode()
    async with pair(behind=http_1_1) as both:
        for host in places(both):
            for path in ("length", "chunked"):
                assert await run(curl, "-sS", f"http://{host}:{PORT}/{path}") == (0, BODY)
            upload = (curl, "-sS", f"http://{host}:{PORT}/upload")
            assert await run(*upload, "-T", str(file)) == (0, digest)
            chunked = ("-T", "-", "-H", "Transfer-Encoding: chunked", "-H", "Expect: 100-continue")
            assert await run(*upload, *chunked, data=BODY) == (0, digest)


async def test_a_websocket_carries_messages_both_ways_and_its_close_code() -> None:
    """Messages of each length come back in order, and the server's close is told by its code."""
    async with pair(behind=http_1_1) as both, aiohttp.ClientSession() as session:
        for host in places(both):
            async with session.ws_connect(f"http://{host}:{PORT}/talk") as talk:
                for number in range(MESSAGES):
                    data = BODY[number : 2 * number]
                    await talk.send_bytes(data)
                    assert await talk.receive_bytes() == data
                await talk.send_bytes(BYE)
                assert (await talk.receive()).type == aiohttp.WSMsgType.CLOSE
                assert talk.close_code == CODE


@contextlib.asynccontextmanager
async def grpc_echo(address: str) -> AsyncIterator[None]:
    """A gRPC server with a stream both ways that echoes, and one from the server that breaks off with a status."""

    async def echo(requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    async def breaks(_request: bytes, context: Any) -> AsyncIterator[bytes]:
        for number in range(MESSAGES):
            yield BODY[number : 2 * number]
        await context.abort(grpc.StatusCode.DATA_LOSS, "on purpose")

    server = grpc.aio.server()
    methods = {
        "Echo": grpc.stream_stream_rpc_method_handler(echo),
        "Breaks": grpc.unary_stream_rpc_method_handler(breaks),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", methods),))
    server.add_insecure_port(f"{address}:{PORT}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


async def test_grpc_streams_go_both_ways_and_end_with_their_status() -> None:
    """Messages come back in order on one stream; a server's stream ends with the status that it chose."""
    async with pair(behind=grpc_echo) as both:
        for host in places(both):
            async with grpc.aio.insecure_channel(f"{host}:{PORT}") as channel:

                async def requests() -> AsyncIterator[bytes]:
                    for number in range(MESSAGES):
                        yield BODY[number : 2 * number]

                answers = [answer async for answer in channel.stream_stream("/test.Test/Echo")(requests())]
                assert answers == [BODY[number : 2 * number] for number in range(MESSAGES)]
                call, got = channel.unary_stream("/test.Test/Breaks")(b""), 0
                with contextlib.suppress(grpc.aio.AioRpcError):
                    async for _ in call:
                        got += 1
                assert (got, await call.code()) == (MESSAGES, grpc.StatusCode.DATA_LOSS)


async def test_nc_shuts_down_its_side_and_gets_the_answer() -> None:
    """What `nc -N` reads comes back whole after it has shut down its side."""
    # By the name that Debian gives this one of several programs called nc.
    nc = program("nc.openbsd")
    async with pair() as both:
        for host in places(both):
            assert await run(nc, "-N", host, str(PORT), data=BODY) == (0, BODY)
