"""A coordinator's HTTP API, spoken to only after its own evidence was verified.

The order is the point: TLS without any certificate authority, the one public question that says nothing of who asks
(which manifest?), the certificate's evidence against that manifest, and only then, pinned to that certificate, whatever
is to be said. The TLS handshake proves that who answers holds the key that the quote speaks for.
"""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from admission.clocks import Skew, measured
from admission.protocol import MAX_BODY, Code

if TYPE_CHECKING:
    from aiohttp import ClientSession, Fingerprint

TIMEOUT = 30.0
"""Seconds for one call. An attestation waits for quote verification, raft and the rendezvous."""
GREETING_SECONDS = 10.0
"""Seconds for the manifest, 1 MiB at most: a server that does not even say it must not keep the next one waiting."""
VERIFY_SECONDS = 3600.0
"""How long a verified certificate is believed: what Intel revokes, and TCB levels, change. A newer manifest does not
wait for it."""
CONNECT_SECONDS = 5.0
"""Seconds for the TCP and TLS handshakes; then the next coordinator has its turn."""
IN_FORCE = "/v1/manifest"
"""Where a coordinator that is ready says which manifest the coordinators enforce."""
BEGUN_WITH = "/v1/rendezvous/manifest"
"""Where it says by which one it goes, in force or not yet: coordinators need a rendezvous before they can be ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """What a server has shown, before anything about the caller was said to it. Nothing of it is verified."""

    url: str
    certificate: bytes
    """DER."""
    envelope: str
    """The manifest that it says is in force; empty where it says none."""
    reason: str
    """Why it says none."""
    ask: Callable[[str], Awaitable[Mapping[str, Any]]]
    """Asks for another public path. As `Attested.call`."""


Verify = Callable[[Greeting], Awaitable[str]]
"""Returns when the certificate's evidence is a coordinator's of ours, with the envelope of the manifest by which it was
judged; else raises CoordinatorError."""


class CoordinatorError(Exception):
    """The coordinator cannot be used now: unreachable, not what it must be, or talking nonsense. Another may do."""


class NotAllowedError(CoordinatorError):
    """Its evidence is genuine, and not what the manifest allows."""


class _LostError(CoordinatorError):
    """The connections to it are of no use any more."""


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

    def __init__(
        self, url: str, verify: Verify, *, manifest: str = IN_FORCE, held: Callable[[], str] = lambda: ""
    ) -> None:
        """`manifest`: the path of the first question. `held` gives the envelope of the newest manifest that is known;
        what was verified by another one is judged again. Empty: there is none, or only one ever.
        """
        self.url = url
        self._verify = verify
        self._held = held
        self._manifest = manifest
        self._channel: _Channel | None = None
        """The verified one."""
        self._verified_at = 0.0
        self.skew: Skew | None = None
        """Of our clock, by its last answer; None before it was verified."""

    async def close(self) -> None:
        """Closes the connections. Safe to repeat; the next call verifies anew."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, seconds: float = TIMEOUT
    ) -> Mapping[str, Any]:
        """The JSON object that it answers with. RefusedError, CoordinatorError."""
        channel = await self._verified()
        try:
            answer = await channel.call(method, path, body, seconds)
        except _LostError:
            await self.close()
            raise
        finally:
            self.skew = channel.skew or self.skew
        # A manifest that came meanwhile may be about this very coordinator.
        await self._judge_again(channel)
        return answer

    async def _verified(self) -> _Channel:
        now = asyncio.get_running_loop().time()
        if (known := self._channel) is not None and now - self._verified_at <= VERIFY_SECONDS:
            await self._judge_again(known)
            return known
        channel = _Channel(self.url)
        try:
            channel.greeting = await channel.greet(self._manifest)
            channel.judged_by = await self._verify(channel.greeting)
        except BaseException:
            await channel.close()
            raise
        # Only now: a server that has no room for a second connection keeps us on the first until then.
        await self.close()
        self._channel, self._verified_at = channel, now
        return channel

    async def _judge_again(self, channel: _Channel) -> None:
        """Returns when the manifest that is held now has the coordinator, too, by what it has shown: it is asked
        nothing. CoordinatorError.
        """
        held, greeting = self._held(), channel.greeting
        if not held or held == channel.judged_by or greeting is None:
            return
        try:
            channel.judged_by = await self._verify(replace(greeting, envelope=held))
        except BaseException:
            await channel.close()
            if self._channel is channel:
                self._channel = None
            raise


