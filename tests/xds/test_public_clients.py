"""Public listeners and clients that other proxies were reported to fail with, in a real Envoy."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator

import pytest

from tests.xds.mesh import PUBLIC_PORT, closing
from tests.xds.test_public import NAME, Site, site
from tests.xds.test_transparency_programs import program, run

SECONDS = 30.0
"""For one answer."""


class Client:
    """TLS over a socket, record by record: what it sends is as a test wants it, and so is how it ends."""

    def __init__(self, sock: socket.socket, tls: ssl.SSLContext, name: str | None = NAME) -> None:
        self._sock = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = tls.wrap_bio(self._in, self._out, server_hostname=name)

    async def send(self, piece: int = 1 << 16) -> None:
        """What TLS has to say, in segments of `piece` bytes."""
        data, loop = self._out.read(), asyncio.get_running_loop()
        for at in range(0, len(data), piece):
            await loop.sock_sendall(self._sock, data[at : at + piece])
            if piece < len(data):
                # Each segment is one of its own when Envoy looks, as on a path that cuts it.
                await asyncio.sleep(0.01)

    async def until(self, step: object) -> object:
        """The result of `step`, while the server's answers arrive; None once it has ended."""
        while True:
            try:
                return step()  # type: ignore[operator]
            except ssl.SSLWantReadError:
                await self.send()
            async with asyncio.timeout(SECONDS):
                data = await asyncio.get_running_loop().sock_recv(self._sock, 1 << 16)
            if not data:
                return None
            self._in.write(data)

    async def handshake(self, piece: int = 1 << 16) -> None:
        """Ends with the handshake; the ClientHello goes out in segments of `piece` bytes."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        await self.send(piece)
        await self.until(self.tls.do_handshake)
        await self.send()


@contextlib.asynccontextmanager
async def client(
    here: Site, tls: ssl.SSLContext, name: str | None = NAME
) -> AsyncIterator[tuple[Client, socket.socket]]:
    """Connected to the listener of `here`, before its handshake."""
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, (here.address, PUBLIC_PORT))
        yield Client(sock, tls, name), sock


@pytest.mark.parametrize("size", [1800, 9000, 15000])
async def test_a_long_hello_in_pieces_is_read(size: int) -> None:
    """Those of post-quantum key shares come in two segments, and longer ones in more: a reader with a small buffer
    takes them for no TLS, or waits for ever (envoyproxy/envoy 33850, 40725).
    """
    async with site() as here:
        tls = here.tls()
        # Names that nobody speaks make it as long as is wanted; there are at most 64 KiB of them.
        tls.set_alpn_protocols(["http/1.1", *(f"{n:0>200}" for n in range(size // 201))])
        async with client(here, tls) as (each, _):
            await each.handshake(piece=700)
            assert each.tls.selected_alpn_protocol() == "http/1.1"
            each.tls.write(b"hello")
            await each.send()
            assert await each.until(lambda: each.tls.read(5)) == b"hello"


@pytest.mark.parametrize(
    ("offered", "chosen"), [(["h2"], None), (["h2", "http/1.1"], "http/1.1"), (["http/1.0"], None), ([], None)]
)
async def test_nothing_is_agreed_on_that_the_application_does_not_speak(offered: list[str], chosen: str | None) -> None:
    """A client that offers something else is served without an agreement: an `h2` that the server does not speak would
    break it (envoyproxy/gateway 4456).
    """
    async with site() as here:
        tls = here.tls()
        if offered:
            tls.set_alpn_protocols(offered)
        async with client(here, tls) as (each, _):
            await each.handshake()
            assert each.tls.selected_alpn_protocol() == chosen
            each.tls.write(b"hello")
            await each.send()
            assert await each.until(lambda: each.tls.read(5)) == b"hello"


@pytest.mark.parametrize("named", ["127.0.0.1", "2001:db8::1", "other.example.com", None])
async def test_any_server_name_is_served(named: str | None) -> None:
    """None, one that the certificate does not have, and an address, which RFC 6066 forbids and some clients send
    (fluent/fluent-bit 11815): it is the client that judges the certificate.
    """
    async with site() as here:
        asked = ("-noservername",) if named is None else ("-servername", named)
        place = ("-connect", f"{here.address}:{PUBLIC_PORT}", "-CAfile", str(here.root), "-verify_return_error")
        code, said = await run(
            program("openssl"), "s_client", *place, "-brief", "-verify_hostname", NAME, *asked, data=b""
        )
        assert (code, b"Verification: OK" in said) == (0, True), said


async def test_a_server_may_speak_first() -> None:
    """Over TLS the client's hello has come by then, so nobody waits for a word of its own (envoyproxy/envoy 21044)."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            writer.write(b"220 ready\r\n")
            await reader.read()

    async with site(serve=greet) as here, client(here, here.tls()) as (each, _):
        await each.handshake()
        assert await each.until(lambda: each.tls.read(100)) == b"220 ready\r\n"


async def answer_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers with the count of what came, once all has."""
    with closing(writer), contextlib.suppress(ConnectionError):
        writer.write(b"%d" % len(await reader.read()))
        await writer.drain()


@pytest.mark.parametrize("said", [True, False])
async def test_who_has_said_all_still_gets_the_answer(said: bool) -> None:
    """Whether TLS says the end (`close_notify`) or TCP alone does: the other side goes on, which was an end of both
    (envoyproxy/envoy 2067, 11619).
    """
    async with site(serve=answer_at_the_end) as here, client(here, here.tls()) as (each, sock):
        await each.handshake()
        each.tls.write(b"hello")
        if said:
            with contextlib.suppress(ssl.SSLWantReadError):
                each.tls.unwrap()
        await each.send()
        if not said:
            sock.shutdown(socket.SHUT_WR)
        assert await each.until(lambda: each.tls.read(100)) == b"5"


async def test_a_server_that_has_said_all_still_hears_the_rest() -> None:
    """The other way round."""
    came: asyncio.Queue[bytes] = asyncio.Queue()

    async def end_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), contextlib.suppress(ConnectionError):
            writer.write(b"done")
            writer.write_eof()
            came.put_nowait(await reader.read())

    async with site(serve=end_first) as here, client(here, here.tls()) as (each, sock):
        await each.handshake()
        assert await each.until(lambda: each.tls.read(100)) == b"done"
        with contextlib.suppress(ssl.SSLZeroReturnError):
            assert not await each.until(lambda: each.tls.read(100))
        each.tls.write(b"the rest")
        await each.send()
        sock.shutdown(socket.SHUT_WR)
        assert await asyncio.wait_for(came.get(), SECONDS) == b"the rest"


@contextlib.asynccontextmanager
async def nobody(_address: str) -> AsyncIterator[None]:
    """No server."""
    yield


async def test_a_server_that_is_away_ends_a_connection_at_once() -> None:
    """In or just after the handshake (envoyproxy/envoy 2800), and not by silence."""
    async with site(behind=nobody) as here, client(here, here.tls()) as (each, _):
        with contextlib.suppress(ConnectionError, ssl.SSLZeroReturnError):
            await each.handshake()
            assert await each.until(lambda: each.tls.read(1)) is None
