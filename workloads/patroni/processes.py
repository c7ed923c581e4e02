"""Patroni and all that it starts, as processes: one start, exits as they happen, and a death that is certain. IO.

The supervisor is the reaper of everything below it. PostgreSQL's first process detaches from Patroni, so it becomes our
own child; when there is no child left, there is no PostgreSQL left: that is what `clear` waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

log = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_SWEEP_SECONDS = 0.005
_PATIENCE_SECONDS = 5.0
"""After so long, a process that does not die is worth a line in the log."""


class NoListsError(Exception):
    """This kernel does not tell whose children are whose."""


class Processes:
    """Runs one program at a time. `on_orphan(pid)`: called for each exit of another child."""

    def __init__(self, on_orphan: Callable[[int], None]) -> None:
        self._on_orphan = on_orphan
        self._pid: int | None = None
        self._ended = asyncio.Event()
        self.last_exit = ""

    def __enter__(self) -> Processes:
        _adopt_orphans(True)
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)
        _adopt_orphans(False)

    def start(self, argv: tuple[str, ...], env: Mapping[str, str], descriptors: tuple[int, ...] = ()) -> int:
        """Starts the program in a session of its own, with open `descriptors` under their numbers; returns its PID."""
        self._ended.clear()
        # Not waited for through this object: every exit is reaped by `reap`.
        process = subprocess.Popen(
            argv, env=dict(env), stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=descriptors
        )
        self._pid = process.pid
        process.returncode = 0
        return process.pid

    @property
    def running(self) -> bool:
        """Whether the program runs."""
        return self._pid is not None

    async def ended(self) -> None:
        """Returns when the program has ended and is reaped."""
        await self._ended.wait()

    def signal(self, number: signal.Signals) -> None:
        """Signals the program, if it runs."""
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)

    def reap(self) -> None:
        """Takes note of every child that has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._pid:
                self._pid = None
                code = os.waitstatus_to_exitcode(status)
                self.last_exit = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
                self._ended.set()
            else:
                self._on_orphan(pid)

    async def clear(self) -> None:
        """Kills everything below us and returns once nothing is left: no process, hence no write of any of them."""
        loop = asyncio.get_running_loop()
        began, told = loop.time(), False
        while True:
            for pid in descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.reap()
            if not _has_children():
                return
            if not told and loop.time() - began > _PATIENCE_SECONDS:
                told = True
                log.warning("a killed process does not end; the leader key is kept until it has")
            await asyncio.sleep(_SWEEP_SECONDS)


def descendants(pid: int) -> list[int]:
    """Everything below a process, parents before their children.

    By the kernel's lists of children, where it has them (CONFIG_PROC_CHILDREN): a look at every process there is takes
    10 ms of a processor that those who are to die need as well.
    """
    found, new = [], [pid]
    try:
        while new:
            found += new
            new = [child for parent in new for child in _children(parent)]
    except NoListsError:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return found[1:]


def _children(pid: int) -> list[int]:
    """Of a process, which may have ended by now."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += _of_task(task)
    return found


def _of_task(task: Path) -> list[int]:
    try:
        return [int(child) for child in (task / "children").read_text(encoding="ascii").split()]
    except FileNotFoundError:
        if task.exists():
            raise NoListsError from None
        return []


def end_predecessor(data: Path) -> bool:
    """Kills a PostgreSQL that an earlier supervisor left running on `data`; whether there was one."""
    pid = postmaster_pid(data)
    if pid is None:
        return False
    try:
        process = psutil.Process(pid)
        # PostgreSQL's first process works in its data directory: what else may have the number now does not.
        if Path(process.cwd()) != data.resolve():
            return False
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return False
    for member in family:
        with contextlib.suppress(psutil.Error):
            member.kill()
    psutil.wait_procs(family, timeout=_PATIENCE_SECONDS)
    return True


def postmaster_pid(data: Path) -> int | None:
    """The PID in `postmaster.pid`: there while PostgreSQL runs, and left behind by one that was killed."""
    try:
        return int((data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").split("\n", 1)[0])
    except (OSError, ValueError):
        return None


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _adopt_orphans(yes: bool) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)
