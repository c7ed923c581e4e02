"""An HTTP server on aiohttp that strangers cannot use up: how many connections there are and how long one may be silent
is bounded, which aiohttp does not do.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a server grants its callers."""

    connections: int
    """Open ones."""
    head_seconds: float
    """Until a connection has brought a request that counts; the TLS handshake has as long for itself."""
    idle_seconds: float
    """Between two requests of a connection."""
    stop_seconds: float
    """For requests under way when the server stops."""
    displaces: bool = False
    """One connection too many takes the place of the oldest that has brought no request that counts. Otherwise, and
    where there is none, it is closed."""
    cancels: bool = False
    """A request whose caller has gone is not worked on any more."""


class Server:
    """Serves `app` on `host:port`; without `tls` on loopback only. Bound when `start` returns."""

    def __init__(
        self,
        app: web.Application,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        limits: Limits,
        counts: Callable[[web.Request], bool] = lambda _: True,
    ) -> None:
        """`counts`: whether a request makes its connection one that may stay."""
        # Lingering: how long the rest of a refused body is read and thrown away, so that its sender sees the answer.
        self._runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=limits.idle_seconds,
            shutdown_timeout=limits.stop_seconds,
            lingering_time=2.0,
            # Nobody of ours sends a packed body, and a thousandth of what is allowed could unpack to all of it.
            auto_decompress=False,
            handler_cancellation=limits.cancels,
        )
        self._host, self._port, self._tls = host, port, tls
        self._limits = limits
        self._counts = counts
        self._server: asyncio.Server | None = None
        self._silent: dict[asyncio.BaseProtocol, None] = {}
        """Connections without a request that counts, oldest first."""
        app.middlewares.insert(0, self._note_request)

    async def start(self) -> int:
        """Begins to listen; the port that was bound. OSError names a taken address."""
        await self._runner.setup()
        try:
            self._server = await asyncio.get_running_loop().create_server(
                self._connection,
                self._host,
                self._port,
                ssl=self._tls,
                backlog=1024,
                ssl_handshake_timeout=self._limits.head_seconds if self._tls else None,
            )
        except OSError:
            await self._runner.cleanup()
            raise
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        """Stops listening; requests under way get `stop_seconds`."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            await self._runner.cleanup()
            await server.wait_closed()

    def _connection(self) -> asyncio.BaseProtocol:
        """aiohttp's protocol for a new connection, which is closed when it brings no request in time."""
        factory = self._runner.server
        assert factory is not None
        if len(factory.connections) >= self._limits.connections:
            oldest = next(iter(self._silent), None) if self._limits.displaces else None
            if oldest is None:
                return _Closed()
            self._close_silent(oldest)
        protocol = factory()
        self._silent[protocol] = None
        asyncio.get_running_loop().call_later(self._limits.head_seconds, self._close_silent, protocol)
        return protocol

    def _close_silent(self, protocol: asyncio.BaseProtocol) -> None:
        if protocol in self._silent:
            del self._silent[protocol]
            assert isinstance(protocol, web.RequestHandler)
            if protocol.transport is not None:
                protocol.transport.abort()

    @web.middleware
    async def _note_request(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._counts(request):
            self._silent.pop(request.protocol, None)
        return await handler(request)


class _Closed(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Closes it."""
        assert isinstance(transport, asyncio.Transport)
        transport.abort()
