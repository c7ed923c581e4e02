"""Runs one member: Patroni with its PostgreSQL, and what Consul is told about them. IO.

The order that keeps it safe, whatever ended Patroni or its PostgreSQL:
1. every process below us is dead and reaped: nobody here acknowledges a write any more;
2. the member check turns critical, Patroni's session falls with it, and the leader key with the session;
3. only when the servers have that, the check passes again and a new Patroni starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
from pathlib import Path
from random import Random

from runtime.backoff import Backoff
from runtime.consul import ConsulClient, ConsulError, write_config
from runtime.guest import GuestAgent, GuestError
from runtime.secret import Secret
from runtime.tasks import TaskScope
from workloads.patroni import config, passwords, processes, roles
from workloads.patroni.database import Database, DatabaseDownError, SlowDatabaseError
from workloads.patroni.processes import Processes
from workloads.patroni.publisher import Publisher
from workloads.patroni.settings import Settings

log = logging.getLogger(__name__)

RESTART = Backoff(base=0.2, cap=10.0)
GOOD_RUN_SECONDS = 30.0
STOP_SECONDS = 25.0
"""SIGTERM lets Patroni shut PostgreSQL down and hand over; then everything is killed."""
WAIT_SECONDS = 0.1
"""Between looks at what another process brings: a file, the sidecar's registration."""
LOOK_SECONDS = 0.5
"""Between questions to a database that is as announced."""
TURN_SECONDS = 0.01
"""Between questions to a database that is on its way to what was announced."""
SLOW_ANSWERS = 3
"""So many questions in a row without an answer, 5 s each, and the database counts as down."""
TOKEN = "consul-token"


