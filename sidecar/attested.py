"""A coordinator's HTTP API, spoken to only after its own evidence was verified.

The order is the point: TLS without any certificate authority, the certificate's evidence against the manifest's
coordinator entry, and only then, pinned to that certificate, a request. The TLS handshake proves that who answers holds
the key that the quote speaks for.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from coordinator.protocol import MAX_BODY, Code

if TYPE_CHECKING:
    from aiohttp import ClientSession

TIMEOUT = 30.0
"""Seconds for one call. An attestation waits for quote verification, raft and the rendezvous."""
VERIFY_SECONDS = 3600.0
"""How long a verified certificate is believed. Revocations, TCB levels and the manifest change; the rendezvous looks
again as often."""
CONNECT_SECONDS = 5.0
"""Seconds for the TCP and TLS handshakes; then the next coordinator has its turn."""

Verify = Callable[[bytes], Awaitable[None]]
"""Takes a certificate (DER); returns when its evidence is a coordinator's of ours, else raises CoordinatorError."""


class CoordinatorError(Exception):
    """The coordinator cannot be used now: unreachable, not what it must be, or talking nonsense. Another may do."""


class RefusedError(Exception):
    """The coordinator answered with an error code."""

    def __init__(self, code: Code, reason: str, answer: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"{code.name}: {reason}")
        self.code = code
        self.reason = reason
        self.answer = answer or {}
        """All that it said."""


class Attested:
    """The API at `url`. `close()` it."""

    def __init__(self, url: str, verify: Verify) -> None:
        self.url = url
        self._verify = verify
        self._session: ClientSession | None = None
        self._fingerprint: bytes | None = None
        self._verified_at = 0.0

    async def close(self) -> None:
        """Closes the connections. Safe to repeat; the next call verifies anew."""
        session, self._session, self._fingerprint = self._session, None, None
        if session is not None:
            await session.close()

    async def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """The JSON object that it answers with. RefusedError, CoordinatorError."""
        import aiohttp

        session, fingerprint = await self._verified()
        try:
            async with session.request(
                method, f"{self.url}{path}", json=body, ssl=aiohttp.Fingerprint(fingerprint), allow_redirects=False
            ) as response:
                data = await response.content.read(MAX_BODY + 1)
                while len(data) <= MAX_BODY and (more := await response.content.read(MAX_BODY)):
                    data += more
                status = response.status
        except aiohttp.ServerFingerprintMismatch as error:
            await self.close()
            raise CoordinatorError(f"{self.url} has another certificate than a moment ago") from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            await self.close()
            raise CoordinatorError(f"{self.url} does not answer: {str(error) or type(error).__name__}") from error
        return decode_answer(self.url, status, data)

    async def _verified(self) -> tuple[ClientSession, bytes]:
        import aiohttp

        if not self.url.startswith("https://"):
            # The evidence is that of a TLS certificate: a request without TLS would go to whoever answers.
            raise CoordinatorError(f"{self.url} is no https URL")
        now = asyncio.get_running_loop().time()
        if self._fingerprint is None or now - self._verified_at > VERIFY_SECONDS:
            certificate = await peer_certificate(self.url)
            await self._verify(certificate)
            self._fingerprint, self._verified_at = hashlib.sha256(certificate).digest(), now
        if self._session is None:
            # A coordinator closes idle connections after 15 s; ours are gone before, so none is used while it closes.
            connector = aiohttp.TCPConnector(keepalive_timeout=10.0)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=aiohttp.ClientTimeout(total=TIMEOUT, connect=CONNECT_SECONDS)
            )
        return self._session, self._fingerprint


async def peer_certificate(url: str) -> bytes:
    """The certificate (DER) that the server at `url` presents. Nothing is sent but a TLS handshake."""
    parts = urlsplit(url)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(
                parts.hostname, parts.port or 443, ssl=context, server_hostname=parts.hostname
            )
    except (OSError, TimeoutError) as error:
        raise CoordinatorError(f"coordinator {url} cannot be reached: {str(error) or type(error).__name__}") from error
    try:
        certificate: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CONNECT_SECONDS):
                await writer.wait_closed()
    if not certificate:
        raise CoordinatorError(f"{url} shows no certificate")
    return certificate


def decode_answer(url: str, status: int, data: bytes) -> Mapping[str, Any]:
    """The JSON object of a good answer; RefusedError for a known error code, CoordinatorError for anything else."""
    if len(data) > MAX_BODY:
        raise CoordinatorError(f"{url} answers more than {MAX_BODY} bytes")
    try:
        tree = json.loads(data) if data else {}
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        raise CoordinatorError(f"{url} answers HTTP {status} with {data[:80]!r}, expected a JSON object")
    if status < 300:
        return tree
    code = next((code for code in Code if code.name == tree.get("code")), None)
    if code is None:
        raise CoordinatorError(f"{url} answers HTTP {status} with {data[:80]!r}, expected a known error code")
    raise RefusedError(code, str(tree.get("reason", ""))[:500], tree)
