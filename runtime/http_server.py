"""An HTTP server on aiohttp that strangers cannot use up: how many connections there are and how long one may be silent
is bounded, which aiohttp does not do.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from runtime.tasks import TaskScope

log = logging.getLogger(__name__)

AGAIN_SECONDS = 0.1
"""After a connection could not be accepted, as where descriptors are used up."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a server grants its callers."""

    connections: int
    """Open ones, those in their handshake among them."""
    head_seconds: float
    """Until a connection has brought a request that counts; the TLS handshake has as long for itself."""
    idle_seconds: float
    """Between two requests of a connection."""
    stop_seconds: float
    """For requests under way when the server stops."""
    handshakes: int = 256
    """At once. One more ends the oldest."""
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
        self._scope: TaskScope | None = None
        self._listener: socket.socket
        self._accepting: asyncio.Task[None]
        self._greeted: dict[web.RequestHandler, asyncio.Task[None]] = {}
        """Connections in their handshake, oldest first."""
        self._silent: dict[web.RequestHandler, None] = {}
        """Connections without a request that counts, oldest first."""
        app.middlewares.insert(0, self._note_request)

    async def start(self) -> int:
        """Begins to listen; the port that was bound. OSError names a taken address."""
        await self._runner.setup()
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            listener = socket.create_server((self._host, self._port), family=family, backlog=1024)
        except OSError:
            await self._runner.cleanup()
            raise
        listener.setblocking(False)
        self._listener, self._scope = listener, await TaskScope().__aenter__()
        self._accepting = self._scope.start("accept", self._accept(listener, self._scope))
        port: int = listener.getsockname()[1]
        return port

    async def stop(self) -> None:
        """Stops listening; requests under way get `stop_seconds`. From the task that called `start`."""
        scope, self._scope = self._scope, None
        if scope is None:
            return
        for task in (self._accepting, *self._greeted.values()):
            task.cancel()
        await scope.__aexit__(None, None, None)
        self._listener.close()
        await self._runner.cleanup()

    async def _accept(self, listener: socket.socket, scope: TaskScope) -> None:
        """Takes connections, as many as the limits say. Not asyncio's own server: it tells of a connection when the TLS
        handshake is done, and holds 0.3 MiB for each that never ends it.
        """
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("no connection can be accepted", extra={"reason": str(error)})
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            # A connection that waits already is accepted without a turn of the loop: without this one, a crowd would
            # keep everything else waiting, and end handshakes that have not begun.
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                connection.close()
                raise
            factory = self._runner.server
            if factory is None or not self._make_room(len(factory.connections)):
                connection.close()
                continue
            protocol = factory()
            self._silent[protocol] = None
            began = asyncio.Event()
            self._greeted[protocol] = scope.start("handshake", self._greet(connection, protocol, began))
            self._greeted[protocol].add_done_callback(partial(_close_unbegun, connection, began))

    async def _greet(self, connection: socket.socket, protocol: web.RequestHandler, began: asyncio.Event) -> None:
        """The handshake, if there is TLS. A connection that brings no request in time afterwards is closed."""
        began.set()
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=self._limits.head_seconds if self._tls else None,
            )
            loop.call_later(self._limits.head_seconds, self._close_silent, protocol)
        except Exception as error:  # noqa: BLE001 -- the boundary: whatever a stranger's handshake causes is the stranger's
            self._silent.pop(protocol, None)
            log.debug("handshake failed", extra={"reason": repr(error)})
        except asyncio.CancelledError:
            self._silent.pop(protocol, None)
            raise
        finally:
            self._greeted.pop(protocol, None)

    def _make_room(self, connected: int) -> bool:
        """Whether there is a place for one more connection, beside those that are `connected` or in their handshake."""
        if len(self._greeted) >= self._limits.handshakes:
            # The oldest: an honest one takes a tenth of a second.
            oldest = next(iter(self._greeted))
            self._greeted.pop(oldest).cancel()
        if connected + len(self._greeted) < self._limits.connections:
            return True
        found = (each for each in self._silent if each not in self._greeted)
        displaced = next(found, None) if self._limits.displaces else None
        if displaced is None:
            return False
        self._close_silent(displaced)
        return True

    def _close_silent(self, protocol: web.RequestHandler) -> None:
        if protocol in self._silent:
            del self._silent[protocol]
            if protocol.transport is not None:
                protocol.transport.abort()

    @web.middleware
    async def _note_request(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._counts(request):
            self._silent.pop(request.protocol, None)
        return await handler(request)


def _close_unbegun(connection: socket.socket, began: asyncio.Event, _: asyncio.Task[None]) -> None:
    """Closes a connection whose handshake was given up before its first step: then nobody else has it."""
    if not began.is_set():
        connection.close()
