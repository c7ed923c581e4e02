"""DNS over TCP, the server's end of one connection (RFC 7766): many queries each, answered as they are ready. An edge.

A client of ours is any process of the CVM, so one that is slow or hostile must not hold what the others need:
connections, queries under way and the time without a whole query are bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from dns.message import Transport

MAX_CONNECTIONS = 128
"""The one idle longest gives way to a new one."""
MAX_PIPELINED = 32
"""Forwarded queries under way on one connection; reading stops there. A quarter of dns.forward.MAX_IN_FLIGHT."""
IDLE = 10.0
"""Seconds without a whole query until the connection is closed. RFC 7766 6.2.3 asks for "a few seconds"."""

Handle = Callable[[bytes, Transport, Callable[[bytes], None]], int | None]


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, handle: Handle, forget: Callable[[int], None], connections: dict[Connection, None]) -> None:
        """`handle` and `forget` are the server's; `connections` holds the open ones, the one idle longest first."""
        self._handle = handle
        self._forget = forget
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._incoming = bytearray()
        self._tokens: dict[object, int] = {}
        self._waiting = 0
        self._write_blocked = False
        self._at_end = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes its place among the open connections."""
        # asyncio types this more widely than what a stream protocol gets; event loops have classes of their own.
        self._transport = cast("asyncio.Transport", transport)
        self._touch()
        if len(self._connections) > MAX_CONNECTIONS:
            next(iter(self._connections)).abort()

    def data_received(self, data: bytes) -> None:
        """Handles every whole query, within the bounds."""
        self._incoming += data
        self._work()

    def eof_received(self) -> bool:
        """The client has said all; what it asked is still answered (RFC 7766 6.2.4)."""
        self._at_end = True
        self._close_when_done()
        return True

    def pause_writing(self) -> None:
        """The client does not read its answers: it gets to ask no more until it does."""
        self._write_blocked = True
        self._pace()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._write_blocked = False
        self._work()
        self._close_when_done()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """Gives up its place and what it asked."""
        self._transport = None
        self._connections.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
        for token in list(self._tokens.values()):
            self._forget(token)
        self._tokens.clear()

    def abort(self) -> None:
        """Closes at once."""
        self._connections.pop(self, None)
        if self._transport is not None:
            self._transport.abort()

    def _touch(self) -> None:
        # Re-inserted at the end: the first key is the connection that has been without a query longest.
        self._connections.pop(self, None)
        self._connections[self] = None
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(IDLE, self.abort)

    def _work(self) -> None:
        offset = 0
        while not self._is_blocked() and len(self._incoming) - offset >= 2:
            start = offset + 2
            end = start + int.from_bytes(self._incoming[offset:start], "big")
            if end > len(self._incoming):
                break
            offset = end
            self._ask(bytes(self._incoming[start:end]))
        if offset:
            del self._incoming[:offset]
            if self._transport is not None:
                self._touch()
        self._pace()

    def _is_blocked(self) -> bool:
        return self._transport is None or self._write_blocked or self._waiting >= MAX_PIPELINED

    def _pace(self) -> None:
        if self._transport is None or self._transport.is_closing() or self._at_end:
            return
        if self._is_blocked():
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _close_when_done(self) -> None:
        if self._at_end and not self._is_blocked() and not self._waiting and self._transport is not None:
            self._transport.close()

    def _ask(self, wire: bytes) -> None:
        call = object()
        done = False

        def answered(reply: bytes) -> None:
            nonlocal done
            done = True
            if self._tokens.pop(call, None) is not None:
                self._waiting -= 1
                self._answer(reply)
                self._work()
                self._close_when_done()
            else:
                self._answer(reply)

        token = self._handle(wire, Transport.TCP, answered)
        if token is not None and not done:
            self._tokens[call] = token
            self._waiting += 1

    def _answer(self, reply: bytes) -> None:
        if self._transport is not None:
            self._transport.write(len(reply).to_bytes(2, "big") + reply)
