"""One member from its first start to its last end: Patroni kept running, and what is published of it kept true. IO.

The order that keeps it safe, whatever ended Patroni or its PostgreSQL:
1. every process below us is dead and reaped: nobody here acknowledges a write any more;
2. Patroni's session is destroyed, and Consul deletes the leader key with it;
3. only when the servers have that, a new Patroni starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from runtime.backoff import Backoff
from runtime.tasks import TaskScope
from workloads.patroni import config, control, processes, roles, standing
from workloads.patroni.database import Database, DatabaseDownError, SlowDatabaseError
from workloads.patroni.processes import Processes
from workloads.patroni.publisher import Publisher
from workloads.patroni.sessions import Sessions

log = logging.getLogger(__name__)

RESTART = Backoff(base=0.2, cap=10.0)
GOOD_RUN_SECONDS = 30.0
REST_SECONDS = 1.0
"""How long a leader that ended rests. The others elect meanwhile, and one that came back at once could only be in their
way: its database has to recover first."""
STOP_SECONDS = 25.0
"""SIGTERM lets Patroni shut PostgreSQL down and hand over; then everything is killed."""
LOOK_SECONDS = 0.5
"""Between questions to a database that is as announced."""
TURN_SECONDS = 0.01
"""Between questions to a database that is on its way to what was announced."""
SLOW_ANSWERS = 3
"""So many questions in a row without an answer, 5 s each, and the database counts as down."""
PROBE_SECONDS = 2.0
HANG_SECONDS = 20.0
"""A Patroni that tells no heartbeat for so long is killed. By then its session may have run out, while PostgreSQL still
runs as a primary: a clean end is better. It is Patroni's `ttl`, hence what its own liveness goes by."""
HANDOVER_SECONDS = 5.0
"""How long a leader's PostgreSQL is waited for in Patroni's stead: half of the session's TTL, for Patroni may renew
nothing meanwhile. After that Patroni waits for it, and looks once a second."""
LINGER_SECONDS = 2.0
"""How long PostgreSQL may live on after its shutdown checkpoint: about what Patroni's own wait costs more. Its replicas
need milliseconds of it to fetch the end of the log. Before version 18 it also waits for connections that never said who
they are (`authentication_timeout`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """How Patroni is started."""

    argv: tuple[str, ...]
    """The number of the descriptor for heartbeats follows as one more argument."""
    env: Mapping[str, str]
    data: Path
    """PostgreSQL's data directory."""
    run: Path
    """The private folder: pipes of those who wait for a stop."""


