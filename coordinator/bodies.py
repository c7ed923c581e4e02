"""Reads the bodies of requests, and bounds what all that are under way may take together. IO: aiohttp's streams.

A stranger may say that a megabyte comes, send all but one byte, and wait. Where such bodies together would be too many
bytes, the one that began first is cut off: an honest one takes a fraction of a second.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aiohttp import web

from admission.protocol import MAX_BODY, Code
from coordinator.refusal import RefusalError

MOST_BYTES = 32 << 20
"""Of all bodies that are under way. 32 of the greatest, or thousands of those that CVMs send."""
BODY_SECONDS = 15.0
"""A body must be here after this (the template family's limit)."""


@dataclass(slots=True, eq=False)
class _Body:
    """One that is under way."""

    transport: asyncio.Transport | None
    size: int = 0


class Bodies:
    """Of one server."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        self._most = most
        self._under_way: dict[_Body, None] = {}
        """The one that began first first."""
        self.size = 0
        """Bytes of all of them so far."""

    async def read(self, request: web.Request, seconds: float) -> bytes:
        """The body of `request`, which is here after `seconds`. RefusalError."""
        if (request.content_length or 0) > MAX_BODY:
            # Refused before it is read; the connection cannot be used after that.
            reason = f"the body has {request.content_length} bytes, allowed are {MAX_BODY}"
            raise RefusalError(Code.BAD_REQUEST, reason)
        body, parts = _Body(request.transport), []
        self._under_way[body] = None
        try:
            async with asyncio.timeout(seconds):
                async for part in request.content.iter_any():
                    parts.append(part)
                    self._grow(body, len(part))
        except TimeoutError:
            raise RefusalError(Code.BAD_REQUEST, f"the body was not here after {seconds:g} s") from None
        except (ConnectionError, web.RequestPayloadError):
            raise RefusalError(Code.BAD_REQUEST, "the connection ended before the body") from None
        finally:
            self._end(body)
        return b"".join(parts)

    def _grow(self, body: _Body, count: int) -> None:
        if body not in self._under_way:
            # Cut off; what was received before that comes still.
            raise ConnectionAbortedError
        body.size += count
        self.size += count
        if body.size > MAX_BODY:
            raise RefusalError(Code.BAD_REQUEST, f"the body exceeds {MAX_BODY} bytes")
        while self.size > self._most:
            first = next(iter(self._under_way))
            self._end(first)
            if first.transport is not None:
                first.transport.abort()

    def _end(self, body: _Body) -> None:
        if body in self._under_way:
            del self._under_way[body]
            self.size -= body.size
