"""What tests start ends with them, also when they are killed."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import support
from tests.project import suite, tree
from tests.support import ROOT, eventually, popen, process_runs

SUPPORT = Path("tests/support.py")

PAIR = """
import asyncio
from tests.xds.mesh import pair

async def main():
    async with pair() as both:
        print(both.caller.process.pid, both.callee.process.pid, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""
POSTGRES = """
import sys, time
from pathlib import Path
from tests.workloads.postgres import postgres

with postgres(Path(sys.argv[1])) as server:
    print(server.process.pid, flush=True)
    time.sleep(60)
"""
PLAIN = """
import time
from tests.support import popen

print(popen(["sleep", "60"]).pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("script", [PAIR, POSTGRES, PLAIN], ids=["envoys", "postgres", "plain"])
async def test_what_a_killed_test_has_started_ends_with_it(script: str, tmp_path: Path) -> None:
    """SIGKILL leaves no fixture time to clean up: the kernel ends the programs."""
    with popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True) as starter:
        pids = [int(word) for word in starter.stdout.readline().split()]
        assert pids
        assert all(map(process_runs, pids))
        starter.send_signal(signal.SIGKILL)
    await eventually(lambda: not any(map(process_runs, pids)), "what it has started has ended")


def test_programs_are_started_in_one_place() -> None:
    """`popen` and `spawn` of `tests.support` bind a program to this process; what goes round them outlives a kill."""
    wrong = [
        f"{path}:{node.lineno}: {ast.unparse(node.func)}"
        for path in suite()
        if path != SUPPORT
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in _STARTS
    ]
    assert not wrong, "\n".join(wrong)


_STARTS = {"subprocess.Popen", "asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell"}


def test_folders_are_in_memory_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory that is small is not filled by databases: the usual place is taken."""
    monkeypatch.setattr(support, "ROOM", 1 << 62)
    assert support.folder_in_memory() is None
    monkeypatch.setattr(support, "ROOM", 0)
    assert support.folder_in_memory() == ("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
