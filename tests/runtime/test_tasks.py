from __future__ import annotations

import asyncio

import pytest

from runtime.tasks import TaskScope


async def test_first_failure_cancels_siblings_and_leaves_the_scope() -> None:
    """A failing task ends its siblings; its error comes out as the scope's."""
    cancelled = asyncio.Event()

    async def sibling() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()

    async def failing() -> None:
        await asyncio.sleep(0)
        raise ValueError("first")

    async def both() -> None:
        async with TaskScope() as scope:
            scope.start("sibling", sibling())
            scope.start("failing", failing())

    with pytest.raises(ExceptionGroup) as caught:
        await both()
    assert [str(error) for error in caught.value.exceptions] == ["first"]
    assert cancelled.is_set()


async def test_tasks_are_named_and_may_be_cancelled_by_their_holder() -> None:
    """Cancelling one task leaves the scope and the others alone."""
    async with TaskScope() as scope:
        task = scope.start("doomed", asyncio.sleep(3600))
        other = scope.start("other", asyncio.sleep(0, "done"))
        assert task.get_name() == "doomed"
        task.cancel()
    assert task.cancelled()
    assert other.result() == "done"
