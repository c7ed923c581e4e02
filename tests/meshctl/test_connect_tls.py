"""TLS with two directions, against Python's own TLS server on a thread."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from meshctl.connect_tls import Secure
from tests.xds.pki import Authority

Behave = Callable[[ssl.SSLSocket], None]


@asynccontextmanager
async def connected(folder: Path, behave: Behave, *, name: str = "web") -> AsyncIterator[tuple[Secure, list[OSError]]]:
    """A connection to a server that behaves like that, not shaken hands yet; and how that ended, where it failed."""
    failed: list[OSError] = []
    authority = Authority()
    context = authority.server(folder, "web")
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(cadata=authority.pem)

    def serve(listener: socket.socket) -> None:
        plain, _ = listener.accept()
        plain.settimeout(20)
        with plain:
            try:
                with context.wrap_socket(plain, server_side=True) as secure:
                    behave(secure)
            except OSError as error:
                failed.append(error)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        found = Secure(reader, writer, client, name)
        try:
            async with asyncio.timeout(30):
                yield found, failed
        finally:
            found.close()
            await asyncio.to_thread(thread.join, 20)


async def rest(secure: Secure) -> bytes:
    """What comes until the end."""
    found = b""
    while data := await secure.read():
        found += data
    return found


async def test_the_answer_comes_after_the_end_of_the_question(tmp_path: Path) -> None:
    """The server waits for the end, and then answers with all that it got."""
    whole = os.urandom(1 << 20)

    def answers_at_the_end(secure: ssl.SSLSocket) -> None:
        got = b""
        while data := secure.recv(1 << 16):
            got += data
        secure.sendall(got[::-1])
        secure.unwrap()

    async with connected(tmp_path, answers_at_the_end) as (secure, _):
        await secure.handshake()
        await secure.write(whole)
        await secure.end()
        assert await rest(secure) == whole[::-1]


async def test_an_end_that_nobody_said_is_an_error(tmp_path: Path) -> None:
    """The connection is cut in the middle of an answer."""

    def cut(secure: ssl.SSLSocket) -> None:
        secure.sendall(b"half")
        socket.socket(fileno=secure.detach()).close()

    async with connected(tmp_path, cut) as (secure, _):
        await secure.handshake()
        assert await secure.read() == b"half"
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await secure.read()


async def test_another_name_does_not_verify(tmp_path: Path) -> None:
    """And the server is told so."""

    def hears(secure: ssl.SSLSocket) -> None:
        secure.recv(1)

    async with connected(tmp_path, hears, name="other") as (secure, failed):
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            await secure.handshake()
    assert ["ALERT" in str(error) for error in failed] == [True]


async def test_what_is_no_tls_is_an_error() -> None:
    """A server that answers in clear."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        there, _ = listener.accept()
        with there:
            there.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            secure = Secure(reader, writer, ssl.create_default_context(), "web")
            with pytest.raises(ssl.SSLError):
                await secure.handshake()
        secure.close()
