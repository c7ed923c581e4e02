"""Asks one rendezvous for mappings and relay ports, through the tunnel to it. IO edge."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from random import Random

import aiohttp

from peer import control
from peer.spec import CONTROL_PORT, LinkError, RendezvousPeer
from runtime.backoff import Backoff

log = logging.getLogger(__name__)

_WAIT = 5.0
"""Seconds that a watch asks to be held. Short of the API's limit: a rendezvous that died silently is noticed sooner."""
_SLACK = 2.0
"""Seconds that an answer may take beyond that."""
_CONNECT = 1.5
FORESEEN = (aiohttp.ClientError, LinkError, OSError, TimeoutError)
"""What a rendezvous that is away, or answers nonsense, looks like."""
_RETRY = Backoff(base=0.1, cap=2.0)


class RendezvousWatch:
    """Keeps the newest table of one rendezvous."""

    def __init__(
        self, rendezvous: RendezvousPeer, own_address: str, on_change: Callable[[], None], rng: Random
    ) -> None:
        self.rendezvous = rendezvous
        self.table: control.Table | None = None
        """The newest answer; kept when the rendezvous is lost."""
        self.failing_since: float | None = None
        """Monotonic seconds since when it does not answer; None while it does."""
        self._own_address = own_address
        self._on_change = on_change
        self._rng = rng
        self._asked: dict[str, float] = {}
        self._wanted: set[str] = set()
        self._want = asyncio.Event()

    def want_relay(self, public_key: str) -> None:
        """Asks for a relay port to that peer; the answer shows in the table."""
        # The table shows an answer within milliseconds; asking again sooner would only repeat it.
        now = time.monotonic()
        if now - self._asked.get(public_key, -10.0) < 2.0:
            return
        self._asked[public_key] = now
        self._wanted.add(public_key)
        self._want.set()

    async def watch(self) -> None:
        """Runs for ever: follows the table."""
        attempt = 0
        # From the first question on: a handshake that came before the rendezvous knew our key is lost without a word,
        # and WireGuard by itself tries again after 5 s.
        self.failing_since = time.monotonic()
        async with self._session() as session:
            while True:
                try:
                    table = await self._get(session)
                except Exception as error:
                    if attempt == 0 and not isinstance(error, FORESEEN):
                        log.error("a rendezvous failed in a way that nobody foresaw", exc_info=error)
                    if self.failing_since is None:
                        self.failing_since = time.monotonic()
                    await asyncio.sleep(_RETRY.delay(attempt, self._rng))
                    attempt += 1
                    continue
                attempt, self.failing_since = 0, None
                if table != self.table:
                    self.table = table
                    self._on_change()

    async def ask(self) -> None:
        """Runs for ever: sends the wishes for relays."""
        async with self._session() as session:
            while True:
                await self._want.wait()
                self._want.clear()
                while self._wanted:
                    key = self._wanted.pop()
                    try:
                        await self._post(session, key)
                    except FORESEEN:
                        # Whoever still wants it asks again.
                        continue

    def _session(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=_WAIT + _SLACK, connect=_CONNECT)
        connector = aiohttp.TCPConnector(local_addr=(self._own_address, 0), force_close=False)
        return aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False)

    def _url(self, path: str) -> str:
        return f"http://{self.rendezvous.address}:{CONTROL_PORT}{path}"

    async def _get(self, session: aiohttp.ClientSession) -> control.Table:
        index = self.table.index if self.table is not None else 0
        async with session.get(self._url("/v1/watch"), params={"index": index, "wait": _WAIT}) as answer:
            body = await read_body(answer)
        return control.decode_table(body)

    async def _post(self, session: aiohttp.ClientSession, public_key: str) -> None:
        async with session.post(self._url("/v1/relay"), data=control.encode_relay_request(public_key)) as answer:
            control.decode_relay_answer(await read_body(answer))


async def read_body(answer: aiohttp.ClientResponse) -> bytes:
    """The whole body of a 200 answer, up to MAX_BODY; else LinkError."""
    if answer.status != 200:
        raise LinkError(f"{answer.url.host} answered {answer.status}")
    body = await answer.content.read(control.MAX_BODY)
    while chunk := await answer.content.read(control.MAX_BODY):
        body += chunk
        if len(body) > control.MAX_BODY:
            raise LinkError(f"{answer.url.host} answered with more than {control.MAX_BODY} bytes")
    return body
