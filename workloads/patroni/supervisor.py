"""The container's program: gathers what a member needs (token, passwords, place in Consul), then lives its life. IO."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

from runtime.backoff import Backoff
from runtime.consul import ConsulClient, ConsulError, write_config
from runtime.guest import GuestAgent, GuestError
from runtime.secret import Secret
from runtime.tasks import TaskScope
from workloads.patroni import config, passwords, processes, roles
from workloads.patroni.database import Database, DatabaseDownError, SlowDatabaseError
from workloads.patroni.life import Life, Program
from workloads.patroni.publisher import Publisher
from workloads.patroni.sessions import Sessions
from workloads.patroni.settings import Settings

log = logging.getLogger(__name__)

RETRY = Backoff(base=0.2, cap=10.0)
WAIT_SECONDS = 0.1
"""Between looks at what another process brings: a file, the sidecar's registration."""
TOKEN_SECONDS = 1.0
"""Between looks at a token that may have been renewed; it is renewed long before it ends."""
USERS_SECONDS = 1.0
"""From a promotion to the look at the applications' roles."""
TOKEN = "consul-token"


class Supervisor:
    """One member's container."""

    def __init__(self, settings: Settings, postgres_bin: Path) -> None:
        self._settings = settings
        self._bin = postgres_bin

    async def run(self) -> int:
        """Until a signal; returns the exit code."""
        settings = self._settings
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        settings.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings.data.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if processes.end_predecessor(settings.data):
            log.warning("ended a PostgreSQL that an earlier supervisor left")
        async with TaskScope() as scope:
            life = scope.start("member", self._live(scope))
            scope.start("stop", _cancel_after(stopping, life))
        return 0

    async def _live(self, scope: TaskScope) -> None:
        settings = self._settings
        token = await self._read_secret(TOKEN)
        consul = ConsulClient(token, port=settings.consul_port)
        secrets = await self._passwords()
        database = Database(settings.run, settings.port, secrets.superuser)
        where = await self._place(consul)
        publisher = Publisher(consul, where, settings.identity.peer_id, config.leader_key(settings))
        sessions = Sessions(consul, settings.identity.cluster, settings.identity.peer_id)
        life = Life(self._program(), publisher, sessions, database)
        self._write_config(secrets, token)
        with _events(settings.run, life):
            helpers = [
                scope.start("publish", publisher.run()),
                scope.start("token", self._follow_token(consul, life, secrets, token)),
                scope.start("watch", life.watch()),
                scope.start("stops", life.stops()),
                scope.start("guard", life.guard()),
                scope.start("users", self._keep_users(publisher, database.another())),
            ]
            try:
                await life.run()
            finally:
                for helper in helpers:
                    helper.cancel()
                await database.close()
                await consul.close()

    async def _keep_users(self, publisher: Publisher, database: Database) -> None:
        """Makes the applications' roles each time that this member has become leader.

        Those of the leader before it are in the database already, and have to log in first: a moment later will do.
        """
        users = self._settings.users
        while users:
            await publisher.leads(True)
            if publisher.promoted:
                await asyncio.sleep(USERS_SECONDS)
            try:
                for user in users:
                    await database.ensure_user(user.role, await self._read_secret(user.secret))
                log.info("application roles are there", extra={"roles": [user.role for user in users]})
                await publisher.leads(False)
            except (DatabaseDownError, SlowDatabaseError) as error:
                log.warning("application roles wait", extra={"reason": str(error)})
                await asyncio.sleep(1.0)
            finally:
                await database.close()

    async def _follow_token(
        self, consul: ConsulClient, life: Life, secrets: passwords.Passwords, token: Secret
    ) -> None:
        """Hands a renewed token on: Patroni reads its configuration again at SIGHUP, and goes on as it was."""
        while True:
            await asyncio.sleep(TOKEN_SECONDS)
            newest = await self._read_secret(TOKEN)
            if newest != token:
                token = newest
                consul.use_token(token)
                self._write_config(secrets, token)
                life.reload()
                log.info("token renewed")

    def _write_config(self, secrets: passwords.Passwords, token: Secret) -> None:
        tree = config.render(self._settings, secrets, token, self._bin)
        write_config(self._settings.run / config.CONFIG, tree)

    def _program(self) -> Program:
        settings = self._settings
        # Little, and nothing secret: Patroni takes PATRONI_ variables as configuration, PostgreSQL PG ones.
        kept = ("PATH", "PYTHONPATH", "LANG", "TZ", "HOME")
        return Program(
            argv=(sys.executable, "-m", "workloads.patroni.member", str(settings.run / config.CONFIG)),
            env={name: os.environ[name] for name in kept if name in os.environ} | {"PYTHONUNBUFFERED": "1"},
            data=settings.data,
            run=settings.run,
        )

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
                log.info("waiting for a file of the sidecar", extra={"path": str(path)})
            await asyncio.sleep(WAIT_SECONDS)

    async def _passwords(self) -> passwords.Passwords:
        rng = Random()
        async with GuestAgent(self._settings.guest) as guest:
            failures = 0
            while True:
                try:
                    return await passwords.fetch(guest, self._settings.identity.cluster)
                except GuestError as error:
                    log.warning("passwords wait for the guest agent", extra={"reason": str(error)})
                    await asyncio.sleep(RETRY.delay(failures, rng))
                    failures += 1

    async def _place(self, consul: ConsulClient) -> roles.Place:
        """Where the sidecar put its placeholder for this member."""
        own = f"{self._settings.service}-{self._settings.identity.peer_id}"
        told = ""
        while True:
            try:
                _, service = await consul.get(f"/v1/agent/service/{own}")
                return roles.place(service)
            except (ConsulError, ValueError) as error:
                if str(error) != told:
                    told = str(error)
                    log.info("waiting for the sidecar's registration", extra={"reason": told})
            await asyncio.sleep(WAIT_SECONDS)


@contextlib.contextmanager
def _events(run: Path, life: Life) -> Iterator[None]:
    """The pipe into which Patroni's callbacks write, and the scripts. Both ends are ours, so that it never ends."""
    pipe = run / config.EVENTS
    for path in (pipe, *run.glob(f"{config.STOP_REPLY}.*")):
        path.unlink(missing_ok=True)
    os.mkfifo(pipe, 0o600)
    _write_script(run / config.CALLBACK, config.callback_script(pipe))
    _write_script(run / config.BEFORE_STOP, config.before_stop_script(run))
    descriptor = os.open(pipe, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def read() -> None:
        for line in os.read(descriptor, 4096).decode(errors="replace").splitlines():
            action, _, what = line.partition(" ")
            if action == "before_stop":
                life.on_stop(what)
            else:
                life.on_event(action, what)

    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, read)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _write_script(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.touch(mode=0o700)
    path.write_text(text, encoding="utf-8")


async def _cancel_after(event: asyncio.Event, task: asyncio.Task[None]) -> None:
    await event.wait()
    task.cancel()


def find_postgres(path: str | None) -> Path:
    """The folder of PostgreSQL's programs, by `postgres` on `path`. FileNotFoundError without one."""
    found = shutil.which("postgres", path=path)
    if found is None:
        raise FileNotFoundError("there is no postgres on PATH; install PostgreSQL 15 or newer, or add its bin folder")
    return Path(found).resolve().parent