class Supervisor:
    """One member's life."""

    def __init__(self, settings: Settings, postgres_bin: Path) -> None:
        self._settings = settings
        self._bin = postgres_bin
        self._rng = Random()
        self._claim: str | None = None
        self._turn = asyncio.Event()
        self._stopping = asyncio.Event()
        self._processes = Processes(self._on_orphan)

    async def run(self) -> int:
        """Until a signal; returns the exit code."""
        settings = self._settings
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        settings.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings.data.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if processes.end_predecessor(settings.data):
            log.warning("ended a PostgreSQL that an earlier supervisor left")
        events = self._open_events()
        try:
            with self._processes:
                async with TaskScope() as scope:
                    life = scope.start("member", self._live(scope))
                    scope.start("stop", self._end_of(life))
        except asyncio.CancelledError:
            pass
        finally:
            loop.remove_reader(events)
            os.close(events)
        return 0

    async def _end_of(self, life: asyncio.Task[None]) -> None:
        await self._stopping.wait()
        # Before Patroni's first start there is nothing to stop in good order.
        life.cancel()
        await asyncio.sleep(0)

    async def _live(self, scope: TaskScope) -> None:
        settings = self._settings
        token = await self._read_secret(TOKEN)
        consul = ConsulClient(token, port=settings.consul_port)
        secrets = await self._passwords()
        database = Database(settings.run, settings.port, secrets.superuser)
        where = await self._place(consul)
        self._publisher = Publisher(consul, where, settings.identity.peer_id)
        helpers = [scope.start("publish", self._publisher.run())]
        try:
            self._write_config(secrets, token, where)
            helpers += [
                scope.start("token", self._follow_token(consul, secrets, token, where)),
                scope.start("watch", self._watch(database)),
                scope.start("users", self._keep_users(database)),
            ]
            await self._keep_running()
        finally:
            await self._stop()
            for helper in helpers:
                helper.cancel()
            await database.close()
            await consul.close()

    async def _keep_running(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            # A session of before, ours or of a supervisor that was killed, must be gone before there is a new one.
            self._publisher.want(member=False, database=False, role=None)
            await self._publisher.reached()
            await self._publisher.in_catalog(healthy=False)
            self._publisher.want(member=True)
            await self._publisher.reached()
            await self._publisher.in_catalog(healthy=True)
            began = loop.time()
            self._processes.start(self._argv(), self._environment())
            log.info("patroni started")
            await self._processes.ended()
            self._claim = None
            await self._processes.clear()
            failures = 1 if loop.time() - began > GOOD_RUN_SECONDS else failures + 1
            log.warning("patroni ended", extra={"last_exit": self._processes.last_exit, "failures": failures})
            self._publisher.want(member=False, database=False, role=None)
            if failures > 1:
                await asyncio.sleep(RESTART.delay(failures - 2, self._rng))

    async def _stop(self) -> None:
        """In good order: Patroni shuts PostgreSQL down and gives the leader key away."""
        if self._processes.running:
            self._processes.signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await self._processes.ended()
        await self._processes.clear()
        self._publisher.want(member=False, database=False, role=None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._publisher.reached()

    def _on_orphan(self, pid: int) -> None:
        # A PostgreSQL that ends by itself removes its PID file; one that was killed cannot.
        if processes.postmaster_pid(self._settings.data) != pid:
            return
        log.warning("postgresql died", extra={"pid": pid, "claim": self._claim})
        leading = self._claim == roles.MASTER
        self._claim = None
        if hasattr(self, "_publisher"):
            self._publisher.want(database=False, role=None)
        if leading:
            # Patroni would notice at its next look, seconds later. Its own end is noticed now.
            self._processes.signal(signal.SIGKILL)

    def _open_events(self) -> int:
        """The pipe into which Patroni's callbacks write; both ends are ours, so that it never ends."""
        pipe = self._settings.run / config.EVENTS
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe, 0o600)
        script = self._settings.run / config.CALLBACK
        script.unlink(missing_ok=True)
        script.touch(mode=0o700)
        script.write_text(config.callback_script(pipe), encoding="utf-8")
        descriptor = os.open(pipe, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        asyncio.get_running_loop().add_reader(descriptor, self._on_event, descriptor)
        return descriptor

    def _on_event(self, descriptor: int) -> None:
        for line in os.read(descriptor, 4096).decode(errors="replace").splitlines():
            action, _, role = line.partition(" ")
            self._claim = roles.announced(action, role)
            log.info("role announced", extra={"action": action, "role": role, "claim": self._claim})
            if roles.outdated(self._claim, self._publisher.wanted.role):
                self._publisher.want(role=None)
        self._turn.set()

    async def _watch(self, database: Database) -> None:
        """Publishes whether the database answers, and its role once it is what was announced."""
        slow = 0
        while True:
            self._turn.clear()
            state: bool | None
            try:
                state = await database.in_recovery()
                slow = 0
            except SlowDatabaseError:
                slow += 1
                if slow < SLOW_ANSWERS:
                    continue
                state = None
            except DatabaseDownError:
                state = None
            role = roles.confirmed(self._claim, state)
            self._publisher.want(database=state is not None, role=role)
            turning = state is not None and role != self._claim
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TURN_SECONDS if turning else LOOK_SECONDS):
                    await self._turn.wait()

    async def _keep_users(self, database: Database) -> None:
        """Makes the applications' roles each time that this member has become leader."""
        users = self._settings.users
        while users:
            await self._publisher.leads(True)
            # Its own connection: the watch must not wait for it.
            own = database.another()
            try:
                for user in users:
                    await own.ensure_user(user.role, await self._read_secret(user.secret))
                log.info("application roles are there", extra={"roles": [user.role for user in users]})
                await self._publisher.leads(False)
            except (DatabaseDownError, SlowDatabaseError) as error:
                log.warning("application roles wait", extra={"reason": str(error)})
                await asyncio.sleep(1.0)
            finally:
                await own.close()

    async def _follow_token(
        self, consul: ConsulClient, secrets: passwords.Passwords, token: Secret, where: roles.Place
    ) -> None:
        """Hands a renewed token on: Patroni reads its configuration again at SIGHUP, and goes on as it was."""
        while True:
            await asyncio.sleep(1.0)
            newest = await self._read_secret(TOKEN)
            if newest != token:
                token = newest
                consul.use_token(token)
                self._write_config(secrets, token, where)
                self._processes.signal(signal.SIGHUP)
                log.info("token renewed")

    def _write_config(self, secrets: passwords.Passwords, token: Secret, where: roles.Place) -> None:
        tree = config.render(self._settings, secrets, token, where.member_check, self._bin)
        write_config(self._settings.run / config.CONFIG, tree)

    def _argv(self) -> tuple[str, ...]:
        return (sys.executable, "-m", "workloads.patroni.member", str(self._settings.run / config.CONFIG))

    def _environment(self) -> dict[str, str]:
        """Little, and nothing secret: Patroni takes PATRONI_ variables as configuration, PostgreSQL PG ones."""
        kept = ("PATH", "PYTHONPATH", "LANG", "TZ", "HOME")
        return {name: os.environ[name] for name in kept if name in os.environ} | {"PYTHONUNBUFFERED": "1"}

    async def _read_secret(self, name: str) -> Secret:
        path = self._settings.secrets / name
        told = False
        while True:
            with contextlib.suppress(OSError):
                text = path.read_text(encoding="utf-8").strip()
                if text:
                    return Secret(text)
            if not told:
                told = True
                log.info("waiting for a secret", extra={"path": str(path)})
            await asyncio.sleep(WAIT_SECONDS)

    async def _passwords(self) -> passwords.Passwords:
        async with GuestAgent(self._settings.guest) as guest:
            failures = 0
            while True:
                try:
                    return await passwords.fetch(guest, self._settings.identity.cluster)
                except GuestError as error:
                    log.warning("passwords wait for the guest agent", extra={"reason": str(error)})
                    await asyncio.sleep(RESTART.delay(failures, self._rng))
                    failures += 1

    async def _place(self, consul: ConsulClient) -> roles.Place:
        """Where the sidecar put its placeholder for this member."""
        own = f"{self._settings.service}-{self._settings.identity.peer_id}"
        told = ""
        while True:
            try:
                _, service = await consul.get(f"/v1/agent/service/{own}")
                _, proxy = await consul.get(f"/v1/agent/service/{own}-sidecar-proxy")
                return roles.place(service, proxy)
            except (ConsulError, ValueError) as error:
                if str(error) != told:
                    told = str(error)
                    log.info("waiting for the sidecar's registration", extra={"reason": told})
            await asyncio.sleep(WAIT_SECONDS)


def find_postgres(path: str | None) -> Path:
    """The folder of PostgreSQL's programs, by `postgres` on `path`. FileNotFoundError without one."""
    found = shutil.which("postgres", path=path)
    if found is None:
        raise FileNotFoundError("there is no postgres on PATH; install PostgreSQL 15 or newer, or add its bin folder")
    return Path(found).resolve().parent
