"""The guard between Patroni's daemon and the memory."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any, cast

import pytest

from workloads.patroni.memory import Memory

importlib.import_module("patroni.postgresql")
remembering = importlib.import_module("workloads.patroni.remembering")
DCSError = importlib.import_module("patroni.exceptions").DCSError


class Failing:
    """A memory that cannot say."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def may_lead(self) -> bool:
        raise self._error

    may_initialize = won = may_lead


def ask(error: Exception) -> list[bool]:
    """What the guard says."""
    guard: Any = remembering.MemoryGuard(cast("Memory", Failing(error)), "p0")
    return [guard.may_lead(None), guard.may_initialize(None), guard.won()]


def test_what_cannot_be_found_out_is_not_allowed() -> None:
    """A disk that refuses, or a PostgreSQL that does not answer: nobody leads by it."""
    assert ask(OSError("disk")) == [False] * 3
    assert ask(RuntimeError("x")) == [False] * 3


def test_leader_names_its_cluster_without_a_question() -> None:
    """Who holds the leader key was allowed to lead: nobody is asked again, for a promotion waits."""
    guard: Any = remembering.MemoryGuard(cast("Memory", Failing(OSError("asked"))), "p0")
    cluster = SimpleNamespace(leader=SimpleNamespace(name="p0"))
    assert guard.may_initialize(cluster)
    assert not guard.may_initialize(SimpleNamespace(leader=SimpleNamespace(name="p1")))
    assert not guard.may_initialize(SimpleNamespace(leader=None))


def test_consul_that_does_not_answer_is_patronis_to_handle() -> None:
    """Failsafe mode decides then, not the guard."""
    with pytest.raises(DCSError):
        ask(DCSError("away"))
