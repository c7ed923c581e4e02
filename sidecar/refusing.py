"""When the kernel resets connections: those to a route from before Envoy hears that nobody is behind it, until after
Envoy has an endpoint again; those to a peer while it is lost (`sidecar.lost` decides that).

Envoy closes a connection that it accepted for a route without endpoints, so at both edges the refusal outlasts
the empty route: what comes in between is refused, as at a closed port, rather than accepted and closed.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from vip.nftables import RefusalError
from vip.resets import Refusal, Resets

log = logging.getLogger(__name__)


class Table(Protocol):
    """What `vip.nftables.RefusalTable` does."""

    def apply(self, wanted: Resets) -> None:
        """Makes `wanted` what is reset; RefusalError when that cannot be."""

    def remove(self) -> None:
        """Ends all of it; RefusalError when that cannot be."""


class Refusing:
    """The refusals of one CVM. Its methods may be awaited by several tasks at once."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._lock = asyncio.Lock()
        self._now: frozenset[Refusal] = frozenset()
        """What refuses connections."""
        self._lost: frozenset[str] = frozenset()
        """Mesh addresses of lost peers."""
        self._version = ""
        self._then: frozenset[Refusal] = frozenset()
        """What still refuses them once Envoy has snapshot `_version`."""
        self.problem: str | None = None
        """Why nothing can be reset; connections to a route without endpoints are then accepted and closed, and those
        to a lost peer end as if they were complete."""

    async def begin(self, refused: frozenset[Refusal]) -> None:
        """Refuses connections to `refused` too. To be called before Envoy hears that nobody is behind them."""
        async with self._lock:
            self._then |= refused
            await self._make(self._now | refused, self._lost)

    def published(self, version: str, refused: frozenset[Refusal]) -> bool:
        """Notes that snapshot `version` was given to Envoy, in which nobody is behind `refused` and somebody behind all
        others. Whether `envoy_has` has anything to lift for it that was not said before.
        """
        said = (self._version, self._then)
        self._version, self._then = version, refused
        return said != (version, refused) and self._now != refused

    async def envoy_has(self, version: str) -> None:
        """Lifts the refusals of routes that have endpoints in snapshot `version`. One that is not the newest lifts
        nothing: the newest will.
        """
        async with self._lock:
            if version == self._version:
                await self._make(self._then, self._lost)

    async def lose(self, lost: frozenset[str]) -> None:
        """Makes `lost` (mesh addresses) the peers to which every TCP packet is answered with a reset."""
        async with self._lock:
            await self._make(self._now, lost)

    async def stop(self) -> None:
        """Ends all refusals and resets."""
        async with self._lock:
            try:
                await asyncio.to_thread(self._table.remove)
            except RefusalError as error:
                # Said before, where nothing could be refused.
                if self.problem is None:
                    log.warning("refusals stay", extra={"reason": str(error)})
            self._now, self._lost = frozenset(), frozenset()

    async def _make(self, refused: frozenset[Refusal], lost: frozenset[str]) -> None:
        """Tried again at each call after a failure: a refusal that could not be lifted must not stay."""
        if (refused, lost) == (self._now, self._lost) and self.problem is None:
            return
        try:
            # In a thread: the kernel may wait for others who change its tables.
            await asyncio.to_thread(self._table.apply, Resets(refused, lost))
        except RefusalError as error:
            if self.problem != str(error):
                log.warning("connections are not reset", extra={"reason": str(error)})
            self.problem = str(error)
        else:
            self.problem = None
        self._now, self._lost = refused, lost
