"""One member from its first start to its last end: Patroni kept running, and what is published of it kept true. IO.

The order that keeps it safe, whatever ended Patroni or its PostgreSQL:
1. every process below us is dead and reaped: nobody here acknowledges a write any more;
2. the member check turns critical, Patroni's session falls with it, and the leader key with the session;
3. only when the servers have that, the check passes again and a new Patroni starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from runtime.backoff import Backoff
from workloads.patroni import processes, roles
from workloads.patroni.database import Database, DatabaseDownError, SlowDatabaseError
from workloads.patroni.processes import Processes
from workloads.patroni.publisher import Publisher

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """How Patroni is started, and where it is asked whether it lives."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    data: Path
    """PostgreSQL's data directory."""
    rest: tuple[str, int]


class Life:
    """Keeps the member running. All methods are for one event loop; `run` ends only by cancellation."""

    def __init__(self, program: Program, publisher: Publisher, database: Database) -> None:
        self._program = program
        self._publisher = publisher
        self._database = database
        self._processes = Processes(self._on_orphan)
        self._rng = Random()
        self._claim: str | None = None
        self._led = False
        """Its PostgreSQL died while it led."""
        self._turn = asyncio.Event()

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
            self._publisher.want(database=state is not None, role=role)
            turning = state is not None and role != self._claim
            await self._pause(TURN_SECONDS if turning else LOOK_SECONDS)

    async def _pause(self, seconds: float) -> None:
        """Waits so long, or until something turns."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._turn.wait()

    async def guard(self) -> None:
        """Kills a Patroni that lives without a heartbeat. One that never had any waits for Consul, and may."""
        loop = asyncio.get_running_loop()
        heard: float | None = None
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            if not self._processes.running:
                heard = None
            elif await _beats(*self._program.rest):
                heard = loop.time()
            elif heard is not None and loop.time() - heard > HANG_SECONDS:
                log.warning("patroni hangs", extra={"seconds": HANG_SECONDS})
                self._processes.signal(signal.SIGKILL)
                heard = None

    async def _keep_running(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            # A session of before, ours or of a supervisor that was killed, must be gone before there is a new one.
            await self._publish(member=False)
            await self._publish(member=True)
            began = loop.time()
            self._processes.start(self._program.argv, self._program.env)
            log.info("patroni started")
            await self._processes.ended()
            rest = REST_SECONDS if self._led or self._claim == roles.MASTER else 0.0
            self._led, self._claim = False, None
            await self._processes.clear()
            failures = 1 if loop.time() - began > GOOD_RUN_SECONDS else failures + 1
            log.warning("patroni ended", extra={"last_exit": self._processes.last_exit, "failures": failures})
            self._publisher.want(member=False, database=False, role=None)
            if failures > 1:
                rest = max(rest, RESTART.delay(failures - 2, self._rng))
            await asyncio.sleep(rest)

    async def _publish(self, *, member: bool) -> None:
        """Publishes a member without a database, and returns when the servers have it."""
        self._publisher.want(member=member, database=False, role=None)
        await self._publisher.reached()
        await self._publisher.in_catalog(healthy=member)

    async def _stop(self) -> None:
        """In good order: Patroni shuts PostgreSQL down and gives the leader key away."""
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


async def _beats(host: str, port: int) -> bool:
    """Whether Patroni's REST interface says that its loop goes round."""
    try:
        async with asyncio.timeout(PROBE_SECONDS * 2):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"GET /liveness HTTP/1.0\r\n\r\n")
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
