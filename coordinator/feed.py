"""The feed of admitted keys that the rendezvous polls, and the wait for it to have caught up.

A sidecar's first packet to a rendezvous that does not know its key yet is lost, and WireGuard tries again only after
5 s; so an admission is answered once a rendezvous has applied the key, or after WAIT_SECONDS.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from admission.protocol import MeshPeer

POLL_SECONDS = 25.0
"""A long poll is answered after this at the latest; below the idle limits of common proxies (30 s and more)."""
WAIT_SECONDS = 1.0
"""An admission waits no longer than this for a rendezvous."""
MAX_POLLS = 64
"""That wait at once. A mesh has a rendezvous or two with a poll each, but anybody may ask: one more ends the oldest."""
LATELY_SECONDS = POLL_SECONDS + 5.0
"""A rendezvous that has not asked for so long is gone, and nobody waits for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """One answer: all admitted peers as of `version`."""

    version: int
    peers: tuple[MeshPeer, ...]


class Feed:
    """Versions of the set of peers. `first_version` must be greater than any of an earlier process: milliseconds of
    the clock will do.
    """

    def __init__(self, first_version: int, clock: Callable[[], float]) -> None:
        self._version = first_version
        self._first = first_version
        self._peers: tuple[MeshPeer, ...] = ()
        self._clock = clock
        self._seen = 0
        self._polled_at: float | None = None
        self._news = asyncio.Event()
        self._polls: dict[asyncio.Timeout, None] = {}
        """Those that wait, oldest first."""

    @property
    def version(self) -> int:
        """The version of the newest set."""
        return self._version

    def publish(self, peers: tuple[MeshPeer, ...]) -> None:
        """Makes `peers` the newest set and wakes whoever waits for news."""
        if peers != self._peers:
            self._peers = peers
            self._version += 1
            self._wake()

    def announce(self) -> None:
        """Wakes whoever waits for news: there are some, beside the set."""
        self._version += 1
        self._wake()

    async def poll(self, seen: int, wait: float = POLL_SECONDS) -> Keys:
        """The newest set, as soon as its version is not `seen` (what the caller has applied), else after `wait`
        seconds, or when there are too many who wait. Each answer is whole, so nobody misses anything by that.
        """
        self._note(seen)
        if len(self._polls) >= MAX_POLLS:
            oldest = next(iter(self._polls))
            del self._polls[oldest]
            if not oldest.expired():
                oldest.reschedule(0.0)
        limit = asyncio.timeout(wait)
        self._polls[limit] = None
        try:
            await self._until(lambda: self._version != seen, limit)
        finally:
            self._polls.pop(limit, None)
            self._polled_at = self._clock()
        return Keys(version=self._version, peers=self._peers)

    async def applied(self, version: int, wait: float = WAIT_SECONDS) -> bool:
        """Waits until a rendezvous has applied `version`; False after `wait` seconds, and at once when none has
        polled lately.
        """
        if not self._polls and (self._polled_at is None or self._clock() - self._polled_at > LATELY_SECONDS):
            return False
        return await self._until(lambda: self._seen >= version, asyncio.timeout(wait))

    def _note(self, seen: int) -> None:
        # A version of an earlier process, or an invented one, says nothing about ours.
        if self._first <= seen <= self._version and seen > self._seen:
            self._seen = seen
            self._wake()

    def _wake(self) -> None:
        # Each waiter holds the event that it began to wait on; setting it once and replacing it loses no wake-up.
        self._news.set()
        self._news = asyncio.Event()

    async def _until(self, condition: Callable[[], bool], limit: asyncio.Timeout) -> bool:
        try:
            async with limit:
                while not condition():
                    await self._news.wait()
        except TimeoutError:
            return False
        return True
