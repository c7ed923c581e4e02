"""Blocking queries on the local agent: each answer is handed over at once; nothing is polled or waits for a timer.

A watch that fails keeps the last answer, tries again soon, and starts over without an index: a restarted agent counts
anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from runtime.backoff import Backoff
from runtime.consul import ConsulClient, ConsulError
from runtime.tasks import TaskScope
from sidecar.catalog import CatalogError
from sidecar.sources import Query

log = logging.getLogger(__name__)

AGAIN = Backoff(base=0.05, cap=1.0)
"""Between failures. The cap bounds how late changes are seen after the agent or the servers came back."""
WAIT_SECONDS = 300.0
TURNS = 3
"""Of the event loop, from an answer to the next question: whoever carries out what it says goes first, and whoever then
tells Envoy (`sidecar.effects`)."""


Apply = Callable[[Any, int], None]
"""(answer, its index)."""


@dataclass(slots=True)
class _Running:
    task: asyncio.Task[None]
    fresh: bool = False


@dataclass(slots=True)
class Watches:
    """A changing set of watches."""

    consul: ConsulClient
    scope: TaskScope
    rng: Random = field(default_factory=Random)
    on_failure: Callable[[ConsulError | CatalogError], None] = lambda _: None
    """Called after each failed call."""
    _running: dict[Query, _Running] = field(default_factory=dict)

    def keep(self, wanted: Mapping[Query, Apply]) -> None:
        """Makes `wanted` the set of watches. One that runs goes on undisturbed, with the `Apply` that it began with."""
        for query in self._running.keys() - wanted.keys():
            self._running.pop(query).task.cancel()
        for query, apply in wanted.items():
            if query not in self._running:
                self._running[query] = _Running(self.scope.start(f"watch {query.path}", self._watch(query, apply)))

    def stale(self) -> tuple[str, ...]:
        """Paths whose last call failed, or that were never answered."""
        return tuple(sorted(query.path for query, running in self._running.items() if not running.fresh))

    async def _watch(self, query: Query, apply: Apply) -> None:
        index, failures = 0, 0
        while True:
            try:
                index, tree = await self.consul.get(
                    query.path, index=index, wait=WAIT_SECONDS, params=dict(query.params)
                )
                apply(tree, index)
                for _ in range(TURNS):
                    await asyncio.sleep(0)
            except (ConsulError, CatalogError) as error:
                self._mark(query, fresh=False)
                self.on_failure(error)
                level = logging.INFO if failures == 0 else logging.DEBUG
                log.log(level, "watch interrupted", extra={"path": query.path, "reason": str(error)})
                await asyncio.sleep(AGAIN.delay(failures, self.rng))
                index, failures = 0, failures + 1
            else:
                self._mark(query, fresh=True)
                failures = 0

    def _mark(self, query: Query, *, fresh: bool) -> None:
        if query in self._running:
            self._running[query].fresh = fresh
