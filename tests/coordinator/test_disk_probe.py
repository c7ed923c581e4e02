"""A disk that takes no writes: what is said of it, and when."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from coordinator.disk_probe import HANGS_SECONDS, DiskProbe
from runtime.tasks import TaskScope
from tests.support import eventually


class FakeDisk:
    """A disk that hangs while `free` is not set, and fails with `fails`."""

    folder = "/mesh-data"

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.fails: OSError | None = None
        self.writes = 0
        self.entered = 0

    def settle(self) -> None:
        """One write."""
        self.entered += 1
        self.free.wait()
        if self.fails is not None:
            raise self.fails
        self.writes += 1


class World:
    """A probe that runs, and its clock."""

    def __init__(self) -> None:
        self.disk = FakeDisk()
        self.now = 100.0
        self.probe = DiskProbe(self.disk, lambda: self.now)


@asynccontextmanager
async def probing() -> AsyncIterator[World]:
    """For the block. The disk is free at its end."""
    world = World()
    async with TaskScope() as scope:
        task = scope.start("probe", world.probe.run())
        try:
            await eventually(lambda: world.disk.writes > 0, "a write is done")
            yield world
        finally:
            world.disk.free.set()
            task.cancel()


async def test_a_disk_that_takes_writes_has_no_problem() -> None:
    """However long ago the last one was."""
    async with probing() as world:
        assert (world.probe.problem, world.probe.hangs()) == (None, False)
        await eventually(lambda: world.disk.writes > 1, "there is a next one")
        assert world.probe.problem is None


async def test_a_disk_hangs_while_one_write_is_not_done() -> None:
    """It is said after some seconds, the loop goes on meanwhile, and it ends by itself."""
    async with probing() as world:
        world.disk.free.clear()
        done = world.disk.writes
        await eventually(lambda: world.disk.entered > done, "a write is under way")
        world.now += HANGS_SECONDS
        assert (world.probe.problem, world.probe.hangs()) == (None, False)
        world.now += 0.1
        assert world.probe.hangs()
        assert world.probe.problem == "the disk of /mesh-data hangs: a write is not done after 3 s"
        world.disk.free.set()
        await eventually(lambda: world.probe.problem is None, "the disk is back")


async def test_a_disk_that_fails_is_named_with_the_kernels_words() -> None:
    """As one that the kernel made read-only after an error, which the mount's flags do not tell."""
    async with probing() as world:
        world.disk.fails = OSError(errno.EROFS, os.strerror(errno.EROFS))
        await eventually(lambda: world.probe.problem is not None, "it is said")
        assert world.probe.problem == "the disk of /mesh-data takes no writes: Read-only file system"
        assert not world.probe.hangs(), "Consul says so itself, and ends"
        world.disk.fails = None
        await eventually(lambda: world.probe.problem is None, "the disk is mended")