class Life:
    """Keeps the member running. All methods are for one event loop; `run` ends only by cancellation."""

    def __init__(self, program: Program, publisher: Publisher, sessions: Sessions, database: Database) -> None:
        self._program = program
        self._publisher = publisher
        self._sessions = sessions
        self._database = database
        self._processes = Processes(self._on_orphan)
        self._rng = Random()
        self._claim: str | None = None
        self._led = False
        """Its PostgreSQL died while it led."""
        self._turn = asyncio.Event()
        self._heard: float | None = None
        """When this Patroni told a heartbeat last (the loop's clock)."""
        self._stops: asyncio.Queue[str] = asyncio.Queue()
        """Stops of PostgreSQL that Patroni is about to do, by the name of the pipe that it reads."""
        self._stopping = False
        """This member is shutting down."""

    async def run(self) -> None:
        """Starts Patroni, again and again; a cancellation stops it in good order first."""
        with self._processes:
            try:
                await self._keep_running()
            finally:
                await self._stop()

    def on_event(self, action: str, role: str) -> None:
        """Takes what a callback of Patroni says."""
        self._claim = roles.announced(action, role)
        log.info("role announced", extra={"action": action, "role": role, "claim": self._claim})
        if roles.outdated(self._claim, self._publisher.wanted.role):
            self._publisher.want(role=None)
        if self._claim == roles.MASTER:
            self._publisher.promise()
        self._turn.set()

    def reload(self) -> None:
        """Lets Patroni read its configuration again; nothing restarts."""
        self._processes.signal(signal.SIGHUP)

    async def watch(self) -> None:
        """Publishes whether the database answers, and its role once it is what was announced."""
        slow = 0
        while True:
            self._turn.clear()
            state: bool | None
            try:
                state = await self._database.in_recovery()
                slow = 0
            except SlowDatabaseError:
                slow += 1
                if slow < SLOW_ANSWERS:
                    continue
                state = None
            except DatabaseDownError:
                if self._claim == roles.MASTER and processes.postmaster_pid(self._program.data) is not None:
                    # It shuts down in good order, or was killed. Its replicas are to have the end of its log first: the
                    # mesh would cut them off. What comes next says a callback, or its process, which is ours to reap.
                    await self._pause(LOOK_SECONDS)
                    continue
                state = None
            role = roles.confirmed(self._claim, state)
            if role == roles.REPLICA and standing.read(self._program.run).state in standing.NO_READERS:
                role = None
            self._publisher.want(database=state is not None, role=role)
            turning = state is not None and role not in (self._claim, None)
            await self._pause(TURN_SECONDS if turning else LOOK_SECONDS)

    async def _pause(self, seconds: float) -> None:
        """Waits so long, or until something turns."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._turn.wait()

    async def guard(self) -> None:
        """Kills a Patroni that lives without a heartbeat. One that never had any waits for Consul, and may."""
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            silent = 0.0 if self._heard is None or self._stopping else self._now() - self._heard
            if silent > HANG_SECONDS and self._processes.running:
                log.warning("patroni hangs", extra={"seconds": HANG_SECONDS})
                self._heard = None
                self._processes.signal(signal.SIGKILL)

    def on_stop(self, number: str) -> None:
        """Takes note of a stop of PostgreSQL that Patroni is about to do; the hook `number` waits for `stops`."""
        self._stops.put_nowait(number)

    async def stops(self) -> None:
        """Stops a leader's PostgreSQL in Patroni's stead, as fast as it can be done: then Patroni finds it stopped, and
        gives the leader key away. What is no leader is left to Patroni.
        """
        while True:
            number = await self._stops.get()
            try:
                if self._claim == roles.MASTER:
                    await self._stop_database()
            finally:
                let_go_on(self._program.run, number)

    async def _stop_database(self) -> None:
        """PostgreSQL's fast shutdown; returns at its end, or when waiting longer does not help.

        Whose the leader key is, is asked meanwhile: on a busy machine the answer may take longer than the shutdown. One
        that has lost its key has to be gone at once, which Patroni sees to.
        """
        pid = processes.postmaster_pid(self._program.data)
        if pid is None or pid not in processes.descendants(os.getpid()):
            return
        began = self._now()
        shut: float | None = None
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
        async with TaskScope() as scope:
            holds = scope.start("whose key", self._publisher.holds_key())
            # Until it is reaped: it removes its PID file before it ends, and Patroni would take it for one that still
            # runs.
            while Path(f"/proc/{pid}").exists():
                now = self._now()
                if shut is None and control.is_shut_down(self._program.data):
                    shut = now
                lost = holds.done() and not holds.result()
                if lost or now - began > HANDOVER_SECONDS or (shut is not None and now - shut > LINGER_SECONDS):
                    log.warning("postgresql is left to patroni", extra={"lost": lost, "shut_down": shut is not None})
                    holds.cancel()
                    return
                await asyncio.sleep(TURN_SECONDS)
            holds.cancel()
        log.info("postgresql stopped", extra={"seconds": round(self._now() - began, 3)})

    async def _keep_running(self) -> None:
        failures = 0
        # What a supervisor that was killed left behind.
        self._publisher.want(member=False, database=False, role=None)
        await self._sessions.end()
        while True:
            self._publisher.want(member=True, database=False, role=None)
            await self._publisher.reached()
            began = self._now()
            with self._heartbeats() as descriptor:
                self._processes.start((*self._program.argv, str(descriptor)), self._program.env, (descriptor,))
                log.info("patroni started")
                await self._processes.ended()
            rest = REST_SECONDS if self._led or self._claim == roles.MASTER else 0.0
            self._led, self._claim = False, None
            await self._processes.clear()
            failures = 1 if self._now() - began > GOOD_RUN_SECONDS else failures + 1
            log.warning("patroni ended", extra={"last_exit": self._processes.last_exit, "failures": failures})
            self._publisher.want(member=False, database=False, role=None)
            await self._sessions.end()
            if failures > 1:
                rest = max(rest, RESTART.delay(failures - 2, self._rng))
            await asyncio.sleep(rest)

    @contextlib.contextmanager
    def _heartbeats(self) -> Iterator[int]:
        """The descriptor for a new Patroni's heartbeats: a pipe, which nobody else can open or fill."""
        loop = asyncio.get_running_loop()
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._heard = None

        def read() -> None:
            if os.read(reading, 4096):
                self._heard = loop.time()
            else:
                loop.remove_reader(reading)

        loop.add_reader(reading, read)
        try:
            yield writing
        finally:
            loop.remove_reader(reading)
            os.close(reading)
            os.close(writing)
            self._heard = None

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    async def _stop(self) -> None:
        """In good order: Patroni shuts PostgreSQL down and gives the leader key away."""
        self._stopping = True
        if self._processes.running:
            self._processes.signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await self._processes.ended()
        await self._processes.clear()
        self._publisher.want(member=False, database=False, role=None)
        self._publisher.hurry()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._sessions.end()
                await self._publisher.reached()

    def _on_orphan(self, pid: int) -> None:
        # A PostgreSQL that ends by itself removes its PID file; one that was killed cannot.
        if processes.postmaster_pid(self._program.data) != pid:
            return
        log.warning("postgresql died", extra={"pid": pid, "claim": self._claim})
        self._led, self._claim = self._claim == roles.MASTER, None
        if self._led:
            # Patroni would notice at its next look, seconds later. Its own end is noticed now, and only then is there
            # anything to publish, in one go: the key is what the others wait for.
            self._processes.signal(signal.SIGKILL)
        else:
            self._publisher.want(database=False, role=None)


def let_go_on(run: Path, number: str) -> None:
    """Lets the hook `number` go on, if it still waits, and removes its pipe from the folder `run`.

    Patroni waits for the hook, and the callers for Patroni: another program that removes it would cost them its start.
    """
    with contextlib.suppress(OSError, ValueError):
        path = run / f"{config.STOP_REPLY}.{int(number)}"
        try:
            pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            try:
                os.write(pipe, b"\n")
            finally:
                os.close(pipe)
        finally:
            path.unlink(missing_ok=True)