class _Channel:
    """Connections to the server at `url`, all with the certificate of the first."""

    def __init__(self, url: str) -> None:
        if not url.startswith("https://"):
            # The evidence is that of a TLS certificate: a request without TLS would go to whoever answers.
            raise CoordinatorError(f"{url} is no https URL")
        import aiohttp

        self._url = url
        self.greeting: Greeting | None = None
        self.judged_by = ""
        """The envelope of the manifest by which what it has shown was judged last."""
        self.skew: Skew | None = None
        """By the last answer that says something of it."""
        self._pin = _pin()
        # A coordinator closes idle connections after 15 s; ours are gone before, so none is used while it closes.
        self._session: ClientSession = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(keepalive_timeout=10.0, ssl=self._pin)
        )

    async def greet(self, path: str) -> Greeting:
        """What the server shows. CoordinatorError."""
        envelope = reason = ""
        try:
            envelope = str((await self._public(path)).get("envelope", ""))
        except RefusedError as error:
            # It may be waiting for its first manifest, or for the records that say which one is in force.
            reason = str(error)
        certificate: bytes = getattr(self._pin, "certificate", b"")
        if not certificate:
            raise CoordinatorError(f"{self._url} shows no certificate")
        return Greeting(url=self._url, certificate=certificate, envelope=envelope, reason=reason, ask=self._public)

    async def _public(self, path: str) -> Mapping[str, Any]:
        return await self.call("GET", path, None, GREETING_SECONDS)

    async def call(self, method: str, path: str, body: Mapping[str, Any] | None, seconds: float) -> Mapping[str, Any]:
        """See `Attested.call`."""
        import aiohttp

        limit = aiohttp.ClientTimeout(total=seconds, connect=CONNECT_SECONDS)
        url = f"{self._url}{path}"
        sent = time.time()
        try:
            async with self._session.request(method, url, json=body, timeout=limit, allow_redirects=False) as response:
                self.skew = measured(response.headers.get("Date"), sent, time.time()) or self.skew
                data = await response.content.read(MAX_BODY + 1)
                while len(data) <= MAX_BODY and (more := await response.content.read(MAX_BODY)):
                    data += more
                status = response.status
        except aiohttp.ServerFingerprintMismatch as error:
            raise _LostError(f"{self._url} has another certificate than a moment ago") from error
        except aiohttp.ClientConnectorError as error:
            raise _LostError(f"coordinator {self._url} cannot be reached: {error}") from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _LostError(f"{self._url} does not answer: {str(error) or type(error).__name__}") from error
        return decode_answer(self._url, status, data)

    async def close(self) -> None:
        """Closes them."""
        await self._session.close()


def _pin() -> Fingerprint:
    """Takes the certificate of the first connection for that of all. aiohttp asks it before it sends anything over a
    connection, and verifies no chain.
    """
    return _pin_type()()


@functools.cache
def _pin_type() -> Callable[[], Fingerprint]:
    import aiohttp

    class Pin(aiohttp.Fingerprint):
        def __init__(self) -> None:
            # The length of SHA-256: what a fingerprint must be made of. Nothing is compared with it.
            super().__init__(bytes(32))
            self.certificate = b""

        def check(self, transport: asyncio.Transport) -> None:
            shown = transport.get_extra_info("ssl_object").getpeercert(binary_form=True) or b""
            if self.certificate not in (b"", shown):
                # A connection that is lost already has no name of its other end.
                host, port, *_ = transport.get_extra_info("peername") or ("", 0)
                raise aiohttp.ServerFingerprintMismatch(self.certificate, shown, host, port)
            self.certificate = shown

    return Pin


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
