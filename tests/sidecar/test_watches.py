from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from runtime.backoff import Backoff
from runtime.consul import ConsulError
from runtime.tasks import TaskScope
from sidecar import watches
from sidecar.catalog import CatalogError
from sidecar.sources import Query
from sidecar.watches import Apply, Watches
from tests.support import eventually

ROOTS, LEAF = Query(path="/roots"), Query(path="/leaf")


class FakeConsul:
    """Answers blocking queries from a script: `say` gives the next answer or failure of a path."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self._scripts: dict[str, asyncio.Queue[Any]] = {}

    def say(self, path: str, answer: Any) -> None:
        self._scripts.setdefault(path, asyncio.Queue()).put_nowait(answer)

    async def get(self, path: str, *, index: int, wait: float, params: Mapping[str, str]) -> tuple[int, Any]:
        assert wait > 0
        assert params == {}
        self.asked.append((path, index))
        answer = await self._scripts.setdefault(path, asyncio.Queue()).get()
        if isinstance(answer, Exception):
            raise answer
        return len(self.asked), answer


def note(seen: list[Any]) -> Apply:
    """A taker that keeps the answers."""
    return lambda tree, _: seen.append(tree)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "AGAIN", Backoff(base=0.001, cap=0.002))


async def test_each_answer_is_applied_and_blocks_on_its_index() -> None:
    """The first call does not block; later ones carry the index of the answer before."""
    consul, seen = FakeConsul(), []
    async with TaskScope() as scope:
        kept = Watches(consul, scope)  # type: ignore[arg-type]
        kept.keep({ROOTS: note(seen)})
        consul.say("/roots", "one")
        consul.say("/roots", "two")
        await eventually(lambda: seen == ["one", "two"], "both answers")
        await eventually(lambda: consul.asked == [("/roots", 0), ("/roots", 1), ("/roots", 2)], "indexes")
        assert kept.stale() == ()
        kept.keep({})


async def test_each_answer_comes_with_its_index() -> None:
    """What it says may depend on whether the servers know less than before."""
    consul, seen = FakeConsul(), []
    async with TaskScope() as scope:
        kept = Watches(consul, scope)  # type: ignore[arg-type]
        kept.keep({ROOTS: lambda tree, index: seen.append((tree, index))})
        consul.say("/roots", "one")
        consul.say("/roots", "two")
        await eventually(lambda: seen == [("one", 1), ("two", 2)], "both answers")
        kept.keep({})


async def test_failure_keeps_the_last_answer_and_starts_over_without_index() -> None:
    """An agent that went away counts anew; until it answers, the path is named as stale."""
    consul, seen = FakeConsul(), []
    async with TaskScope() as scope:
        kept = Watches(consul, scope)  # type: ignore[arg-type]
        kept.keep({ROOTS: note(seen)})
        consul.say("/roots", "one")
        consul.say("/roots", ConsulError(0, "refused"))
        consul.say("/roots", ConsulError(500, "no leader"))
        await eventually(lambda: len(consul.asked) == 4, "asked again")
        assert seen == ["one"]
        assert kept.stale() == ("/roots",)
        assert [index for _, index in consul.asked] == [0, 1, 0, 0]
        consul.say("/roots", "back")
        await eventually(lambda: kept.stale() == (), "fresh")
        assert seen == ["one", "back"]
        kept.keep({})


async def test_answer_that_does_not_fit_is_a_failure() -> None:
    """A CatalogError from the taker is handled like a failed call."""
    consul, seen = FakeConsul(), []

    def take(tree: Any, _: int) -> None:
        if tree == "bad":
            raise CatalogError("bad")
        seen.append(tree)

    async with TaskScope() as scope:
        kept = Watches(consul, scope)  # type: ignore[arg-type]
        kept.keep({ROOTS: take})
        consul.say("/roots", "bad")
        consul.say("/roots", "good")
        await eventually(lambda: seen == ["good"], "recovered")
        kept.keep({})


async def test_set_changes_leave_the_others_running() -> None:
    """A watch that stays is not asked anew; one that goes ends, one that comes begins."""
    consul, seen = FakeConsul(), []
    async with TaskScope() as scope:
        kept = Watches(consul, scope)  # type: ignore[arg-type]
        kept.keep({ROOTS: note(seen)})
        await eventually(lambda: len(consul.asked) == 1, "roots asked")
        kept.keep({ROOTS: note(seen), LEAF: note(seen)})
        await eventually(lambda: len(consul.asked) == 2, "leaf asked")
        kept.keep({LEAF: note(seen)})
        consul.say("/roots", "gone")
        consul.say("/leaf", "here")
        await eventually(lambda: seen == ["here"], "only the leaf")
        assert [path for path, _ in consul.asked[:2]] == ["/roots", "/leaf"]
        kept.keep({})
