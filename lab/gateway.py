"""The platform's gateway in front of the CVMs: TCP by server name, as dstack's.

`<id>-<port>s.<base>` is passed through untouched to that port of the CVM (TLS ends inside it). `<id>` is an instance ID
(that CVM) or an app ID (the first of its CVMs that answers). TCP only: there is no UDP ingress. What the platform does
for a browser, TLS that ends at the gateway, is a plain TCP port on the machine's loopback here (`serve_plain`), so that
a person can use curl without a certificate.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress

from runtime.tasks import TaskScope

log = logging.getLogger("lab.gateway")

_HELLO_SECONDS = 5.0
"""The real gateway wants the ClientHello within 5 s (dstack.md 5)."""
_CONNECT_SECONDS = 5.0
_CHUNK = 1 << 16
_NAME = re.compile(r"(?P<id>[0-9a-f]{40})-(?P<port>[0-9]{1,5})(?P<mode>s?)")

Handler = Callable[[socket.socket], Coroutine[None, None, None]]


class ServerName:
    """Finds the server name in the first bytes of a TLS connection, with OpenSSL's own parser."""

    def __init__(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sni_callback = self._seen
        self._incoming = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, ssl.MemoryBIO(), server_side=True)
        self.name: str | None = None
        self.done = False

    def _seen(self, _tls: object, name: str | None, _context: object) -> int:
        self.name, self.done = name, True
        return ssl.ALERT_DESCRIPTION_HANDSHAKE_FAILURE  # enough was read: stop here

    def feed(self, data: bytes) -> bool:
        """Takes more bytes; True when the name (or that there is none) is known, or the bytes are not TLS."""
        self._incoming.write(data)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return self.done
        except ssl.SSLError:
            self.done = True
        return self.done


class Gateway:
    """Forwards connections. `resolve(id)` gives the host-interface addresses of an app's or instance's CVMs."""

    def __init__(
        self, *, base: str, resolve: Callable[[str], Sequence[str]], make_socket: Callable[[], socket.socket]
    ) -> None:
        self._base = base
        self._resolve = resolve
        self._make_socket = make_socket

    async def serve(self, scope: TaskScope, listener: socket.socket) -> None:
        """Accepts by server name on `listener` for as long as the scope lives."""
        await self._accept(scope, listener, self._by_name)

    async def serve_plain(self, scope: TaskScope, listener: socket.socket, identity: str, port: int) -> None:
        """Accepts plain TCP on `listener` for one port of one app: the lab's public entry on the machine's loopback."""

        async def forward(client: socket.socket) -> None:
            await self._forward(client, b"", identity, port)

        await self._accept(scope, listener, forward)

    async def _accept(self, scope: TaskScope, listener: socket.socket, handle: Handler) -> None:
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            client, _ = await loop.sock_accept(listener)
            client.setblocking(False)
            scope.start("gateway connection", self._guarded(client, handle))

    async def _guarded(self, client: socket.socket, handle: Handler) -> None:
        try:
            await handle(client)
        except (OSError, TimeoutError) as error:
            log.debug("connection ended: %s", error)
        finally:
            client.close()

    async def _by_name(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        hello, seen = b"", ServerName()
        async with asyncio.timeout(_HELLO_SECONDS):
            while True:
                data = await loop.sock_recv(client, _CHUNK)
                if not data:
                    return
                hello += data
                if seen.feed(data):
                    break
        name = (seen.name or "").lower()
        label, _, base = name.partition(".")
        match = _NAME.fullmatch(label)
        if match is None or base != self._base or not match["mode"]:
            log.info("refused server name %r: expected <id>-<port>s.%s", name, self._base)
            return
        await self._forward(client, hello, match["id"], int(match["port"]))

    async def _forward(self, client: socket.socket, first: bytes, identity: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        server = await self._connect(identity, port)
        if server is None:
            return
        try:
            if first:
                await loop.sock_sendall(server, first)
            async with TaskScope() as scope:
                scope.start("gateway up", _pump(client, server))
                scope.start("gateway down", _pump(server, client))
        finally:
            server.close()

    async def _connect(self, identity: str, port: int) -> socket.socket | None:
        loop = asyncio.get_running_loop()
        for address in self._resolve(identity):
            server = self._make_socket()
            server.setblocking(False)
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    await loop.sock_connect(server, (address, port))
            except (OSError, TimeoutError) as error:
                server.close()
                log.debug("no answer from %s:%s: %s", address, port, error)
                continue
            return server
        return None


async def _pump(source: socket.socket, sink: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while data := await loop.sock_recv(source, _CHUNK):
            await loop.sock_sendall(sink, data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
