"""An HTTP server on aiohttp that strangers cannot use up: how many connections there are, how long one may be silent,
and how long its caller may take to read an answer is bounded, which aiohttp does not do.

A handler that knows its caller says so with `keep`. All other connections are strangers', and give their places up. So
do those of a caller who is known no more. Some places are never kept, so whoever comes new finds one. The source that
has the most gives up first: one address cannot take what others have. It is no limit for each, because all clients may
come through one gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from aiohttp import web

from runtime.log import BY_STRANGERS
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
    """Until a connection has brought a request; the TLS handshake has as long for itself."""
    idle_seconds: float
    """Between two requests of a connection."""
    stop_seconds: float
    """For requests under way when the server stops."""
    answer_seconds: float
    """Until its caller has taken an answer. What a handler sends by itself takes as long as the handler lets it."""
    kept_each: int
    """Connections of one known caller that stay when there is no room."""
    kept: int
    """Likewise of all known callers together. The rest is for whoever comes new: more than `handshakes`, or those use
    it up."""
    handshakes: int = 256
    """At once. One more ends the oldest of whoever has the most."""
    strangers: int | None = None
    """Connections of who is not known, those in their handshake among them. What one of them costs bounds the memory
    that strangers can take. None: as many as there is room for."""
    cancels: bool = False
    """A request whose caller has gone is not worked on any more."""


@dataclass(frozen=True, slots=True)
class _Known:
    """Whose a connection is."""

    caller: str
    still: Callable[[], bool]
    """Whether it is known yet."""
    source: str


class Server:
    """Serves `app` on `host:port`; without `tls` on loopback only. Bound when `start` returns."""

    def __init__(
        self,
        app: web.Application,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        limits: Limits,
    ) -> None:
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
        self._scope: TaskScope | None = None
        self._listener: socket.socket
        self._accepting: asyncio.Task[None]
        self._greeted: dict[web.RequestHandler, asyncio.Task[None]] = {}
        """Connections in their handshake, oldest first."""
        self._sockets: dict[web.RequestHandler, socket.socket] = {}
        """Theirs."""
        self._untouched: set[socket.socket] = set()
        """Those on which no handshake has begun: their task may be cancelled before its first step."""
        self._silent: dict[web.RequestHandler, str] = {}
        """Connections that have brought no request → their sources; oldest first."""
        self._strangers: dict[web.RequestHandler, str] = {}
        """Likewise of callers who are not known; those without a request among them."""
        self._kept: dict[web.RequestHandler, _Known] = {}
        """Connections of known callers → whose each is."""
        app[_SERVER] = self
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

    def connections(self) -> int:
        """How many are open, those in their handshake among them."""
        factory = self._runner.server
        return len(self._greeted) + (len(factory.connections) if factory is not None else 0)

    async def _accept(self, listener: socket.socket, scope: TaskScope) -> None:
        """Takes connections, as many as the limits say. Not asyncio's own server: it tells of a connection when the TLS
        handshake is done, and holds 0.3 MiB for each that never ends it.
        """
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("no connection can be accepted", extra={**BY_STRANGERS, "reason": str(error)})
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
            self._forget_ended(len(factory.connections))
            self._silent[protocol] = self._strangers[protocol] = source_of(address[0])
            self._sockets[protocol] = connection
            self._untouched.add(connection)
            task = self._greeted[protocol] = scope.start("handshake", self._greet(connection, protocol))
            task.add_done_callback(functools.partial(self._close_untouched, connection, protocol))

    async def _greet(self, connection: socket.socket, protocol: web.RequestHandler) -> None:
        """The handshake, if there is TLS. A connection that brings no request in time afterwards is closed."""
        loop = asyncio.get_running_loop()
        self._untouched.discard(connection)
        try:
            await loop.connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=self._limits.head_seconds if self._tls else None,
            )
            loop.call_later(self._limits.head_seconds, self._close_silent, protocol)
        except Exception as error:  # noqa: BLE001 -- the boundary: whatever a stranger's handshake causes is the stranger's
            self._forget(protocol)
            log.debug("handshake failed", extra={**BY_STRANGERS, "reason": repr(error)})
            _forget_traces(error)
        except asyncio.CancelledError:
            self._forget(protocol)
            raise
        finally:
            self._greeted.pop(protocol, None)
            self._sockets.pop(protocol, None)

    def _close_untouched(self, connection: socket.socket, protocol: web.RequestHandler, _: asyncio.Task[None]) -> None:
        if connection in self._untouched:
            self._untouched.discard(connection)
            self._greeted.pop(protocol, None)
            self._sockets.pop(protocol, None)
            self._forget(protocol)
            connection.close()

    def _make_room(self, connected: int) -> bool:
        """Whether there is a place for one more connection, beside those that are `connected` or in their handshake."""
        if len(self._greeted) >= self._limits.handshakes:
            # The oldest: an honest one takes a tenth of a second.
            oldest = _first_of_most({each: self._strangers.get(each, "") for each in self._greeted})
            if oldest is not None:
                self._break_off(oldest)
        if connected + len(self._greeted) < self._limits.connections and not self._crowded():
            return True
        displaced = self._displaced()
        if displaced is None:
            self._review()
            displaced = self._displaced()
        if displaced is None:
            return False
        if displaced in self._greeted:
            self._break_off(displaced)
        else:
            self._end(displaced)
        return True

    def _break_off(self, protocol: web.RequestHandler) -> None:
        """Ends a handshake. By its socket: its task, were it cancelled, would not hear of the error that asyncio makes
        of that, and nobody could have it forget its traces.
        """
        self._greeted.pop(protocol)
        self._forget(protocol)
        with contextlib.suppress(OSError):
            self._sockets.pop(protocol).shutdown(socket.SHUT_RDWR)

    def _crowded(self) -> bool:
        """Whether strangers have all the places that they may have."""
        most = self._limits.strangers
        if most is None or len(self._strangers) < most:
            return False
        self._forget_strangers()
        return len(self._strangers) >= most

    def _displaced(self) -> web.RequestHandler | None:
        """The stranger who gives up his place: of the source that has the most, the oldest that has asked nothing, else
        the oldest. None where there is none. One whose handshake is under way has its own limit, and goes last.
        """
        self._forget_strangers()
        connected = {each: source for each, source in self._strangers.items() if each not in self._greeted}
        most = _source_of_most(connected or self._strangers)
        own = [each for each, source in (connected or self._strangers).items() if source == most]
        return next((each for each in own if each in self._silent), next(iter(own), None))

    def _forget_strangers(self) -> None:
        """Lets go of those that have ended: nobody tells of that."""
        for each in tuple(self._strangers):
            if each.transport is None and each not in self._greeted:
                self._forget(each)

    def _close_silent(self, protocol: web.RequestHandler) -> None:
        if protocol in self._silent:
            self._end(protocol)

    def _end(self, protocol: web.RequestHandler) -> None:
        self._forget(protocol)
        if protocol.transport is not None:
            protocol.transport.abort()

    def _forget(self, protocol: web.RequestHandler) -> None:
        for connections in (self._silent, self._strangers, self._kept):
            connections.pop(protocol, None)

    def _forget_ended(self, connected: int) -> None:
        """Lets go of connections that have ended: nobody tells of that. Seldom, for it looks at all of them."""
        if len(self._strangers) + len(self._kept) > 2 * (connected + len(self._greeted)) + 64:
            ended = [each for each in (*self._strangers, *self._kept) if each.transport is None]
            for each in ended:
                if each not in self._greeted:
                    self._forget(each)

    def keep(self, request: web.Request, caller: str, still: Callable[[], bool]) -> None:
        """See the function of this name."""
        protocol = request.protocol
        if protocol not in self._strangers or self._places(caller) >= self._limits.kept_each:
            return
        if len(self._kept) >= self._limits.kept:
            self._review()
        if len(self._kept) < self._limits.kept:
            source = self._strangers[protocol]
            self._forget(protocol)
            self._kept[protocol] = _Known(caller, still, source)

    def _places(self, caller: str) -> int:
        """Of `caller`. Those that were kept for what it was before are not its own any more."""
        own = [each for each, known in self._kept.items() if known.caller == caller]
        for each in own:
            self._let_go(each)
        return sum(1 for each in own if each in self._kept)

    def _review(self) -> None:
        for each in tuple(self._kept):
            self._let_go(each)

    def _let_go(self, protocol: web.RequestHandler) -> None:
        """Makes a kept connection a stranger's where its caller is known no more, and forgets one that has ended."""
        if protocol.transport is None:
            self._forget(protocol)
        elif not (known := self._kept[protocol]).still():
            self._forget(protocol)
            self._strangers[protocol] = known.source

    @web.middleware
    async def _note_request(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._silent.pop(request.protocol, None)
        if request.protocol in self._kept:
            self._let_go(request.protocol)
        response = await handler(request)
        try:
            async with asyncio.timeout(self._limits.answer_seconds):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            # The caller has gone, or the handler has cut it off.
            pass
        return response


def _forget_traces(error: BaseException | None) -> None:
    """The trace of a handshake's error holds the frame that made it, and so the error itself, and 256 KiB of buffers:
    a circle, which stays until the collector comes by.
    """
    while error is not None:
        error.__traceback__, error = None, error.__context__


def source_of(address: str) -> str:
    """Whose connection from `address` is: with IPv6 a network's, for any host has as many addresses as it likes."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))


def _source_of_most(sources: Mapping[web.RequestHandler, str]) -> str | None:
    return Counter(sources.values()).most_common(1)[0][0] if sources else None


def _first_of_most(sources: Mapping[web.RequestHandler, str]) -> web.RequestHandler | None:
    most = _source_of_most(sources)
    return next((each for each, source in sources.items() if source == most), None)


_SERVER = web.AppKey("server", Server)


def keep(request: web.Request, caller: str, still: Callable[[], bool]) -> None:
    """`caller` is known, and proved it with `request`: strangers do not take its connection's place any more, for as
    long as `still` says so. It has `kept_each` such connections at most.
    """
    request.app[_SERVER].keep(request, caller, still)
