"""The one place that starts asyncio tasks.

Every task has a name and an owner: the scope that it was started in. The first task that fails cancels its siblings and
is the error that leaves the scope (asyncio.TaskGroup's rule).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class TaskScope:
    """An `async with` block that owns the tasks started in it."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._group.__aexit__(kind, error, trace)

    def start(self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Starts `work` as a task called `name`. The task may be cancelled by its holder; the scope then goes on."""
        return self._group.create_task(work, name=name)
