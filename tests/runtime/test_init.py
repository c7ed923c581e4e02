from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import Iterator

import pytest

from runtime import init
from runtime.init import Init
from tests.support import eventually, spawn


@pytest.fixture
async def installed() -> Iterator[Init]:  # type: ignore[misc]
    it = init.install()
    yield it  # type: ignore[misc]
    it.close()


async def test_first_signal_drains_and_second_aborts(installed: Init) -> None:
    """SIGTERM asks for a drain once; the next SIGTERM or SIGINT cuts it short."""
    os.kill(os.getpid(), signal.SIGTERM)
    await eventually(installed.drain.is_set, "drain")
    assert not installed.abort.is_set()
    os.kill(os.getpid(), signal.SIGINT)
    await eventually(installed.abort.is_set, "abort")


ORPHAN = (
    "import os, sys\n"
    "if os.fork() == 0:\n"
    "    os.setsid()\n"
    "    pid = os.fork()\n"
    "    if pid: print(pid, flush=True); os._exit(0)\n"
    "    sys.stdin.read(); os._exit(0)\n"
    "os.wait(); os.execv('/bin/cat', ['cat'])\n"
)


async def test_orphan_is_reaped(installed: Init, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose parent died becomes ours, and does not stay a zombie."""
    monkeypatch.setattr(init, "ORPHAN_SECONDS", 0.05)
    child = await spawn(
        sys.executable, "-S", "-c", ORPHAN, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    orphan = int(await child.stdout.readline())
    await eventually(lambda: init._stat(orphan)[1] == str(os.getpid()), "the orphan is handed to us")
    await child.communicate(b"")  # closes its stdin, and so ends the orphan
    await eventually(lambda: init._stat(orphan) == [], "orphan reaped")


async def test_exit_codes_of_our_own_children_are_not_stolen(installed: Init, monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncio still learns how its subprocess ended while orphans are reaped."""
    monkeypatch.setattr(init, "ORPHAN_SECONDS", 0.05)
    children = [await spawn("/bin/sh", "-c", f"exit {code}") for code in range(1, 6)]
    assert [await child.wait() for child in children] == [1, 2, 3, 4, 5]


async def test_zombie_is_left_to_its_owner_for_a_while(installed: Init) -> None:
    """A zombie younger than ORPHAN_SECONDS is not touched: its owner may be about to reap it."""
    pid = os.posix_spawn("/bin/true", ["true"], {})  # noqa: ASYNC221 - it ends at once, and nobody waits for it
    await eventually(lambda: pid in init.zombies(), "zombie")
    installed._reap()
    assert pid in init.zombies()
    assert os.waitpid(pid, os.WNOHANG) == (pid, 0)  # noqa: ASYNC222 - known to have ended


async def test_descriptor_limit_is_raised_as_far_as_allowed() -> None:
    """Envoy inherits the hard limit of open files, not a soft one of 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    own = init.install()
    try:
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        own.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
