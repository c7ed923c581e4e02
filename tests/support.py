"""What many tests need: the real tools, private network namespaces, bounded waits."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def tool(name: str) -> str:
    """The path of a real tool (`consul`, `envoy`, `wireguard-go`), found as the product does; skips without it."""
    from meshctl import tools

    found = tools.find(name)
    if found is None:
        pytest.skip(f"{name} is not installed: run ./mesh tools")
    return str(found)


ROOM = 2 << 30
"""Bytes that have to be free in memory for a test's databases: three members with their logs, and as much again."""


def folder_in_memory() -> str | None:
    """Where folders of programs that write through to disk are made, tmpfs as in a CVM: nothing waits for the machine's
    disk there. None, the usual place, where it cannot be written or is small (Docker gives containers 64 MiB).
    """
    place = "/dev/shm"
    return place if os.access(place, os.W_OK) and shutil.disk_usage(place).free >= ROOM else None


async def soon(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether `condition()` holds within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.01)
    return True


async def eventually(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Waits until `condition()` holds; fails the test naming `what` after `seconds`."""
    if not await soon(condition, seconds):
        pytest.fail(f"not within {seconds} s: {what}")


def need_root_or_userns() -> None:
    """Skips a test that makes namespaces where the machine does not allow it."""
    if os.geteuid() != 0:
        pytest.skip("makes network namespaces: run as root, or through ./mesh test, which enters a user namespace")


@contextmanager
def network_namespace() -> Iterator[str]:
    """A fresh network namespace with `lo` up; yields its name. Removed at the end."""
    from pyroute2 import NetNS, netns

    need_root_or_userns()
    name = f"t{os.getpid()}-{time.monotonic_ns() % 10**9}"
    netns.create(name)
    try:
        with NetNS(name) as link:
            link.link("set", index=link.link_lookup(ifname="lo")[0], state="up")
        yield name
    finally:
        netns.remove(name)


def process_runs(pid: int) -> bool:
    """Whether process `pid` lives. A zombie does not: who reaps it, and when, is not ours to say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def unread_pipe() -> Iterator[int]:
    """The end to write to of a pipe that nobody reads, and that is full: whoever writes there waits for ever."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write, b"." * 4096)
    os.set_blocking(write, True)
    try:
        yield write
    finally:
        os.close(read)
        os.close(write)


def popen(argv: Sequence[str], *, death: signal.Signals = signal.SIGKILL, **options: Any) -> subprocess.Popen[Any]:
    """`subprocess.Popen`, of a program that gets the signal `death` when this process ends, however that happens. To be
    called on a thread that stays until the program has ended: the kernel goes by the thread. A program that changes its
    user is no longer bound (PR_SET_PDEATHSIG in prctl(2)).
    """
    return subprocess.Popen(_bound_to_us(argv, death), **options)


async def spawn(*argv: str, **options: Any) -> asyncio.subprocess.Process:
    """`asyncio.create_subprocess_exec`, of a program that is killed when this process ends (see `popen`)."""
    return await asyncio.create_subprocess_exec(*_bound_to_us(argv, signal.SIGKILL), **options)


def _bound_to_us(argv: Sequence[str], death: signal.Signals) -> list[str]:
    """Not by `preexec_fn`: a fork of a process in which gRPC has threads may crash before the program starts."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", death.name.removeprefix("SIG"), "--", *argv] if setpriv else list(argv)
