from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.backoff import Backoff
from runtime.children import Child, ChildSpec
from runtime.tasks import TaskScope
from tests.support import eventually, popen

QUICK = Backoff(base=0.01, cap=0.02)
SLEEP = "import time; time.sleep(60)"


def spec(
    script: str,
    *,
    log: Path | None = None,
    healthy: Callable[[], Awaitable[bool]] | None = None,
    hang: float = 5.0,
    stop: float = 5.0,
) -> ChildSpec:
    argv = (sys.executable, "-S", "-c", script)
    return ChildSpec(
        name="it", argv=argv, env={}, log=log or Path(os.devnull), healthy=healthy, hang_seconds=hang, stop_seconds=stop
    )


@contextlib.asynccontextmanager
async def running(child: Child) -> AsyncIterator[asyncio.Task[None]]:
    async with TaskScope() as scope:
        task = scope.start("child", child.run())
        try:
            yield task
        finally:
            task.cancel()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pid_of(child: Child) -> int:
    pid = child.status().pid
    assert pid is not None
    return pid


async def test_killed_child_is_replaced_and_its_sibling_untouched() -> None:
    """SIGKILL of one child gives it a new PID and leaves the other's PID as it was."""
    one, two = Child(spec(SLEEP), backoff=QUICK), Child(spec(SLEEP), backoff=QUICK)
    async with running(one), running(two):
        await eventually(lambda: one.status().pid is not None and two.status().pid is not None, "both run")
        before, sibling = pid_of(one), pid_of(two)
        os.kill(before, signal.SIGKILL)
        await eventually(lambda: one.status().pid not in (None, before), "replaced")
        assert one.status().restarts == 1
        assert one.status().last_exit == "SIGKILL"
        assert (two.status().pid, two.status().restarts) == (sibling, 0)
    assert one.status().state == "stopped"
    assert not alive(sibling)


async def test_a_child_that_is_ended_is_started_anew() -> None:
    """At once, with what it reads then; where it does not run there is nothing to end."""
    child = Child(spec(SLEEP), backoff=QUICK)
    child.end()
    async with running(child):
        await eventually(lambda: child.status().pid is not None, "it runs")
        first = pid_of(child)
        child.end()
        await eventually(lambda: child.status().pid not in (None, first), "another one runs")
        assert not alive(first)
        assert child.status().last_exit == "started anew"


async def test_no_python_runs_between_fork_and_exec() -> None:
    """A handler for forks is not called: gRPC has threads in a sidecar, and its own handlers crash there."""
    called: list[int] = []
    os.register_at_fork(before=lambda: called.append(os.getpid()))
    child = Child(spec(SLEEP), backoff=QUICK)
    async with running(child):
        await eventually(lambda: child.status().pid is not None, "it runs")
    assert called == []


async def test_child_that_ends_at_once_is_retried_with_backoff_and_its_exit_code_kept() -> None:
    """A child that exits is started again and again, and the status tells its exit code."""
    child = Child(spec("raise SystemExit(3)"), backoff=QUICK)
    async with running(child):
        await eventually(lambda: child.status().restarts >= 3, "three restarts")
        assert child.status().last_exit == "exit code 3"


async def test_first_restart_is_immediate_and_the_next_waits() -> None:
    """One failure is repaired without delay; the second in a row waits for the back-off."""
    child = Child(spec("raise SystemExit(1)"), backoff=Backoff(base=60, cap=60))
    async with running(child):
        await eventually(lambda: child.status().state == "backoff", "back-off")
        assert child.status().restarts == 1


async def test_missing_program_is_a_status_not_a_crash() -> None:
    """A program that does not exist is reported as such and retried."""
    missing = ChildSpec(
        name="it", argv=("/does/not/exist",), env={}, log=None, healthy=None, hang_seconds=5, stop_seconds=1
    )
    child = Child(missing, backoff=QUICK)
    async with running(child):
        await eventually(lambda: child.status().restarts >= 2, "retried")
        assert (child.status().last_exit or "").startswith("cannot start: ")


async def test_hung_child_is_killed_and_replaced() -> None:
    """A child stopped by SIGSTOP answers no probe and is replaced after hang_seconds."""
    child: Child

    async def healthy() -> bool:
        pid = child.status().pid
        return pid is not None and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T"

    child = Child(spec(SLEEP, healthy=healthy, hang=0.4), backoff=QUICK)
    async with running(child):
        await eventually(lambda: child.status().pid is not None, "runs")
        before = pid_of(child)
        os.kill(before, signal.SIGSTOP)
        await eventually(lambda: child.status().pid not in (None, before), "replaced")
        assert child.status().last_exit == "hung"
        assert not alive(before)


async def test_probe_that_never_answers_counts_as_hung() -> None:
    """A probe that itself hangs or is refused is no answer."""

    async def stuck() -> bool:
        await asyncio.sleep(3600)
        return True

    async def refused() -> bool:
        raise ConnectionRefusedError

    for probe in (stuck, refused):
        child = Child(spec(SLEEP, healthy=probe, hang=0.2), backoff=QUICK)
        async with running(child):
            await eventually(lambda child=child: child.status().restarts >= 1, "replaced")
            assert child.status().last_exit == "hung"


