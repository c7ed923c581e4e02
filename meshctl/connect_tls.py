"""A TLS client's connection whose two directions end one after the other, as TCP's do. IO: asyncio streams.

asyncio's own TLS closes both at once: a program that has sent all and waits for the answer would not get it, or the
server would never hear that this was all.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl

_CHUNK = 1 << 16


class Secure:
    """Bytes in clear on our side, TLS on the other's."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tls: ssl.SSLContext, name: str
    ) -> None:
        """`name` is what the certificate has to be for."""
        self._reader = reader
        self._writer = writer
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = tls.wrap_bio(self._incoming, self._outgoing, server_hostname=name)

    async def handshake(self) -> None:
        """Verifies the other side. ssl.SSLError, of which a certificate that does not verify is one; OSError."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._take()
            except ssl.SSLError:
                # The other side is told why.
                with contextlib.suppress(OSError):
                    await self._flush()
                raise
            else:
                await self._flush()
                return

    async def read(self) -> bytes:
        """What has come, some 64 KiB at most; empty at the end. ssl.SSLError for an end that the other side has not
        said, which anybody on the way could make; OSError.
        """
        while True:
            try:
                return self._tls.read(_CHUNK)
            except ssl.SSLWantReadError:
                await self._flush()
                await self._take()
            except ssl.SSLZeroReturnError:
                return b""

    async def write(self, data: bytes) -> None:
        """Returns when there is room for more. OSError."""
        self._tls.write(data)
        await self._flush()

    async def end(self) -> None:
        """Says that this was all; what comes back can still be read. OSError."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        await self._flush()

    def close(self) -> None:
        """Ends both directions."""
        self._writer.close()

    async def _flush(self) -> None:
        if self._outgoing.pending:
            self._writer.write(self._outgoing.read())
            await self._writer.drain()

    async def _take(self) -> None:
        data = await self._reader.read(_CHUNK)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
