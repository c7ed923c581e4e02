"""Shared pytest set-up."""

from __future__ import annotations

import os
import signal
from types import FrameType

import pytest
from hypothesis import settings


def pytest_configure(config: pytest.Config) -> None:
    """Properties are judged by their outcome: a slow or busy machine is no counterexample."""
    settings.register_profile("mesh", deadline=None)
    settings.load_profile("mesh")
    signal.signal(signal.SIGTERM, _interrupt)


_OWN_PID = os.getpid()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    # A process forked from here (pyroute2 does, and ends it so) must not unwind our fixtures.
    if os.getpid() != _OWN_PID:
        os._exit(1)
    # SIGTERM would end Python at once and leave the running meshes behind; an interrupt unwinds the fixtures.
    raise KeyboardInterrupt


LONG = pytest.mark.skip(reason="minutes of bulk transfer: ./mesh test tests/xds -m long")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The end-to-end tests come last, whatever order chance gave: what is cheap to find is found first.

    Those on a Docker engine come together and before the others, so that their engine is gone when the others run.
    Those that are marked `long` are skipped unless `-m` names them.
    """
    if "long" not in str(config.option.markexpr):
        for item in items:
            if item.get_closest_marker("long") is not None:
                item.add_marker(LONG)
    items.sort(key=lambda item: (item.get_closest_marker("e2e") is not None) * (1 + ("compose" not in item.path.parts)))