async def test_stop_is_sigterm_first(tmp_path: Path) -> None:
    """Cancelling run() lets the program end by itself on SIGTERM."""
    script = (
        "import signal, sys, time, pathlib\n"
        f"signal.signal(15, lambda *_: (pathlib.Path({str(tmp_path / 'bye')!r}).write_text('bye'), sys.exit(0)))\n"
        f"pathlib.Path({str(tmp_path / 'up')!r}).write_text('up')\n"
        "time.sleep(60)\n"
    )
    child = Child(spec(script))
    async with running(child):
        await eventually((tmp_path / "up").exists, "handler set")
    assert (tmp_path / "bye").read_text() == "bye"
    assert child.status().last_exit == "exit code 0"


async def test_child_that_ignores_sigterm_is_killed_after_the_deadline(tmp_path: Path) -> None:
    """SIGKILL follows stop_seconds later."""
    up = tmp_path / "up"
    script = (
        f"import signal, time, pathlib; signal.signal(15, signal.SIG_IGN); pathlib.Path({str(up)!r}).touch(); "
        "time.sleep(60)"
    )
    child = Child(spec(script, stop=0.1))
    async with running(child):
        await eventually(up.exists, "ignores")
    assert child.status().last_exit == "SIGKILL"


async def test_second_cancellation_cuts_the_stop_short(tmp_path: Path) -> None:
    """Cancelled again while it waits for a stubborn program, run() kills it at once."""
    up = tmp_path / "up"
    script = (
        f"import signal, time, pathlib; signal.signal(15, signal.SIG_IGN); pathlib.Path({str(up)!r}).touch(); "
        "time.sleep(60)"
    )
    child = Child(spec(script, stop=3600))
    async with running(child) as task:
        await eventually(up.exists, "ignores")
        pid = pid_of(child)
        task.cancel()
        await eventually(lambda: child.status().state == "stopping", "stopping")
        task.cancel()
        await eventually(task.done, "gave up waiting", 5)
    assert not alive(pid)


async def test_what_a_dead_child_left_in_its_group_dies_with_it(tmp_path: Path) -> None:
    """A grandchild in the child's process group does not survive the child."""
    note = tmp_path / "pid"
    script = (
        "import os, time, pathlib\n"
        "pid = os.fork()\n"
        "if pid:\n"
        f"    new = pathlib.Path({str(tmp_path / 'new')!r}); new.write_text(str(pid)); new.rename({str(note)!r})\n"
        "time.sleep(60)\n"
    )
    child = Child(spec(script), backoff=QUICK)
    async with running(child):
        await eventually(note.exists, "forked")
        grandchild = int(note.read_text())
        note.unlink()
        os.kill(pid_of(child), signal.SIGKILL)
        await eventually(lambda: not alive(grandchild), "grandchild gone")


async def test_on_start_runs_at_every_start_and_its_failure_replaces_the_child() -> None:
    """The owner's hook runs once a start; when it fails, that start is given up."""
    starts: list[int] = []

    async def on_start() -> None:
        starts.append(pid_of(child))
        if len(starts) == 1:
            raise RuntimeError("device not there")

    child = Child(spec(SLEEP), on_start, backoff=QUICK)
    async with running(child):
        await eventually(lambda: len(starts) == 2, "second start")
        assert child.status().last_exit == "set-up failed: device not there"
        assert child.status().pid == starts[1]


async def test_environment_is_exactly_the_given_one_and_output_goes_to_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of our own environment reaches a child; its output is appended to the log file."""
    monkeypatch.setenv("LEAK", "yes")
    log = tmp_path / "log"
    log.write_text("before\n")
    child = Child(spec("import os; print('LEAK' in os.environ, flush=True); import time; time.sleep(60)", log=log))
    async with running(child):
        await eventually(lambda: log.read_text() == "before\nFalse\n", "log written")


def test_child_dies_with_its_supervisor(tmp_path: Path) -> None:
    """SIGKILL of the supervising process takes the child along (PR_SET_PDEATHSIG)."""
    import subprocess
    import time

    script = (
        "import asyncio, sys\n"
        "from runtime.children import Child, ChildSpec\n"
        f"spec = ChildSpec(name='it', argv=({sys.executable!r}, '-S', '-c', {SLEEP!r}), env={{}}, log=None,"
        " healthy=None, hang_seconds=5, stop_seconds=1)\n"
        "async def hello():\n"
        "    print(child.status().pid, flush=True)\n"
        "child = Child(spec, hello)\n"
        "asyncio.run(child.run())\n"
    )
    with popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        end = time.monotonic() + 30
        # setpriv becomes the program once it has asked for the signal.
        while not Path(f"/proc/{pid}/cmdline").read_bytes().startswith(sys.executable.encode()):
            assert time.monotonic() < end, "the program was not started"
            time.sleep(0.01)
        parent.kill()
    end = time.monotonic() + 30
    while alive(pid):
        assert time.monotonic() < end, "the child outlived its supervisor"
        time.sleep(0.01)


async def test_a_stop_at_any_moment_of_an_exit_is_obeyed() -> None:
    """In each turn of the loop in which the program's end is dealt with: nothing starts it again afterwards."""
    for turns in range(12):
        child = Child(replace(spec(""), argv=("/bin/false",)), backoff=QUICK)
        async with asyncio.timeout(60), running(child) as task:
            while child.status().pid is None:  # noqa: ASYNC110 - turns of the loop are what this is about
                await asyncio.sleep(0)
            while child.status().pid is not None and alive(child.status().pid or 0):
                # Blocks the loop: the end is seen in its next turn.
                pass
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
        assert task.cancelled()
        assert child.status().pid is None
