"""Looks at the link for lost peers and for peers that have restarted, and has the kernel reset connections to them.
`sidecar.lost` decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from peer import half_open_ends
from peer.link import Contact
from sidecar import lost
from sidecar.desired import World
from sidecar.lost import Watched
from sidecar.refusing import Refusing

log = logging.getLogger(__name__)


class Link(Protocol):
    """What `sidecar.link.Link` does."""

    def on_return(self, call: Callable[[], None]) -> None:
        """Has `call` called when a peer is heard again after a silence or restarts, and when a peer comes or goes."""

    def contacts(self) -> tuple[Contact, ...]:
        """When every peer was heard."""


class Losing:
    """The lost peers of one CVM."""

    def __init__(
        self,
        world: Callable[[], World],
        refusing: Refusing,
        clock: Callable[[], float] = time.monotonic,
        end_half_open: Callable[[frozenset[str]], int] = half_open_ends.end,
    ) -> None:
        """`world` gives what is known now, `clock` the monotonic seconds by which the link says when it heard whom.
        `end_half_open` has the half-open connections to mesh addresses end.
        """
        self._end_half_open = end_half_open
        self._boots: Mapping[str, lost.Boot] = {}
        self._clock = clock
        self._world = world
        self._refusing = refusing
        self._watched: Mapping[str, Watched] = {}

    @property
    def keys(self) -> frozenset[str]:
        """Public keys of the lost peers."""
        return frozenset(one.contact.public_key for one in self._watched.values() if one.lost)

    async def run(self, link: Link) -> None:
        """Looks until cancelled: regularly, and at once when somebody is heard again."""
        wake = asyncio.Event()
        link.on_return(wake.set)
        done = True
        while True:
            wake.clear()
            world, before = self._world(), lost.addresses(self._watched)
            listed = lost.listed(world.catalog, world.held)
            contacts = link.contacts()
            self._watched = lost.watch(self._watched, contacts, listed, self._clock())
            await self._look_for_restarts(contacts)
            now = lost.addresses(self._watched)
            if now != before:
                log.warning("lost peers", extra={"lost": sorted(now - before), "back": sorted(before - now)})
            if now != before or not done:
                await self._refusing.lose(now)
                # What the kernel did not take is tried again: a peer that is back must not stay cut off.
                done = self._refusing.problem is None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(lost.LOOK_SECONDS):
                    await wake.wait()

    async def _look_for_restarts(self, contacts: tuple[Contact, ...]) -> None:
        before, self._boots = self._boots, lost.boots(self._boots, contacts)
        restarted = frozenset(address for address, boot in before.items() if self._boots.get(address, boot) != boot)
        if not restarted:
            return
        try:
            # In a thread: it reads the table of all connections.
            count = await asyncio.to_thread(self._end_half_open, restarted)
        except OSError as error:
            log.warning("half-open connections stay until a keep-alive ends them", extra={"reason": str(error)})
        else:
            log.info("peers have restarted", extra={"peers": sorted(restarted), "connections": count})
