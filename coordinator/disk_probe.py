"""Whether the disk still takes writes: a small one each second, in a thread, because a disk may hang without end.
IO: threads, through the disk.

Consul does not find that out. Its leader's heartbeats need no disk, so it keeps the lead and finishes no write
(hashicorp/raft#503): nobody can take a lock, and a database whose leader dies stays without one. So a server on a disk
that hangs counts as hung itself, and is replaced; another one leads meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

PAUSE_SECONDS = 1.0
"""Between two writes."""
HANGS_SECONDS = 3.0
"""Of one write, after which the disk hangs. Writes of a busy disk take well below a second."""


class Disk(Protocol):
    """What `coordinator.disk.Disk` does."""

    @property
    def folder(self) -> str:
        """The data folder."""
        ...

    def settle(self) -> None:
        """Writes durably what is to be kept, at least a mark. OSError. May take for ever."""


class DiskProbe:
    """Looks at `disk` while `run` runs. `clock` gives monotonic seconds."""

    def __init__(self, disk: Disk, clock: Callable[[], float] = time.monotonic) -> None:
        self._disk = disk
        self._clock = clock
        self._began: float | None = None
        """When the write that is under way began; None between two."""
        self._failed: OSError | None = None

    def hangs(self) -> bool:
        """Whether the write under way takes too long."""
        return self._began is not None and self._clock() - self._began > HANGS_SECONDS

    @property
    def problem(self) -> str | None:
        """Why the disk takes no writes; None when it does."""
        if self.hangs():
            return f"the disk of {self._disk.folder} hangs: a write is not done after {HANGS_SECONDS:g} s"
        if self._failed is not None:
            return f"the disk of {self._disk.folder} takes no writes: {self._failed.strerror or self._failed}"
        return None

    async def run(self) -> None:
        """Until cancelled. A write that hangs goes on in its thread; it ends with the disk's next word."""
        while True:
            self._began = self._clock()
            try:
                await asyncio.to_thread(self._disk.settle)
                self._failed = None
            except OSError as error:
                self._failed = error
            finally:
                self._began = None
            await asyncio.sleep(PAUSE_SECONDS)
