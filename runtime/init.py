"""The duties of PID 1: reap orphans, turn the first SIGTERM or SIGINT into a drain and the second into an abort.

Orphans are told from our own children by time: whoever started a child waits for it and reaps it at once, so a zombie
that is still there after `ORPHAN_SECONDS` belongs to nobody. That needs no registry, and no `waitpid(-1)` that would
steal exit codes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import resource
import signal
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)

ORPHAN_SECONDS = 1.0
"""Age at which a zombie counts as an orphan. Its owner, if it had one, would have reaped it within milliseconds."""
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(slots=True)
class Init:
    """What `install()` set up. `close()` undoes it."""

    drain: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by the first SIGTERM or SIGINT: stop in good order."""
    abort: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by the second: stop now."""
    _sweep: asyncio.TimerHandle | None = None
    _zombies: frozenset[int] = frozenset()

    def close(self) -> None:
        """Gives the signals back to their defaults, and orphans to whoever had them before."""
        loop = asyncio.get_running_loop()
        _adopt_orphans(False)
        for number in (*_SIGNALS, signal.SIGCHLD):
            loop.remove_signal_handler(number)
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def _on_stop(self, number: signal.Signals) -> None:
        log.info(
            "signal received", extra={"signal": number.name, "effect": "abort" if self.drain.is_set() else "drain"}
        )
        (self.abort if self.drain.is_set() else self.drain).set()

    def _on_child(self) -> None:
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(ORPHAN_SECONDS, self._reap)

    def _reap(self) -> None:
        """Reaps the zombies that were there one sweep ago; looks again while there are younger ones."""
        self._sweep = None
        seen = zombies()
        for pid in seen & self._zombies:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        self._zombies = seen - self._zombies
        if self._zombies:
            self._on_child()


def install() -> Init:
    """Installs the handlers on the running loop (main thread) and makes this process the reaper of its descendants."""
    init = Init()
    loop = asyncio.get_running_loop()
    # As PID 1 orphans come to us anyway; elsewhere (lab, tests) this makes it so.
    _adopt_orphans(True)
    _raise_descriptor_limit()
    for number in _SIGNALS:
        loop.add_signal_handler(number, init._on_stop, number)
    loop.add_signal_handler(signal.SIGCHLD, init._on_child)
    return init


def _raise_descriptor_limit() -> None:
    """Takes as many descriptors as we may: Envoy, our child, needs two a connection; many systems start with 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _adopt_orphans(yes: bool) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)


def zombies() -> frozenset[int]:
    """PIDs of our children that have ended and that nobody has reaped."""
    return frozenset(pid for pid in _children() if _state(pid) == "Z")


def _children() -> set[int]:
    found: set[int] = set()
    try:
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.update(map(int, (task / "children").read_text().split()))
        if found:
            return found
    except OSError:
        pass
    # A kernel without CONFIG_PROC_CHILDREN: look at everyone's parent.
    me = str(os.getpid())
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if len(fields) > 1 and fields[1] == me:
                found.add(int(entry.name))
    return found


def _state(pid: int) -> str:
    return next(iter(_stat(pid)), "")


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the command (which may hold spaces and parentheses): state, parent, ..."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
