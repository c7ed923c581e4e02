"""Supervision of child processes: start, watch, restart with capped back-off, replace when hung, stop in bounded time.

One `Child` knows one program and nothing of its siblings. Exits are noticed through a pidfd, so nothing polls.
Not here: what a program is told (its owner writes the files) and why it must stop (its owner cancels `run()`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import TracebackType
from typing import IO, Literal, Self

from runtime.backoff import Backoff
from runtime.premises import SETPRIV
from runtime.tasks import TaskScope

log = logging.getLogger(__name__)

State = Literal["waiting", "running", "backoff", "stopping", "stopped"]

RESTART = Backoff(base=0.1, cap=5.0)
"""Delays after the second and later failures in a row; the first restart is immediate."""
GOOD_RUN_SECONDS = 10.0
"""A run this long clears the failures before it: no program here needs longer to fail over a bad configuration."""
PROBE_SECONDS = 2.0
"""Longest time between two health probes; short against every `hang_seconds` in use, cheap on a local socket."""
KILL_SECONDS = 2.0
"""How long a process may take to vanish after SIGKILL before we stop waiting (it then hangs in the kernel)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """What to run, and how patient to be with it."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    """The whole environment; nothing is inherited."""
    log: Path | None
    """File that stdout and stderr are appended to; None leaves both on our stderr."""
    healthy: Callable[[], Awaitable[bool]] | None
    """True when the program answers. It may raise OSError or take long: no answer, then. None: never asked."""
    hang_seconds: float
    """A program that lives but answers no probe for so long is killed and replaced. Covers its start too."""
    stop_seconds: float
    """Time between SIGTERM and SIGKILL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildStatus:
    """What there is to say about a child at this moment."""

    pid: int | None
    """None while it does not run."""
    restarts: int
    """Starts after the first."""
    state: State
    last_exit: str | None
    """Why it ended last: `exit code 1`, `SIGKILL`, `hung`, `cannot start: ...`."""


class Child:
    """Keeps one program running for as long as `run()` is not cancelled."""

    def __init__(
        self,
        spec: ChildSpec,
        on_start: Callable[[], Awaitable[None]] | None = None,
        *,
        backoff: Backoff = RESTART,
        rng: Random | None = None,
    ) -> None:
        self.spec = spec
        self._on_start = on_start
        self._backoff = backoff
        # Jitter only keeps many CVMs from restarting in step; it protects nothing.
        self._rng = rng or Random()
        self._pid: int | None = None
        self._starts = 0
        self._state: State = "waiting"
        self._last_exit: str | None = None
        self._verdict: str | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def end(self) -> None:
        """Ends the program at once, if it runs: it is started anew, with what its files say by then."""
        if self._process is not None:
            self._give_up(self._process, "started anew")

    def status(self) -> ChildStatus:
        """The state now. Cheap; may be called at any time."""
        return ChildStatus(
            pid=self._pid, restarts=max(0, self._starts - 1), state=self._state, last_exit=self._last_exit
        )

    async def run(self) -> None:
        """Starts the program and keeps it running until cancelled; then SIGTERM, a bounded wait, SIGKILL.

        A second cancellation while the program stops cuts the wait short.
        """
        loop = asyncio.get_running_loop()
        failures = 0
        try:
            while True:
                began = loop.time()
                await self._run_once()
                failures = 1 if loop.time() - began >= GOOD_RUN_SECONDS else failures + 1
                log.warning(
                    "child ended",
                    extra={"child": self.spec.name, "last_exit": self._last_exit, "failures": failures},
                )
                if failures > 1:
                    self._state = "backoff"
                    await asyncio.sleep(self._backoff.delay(failures - 2, self._rng))
        finally:
            self._state = "stopped"

    async def _run_once(self) -> None:
        self._starts += 1
        try:
            process = _spawn(self.spec)
        except OSError as error:
            self._last_exit = f"cannot start: {error}"
            return
        self._pid, self._state, self._process = process.pid, "running", process
        self._verdict = None
        log.info("child started", extra={"child": self.spec.name, "pid": process.pid, "start": self._starts})
        with _Exit(process) as exited:
            try:
                await self._watch(process, exited)
            except asyncio.CancelledError:
                self._state = "stopping"
                await _stop(process, exited, self.spec.stop_seconds)
                raise
            finally:
                _signal_group(process, signal.SIGKILL)
                # Not wait_for: Python 3.11's loses a cancellation that comes in the turn in which its awaitable ends.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(KILL_SECONDS):
                        await exited.wait()
                self._pid = self._process = None
                self._last_exit = self._why(process)

    async def _watch(self, process: subprocess.Popen[bytes], exited: _Exit) -> None:
        """Returns when the program has ended, by itself or because a helper gave it up."""
        async with TaskScope() as scope:
            helpers = [scope.start(f"{self.spec.name}: on start", self._started(process))]
            if self.spec.healthy is not None:
                helpers.append(scope.start(f"{self.spec.name}: probe", self._probe(process, self.spec.healthy)))
            await exited.wait()
            for helper in helpers:
                helper.cancel()

    def _why(self, process: subprocess.Popen[bytes]) -> str:
        return self._verdict or _describe(process.returncode)

    def _give_up(self, process: subprocess.Popen[bytes], verdict: str) -> None:
        self._verdict = verdict
        _signal_group(process, signal.SIGKILL)

    async def _started(self, process: subprocess.Popen[bytes]) -> None:
        if self._on_start is None:
            return
        try:
            await self._on_start()
        except Exception as error:  # noqa: BLE001 - the owner's hook; its failure means that this start was no good
            log.warning("child set-up failed", extra={"child": self.spec.name, "error": repr(error)})
            self._give_up(process, f"set-up failed: {error}")

    async def _probe(self, process: subprocess.Popen[bytes], healthy: Callable[[], Awaitable[bool]]) -> None:
        loop = asyncio.get_running_loop()
        pause = min(PROBE_SECONDS, self.spec.hang_seconds / 3)
        answered = loop.time()
        while loop.time() - answered < self.spec.hang_seconds:
            await asyncio.sleep(pause)
            try:
                async with asyncio.timeout(self.spec.hang_seconds / 3):
                    if await healthy():
                        answered = loop.time()
            except (OSError, TimeoutError):
                continue  # no answer; the deadline above decides
        self._give_up(process, "hung")


