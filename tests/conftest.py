"""Shared pytest set-up."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

import psutil
import pytest
from hypothesis import settings


def pytest_configure(config: pytest.Config) -> None:
    """Properties are judged by their outcome: a slow or busy machine is no counterexample."""
    settings.register_profile("mesh", deadline=None)
    settings.load_profile("mesh")
    signal.signal(signal.SIGTERM, _interrupt)
    if hasattr(config, "workerinput"):
        # The terminal interrupts all processes at once; workers wait for the word of `pytest_sessionfinish` below.
        signal.signal(signal.SIGINT, _nothing)
        signal.signal(signal.SIGTERM, _interrupt_once)
        # xdist gives its workers the width of the terminal; the tests are for output to a file unless they say so.
        os.environ.pop("COLUMNS", None)


_OWN_PID = os.getpid()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    # A process forked from here (pyroute2 does, and ends it so) must not unwind our fixtures.
    if os.getpid() != _OWN_PID:
        os._exit(1)
    # SIGTERM would end Python at once and leave the running meshes behind; an interrupt unwinds the fixtures.
    raise KeyboardInterrupt


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    if os.getpid() == _OWN_PID:
        _interrupts.append(number)
        signal.signal(signal.SIGTERM, _nothing)
    _interrupt(number, frame)


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """A handler, where to ignore the signal would be inherited by the programs that fixtures start to clean up."""


_interrupts: list[int] = []
"""The signal that interrupted this worker; empty when there was none."""


def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends an interrupted worker once its fixtures are unwound: it would wait for more tests."""
    if _interrupts:
        os._exit(128 + _interrupts[0])


UNWIND_SECONDS = 180.0
"""For the workers of an interrupted run: a mesh on a Docker engine takes a minute or two to go."""


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Interrupts the workers too and waits for them: xdist would kill them, and what their tests started would stay."""
    if exitstatus == pytest.ExitCode.INTERRUPTED and session.config.getoption("numprocesses", None):
        workers = psutil.Process().children()
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
        psutil.wait_procs(workers, timeout=UNWIND_SECONDS)


LONG = pytest.mark.skip(reason="takes minutes: ./mesh test FILE -m long")
COMPOSE = "compose"
"""Group of the tests on a Docker engine: they share one engine, its images and a mesh."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Gives whole files to the workers, and the tests on a Docker engine to one of them.

    Not by `xdist_group`, which pytest-xdist 3.8 cannot read with pytest 9.2: it sets `_nodeid`, which is gone.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduler(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return COMPOSE if nodeid.startswith("tests/compose/") else str(super()._split_scope(nodeid))

    return Scheduler(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Gives the order in which tests start.

    The tests on a Docker engine are the longest group, so they start first. The end-to-end tests come last, those
    that take minutes first among them: what is cheap to find is found early, and the workers end at about one time.
    Tests that are marked `long` are skipped unless `-m` names them.
    """
    for item in items:
        if "long" not in str(config.option.markexpr) and item.get_closest_marker("long") is not None:
            item.add_marker(LONG)
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> tuple[int, float]:
    if "compose" in item.path.parts:
        return (0, 0)
    if item.get_closest_marker("e2e") is None:
        return (1, 0)
    timeout = item.get_closest_marker("timeout")
    return (2, -float(timeout.args[0]) if timeout is not None else 0)
