"""When the kernel resets connections: those to a route from before Envoy hears that nobody is behind it, until after
Envoy has an endpoint again; those to a peer while it is lost (`sidecar.lost` decides that). And what it keeps out of
this CVM from the start on, before there is a tunnel.

Envoy closes a connection that it accepted for a route without endpoints, so at both edges the refusal outlasts
the empty route: what comes in between is refused, as at a closed port, rather than accepted and closed.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from vip.filter import Filter
from vip.nftables import RefusalError
from vip.resets import Refusal
from vip.table import Wanted

log = logging.getLogger(__name__)


class Table(Protocol):
    """What `vip.nftables.RefusalTable` does."""

    def apply(self, wanted: Wanted) -> None:
        """Makes the table do `wanted`; RefusalError when that cannot be."""

    def remove(self) -> None:
        """Ends all of it; RefusalError when that cannot be."""


class Refusing:
    """The refusals of one CVM. Its methods may be awaited by several tasks at once."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._lock = asyncio.Lock()
        self._now = Wanted()
        """What the kernel was told."""
        self._version = ""
        self._then: frozenset[Refusal] = frozenset()
        """What still refuses them once Envoy has snapshot `_version`."""
        self.problem: str | None = None
        """Why nothing can be reset or kept out; connections to a route without endpoints are then accepted and closed,
        those to a lost peer end as if they were complete, and every port answers the whole mesh."""

    async def begin(self, refused: frozenset[Refusal], packets: Filter | None = None) -> None:
        """Refuses connections to `refused` too, and lets in by the mesh what `packets` has and nothing else; None: what
        it had. To be called before Envoy hears that nobody is behind them. Connections that are held go on.
        """
        async with self._lock:
            self._then |= refused
            wanted = self._refusing(self._now.resets.refused | refused)
            await self._make(wanted if packets is None else wanted._replace(filter=packets))

    def published(self, version: str, refused: frozenset[Refusal]) -> bool:
        """Notes that snapshot `version` was given to Envoy, in which nobody is behind `refused` and somebody behind all
        others. Whether `envoy_has` has anything to lift for it that was not said before.
        """
        said = (self._version, self._then)
        self._version, self._then = version, refused
        return said != (version, refused) and self._now.resets.refused != refused

    async def envoy_has(self, version: str) -> None:
        """Lifts the refusals of routes that have endpoints in snapshot `version`. One that is not the newest lifts
        nothing: the newest will.
        """
        async with self._lock:
            if version == self._version:
                await self._make(self._refusing(self._then))

    async def lose(self, lost: frozenset[str]) -> None:
        """Makes `lost` (mesh addresses) the peers to which every TCP packet is answered with a reset."""
        async with self._lock:
            await self._make(self._now._replace(resets=self._now.resets._replace(lost=lost)))

    async def stop(self) -> None:
        """Ends all refusals and resets, and keeps nothing out any more."""
        async with self._lock:
            try:
                await asyncio.to_thread(self._table.remove)
            except RefusalError as error:
                # Said before, where nothing could be refused.
                if self.problem is None:
                    log.warning("refusals stay", extra={"reason": str(error)})
            self._now = Wanted()

    def _refusing(self, refused: frozenset[Refusal]) -> Wanted:
        return self._now._replace(resets=self._now.resets._replace(refused=refused))

    async def _make(self, wanted: Wanted) -> None:
        """Tried again at each call after a failure: a refusal that could not be lifted must not stay."""
        if wanted == self._now and self.problem is None:
            return
        try:
            # In a thread: the kernel may wait for others who change its tables.
            await asyncio.to_thread(self._table.apply, wanted)
        except RefusalError as error:
            if self.problem != str(error):
                log.warning("connections are not reset or kept out", extra={"reason": str(error)})
            self.problem = str(error)
        else:
            self.problem = None
        self._now = wanted