class _Exit:
    """Waits for a process's exit through its pidfd, and reaps it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._gone = asyncio.Event()

    def __enter__(self) -> Self:
        self._fd = os.pidfd_open(self._process.pid)
        asyncio.get_running_loop().add_reader(self._fd, self._on_exit)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        # Takes down what the program left behind in its process group; before the reaping, while the number is its own.
        _signal_group(self._process, signal.SIGKILL)
        self._process.poll()
        self._gone.set()

    async def wait(self) -> None:
        """Returns once the process has ended and is reaped."""
        await self._gone.wait()


async def _stop(process: subprocess.Popen[bytes], exited: _Exit, seconds: float) -> None:
    """SIGTERM (and SIGCONT, or a stopped process never sees it), then up to `seconds`. The caller sends SIGKILL."""
    _signal_group(process, signal.SIGTERM)
    _signal_group(process, signal.SIGCONT)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await exited.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signals the child's process group, unless the child was reaped: then the number may belong to someone else."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _spawn(spec: ChildSpec) -> subprocess.Popen[bytes]:
    """Starts the program in a session (and process group) of its own, killed by the kernel should this process end.

    setpriv asks for the signal, and becomes the program. `preexec_fn` would run Python in a fork of this process, whose
    gRPC threads make that crash now and then. The signal is tied to the thread that starts the program: the event
    loop's, hence the main thread. OSError where the program cannot be run.
    """
    program = Path(spec.argv[0])
    if not os.access(program, os.X_OK) or program.is_dir():
        # setpriv would only give exit code 127.
        raise FileNotFoundError(f"{spec.argv[0]!r} is no program that can be run")
    with contextlib.ExitStack() as stack:
        output: IO[bytes] | None = stack.enter_context(spec.log.open("ab", buffering=0)) if spec.log else None
        return subprocess.Popen(
            (str(SETPRIV), "--pdeathsig", "KILL", "--", *spec.argv),
            env=dict(spec.env),
            stdin=subprocess.DEVNULL,
            stdout=output if output is not None else 2,
            stderr=output if output is not None else 2,
            start_new_session=True,
        )


def _describe(code: int | None) -> str:
    if code is None:
        return "did not end after SIGKILL"
    if code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"
