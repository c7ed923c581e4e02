"""A lock between processes on one machine, for work that must happen once. Standard library only."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(path: Path, waiting: Callable[[float], None]) -> Iterator[None]:
    """Holds the lock file `path`; while another process has it, calls `waiting(seconds so far)` four times a second.

    The kernel frees the lock when its holder dies, however it dies. OSError when the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        started = time.monotonic()
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting(time.monotonic() - started)
                time.sleep(0.25)
        yield
    finally:
        os.close(descriptor)
