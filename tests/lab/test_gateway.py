"""The lab's gateway, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator

from lab.gateway import Gateway, ServerName
from runtime.tasks import TaskScope

APP = "ab" * 20


def client_hello(name: str | None) -> bytes:
    """The first flight of a TLS client that asks for `name`."""
    context = ssl.create_default_context()
    context.check_hostname = False
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def test_server_name_is_found_however_the_hello_is_cut() -> None:
    """The name is read from a ClientHello that arrives one byte at a time."""
    seen = ServerName()
    hello = client_hello("x.example")
    done = [seen.feed(hello[i : i + 1]) for i in range(len(hello))]
    assert done.index(True) == len(hello) - 1
    assert seen.name == "x.example"


def test_no_name_and_no_tls_are_known_as_such() -> None:
    """A hello without a name, and bytes that are not TLS, end the search without one."""
    for data in (client_hello(None), b"GET / HTTP/1.1\r\n\r\n"):
        seen = ServerName()
        assert seen.feed(data)
        assert seen.name is None


@contextlib.asynccontextmanager
async def gateway(addresses: list[str]) -> AsyncIterator[int]:
    """A gateway on loopback in front of `addresses`; yields its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    own = Gateway(
        base="gw.test",
        resolve=lambda _id: addresses,
        make_socket=lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    )
    async with TaskScope() as scope:
        task = scope.start("gateway", own.serve(scope, listener))
        yield port
        task.cancel()
    listener.close()


async def test_bytes_pass_untouched_to_the_named_port() -> None:
    """Everything from the ClientHello on reaches the backend's port, and its answer comes back."""
    got: list[bytes] = []

    async def backend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await reader.read(65536))
        writer.write(b"answer")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(backend, "127.0.0.1", 0)
    backend_port = server.sockets[0].getsockname()[1]
    hello = client_hello(f"{APP}-{backend_port}s.gw.test")
    async with gateway(["127.0.0.1"]) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(hello)
        assert await asyncio.wait_for(reader.read(), 10) == b"answer"
        writer.close()
    server.close()
    await server.wait_closed()
    assert got == [hello]


async def test_unknown_names_are_closed_without_a_word() -> None:
    """A name outside the base, and one without the passthrough mark, get nothing."""
    async with gateway(["127.0.0.1"]) as port:
        for name in (f"{APP}-80s.other.test", f"{APP}-80.gw.test", "nonsense"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(client_hello(name))
            assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()
