"""Watching a rendezvous, on loopback with a server that the test plays."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random

import pytest
from aiohttp import web

from peer import control
from peer.control import Table
from peer.spec import CONTROL_PORT, RendezvousPeer
from peer.watch import RendezvousWatch
from runtime.tasks import TaskScope
from tests.support import eventually

KEY = base64.b64encode(b"k" * 32).decode()
_subnets = itertools.count(1)


@dataclass
class Server:
    """A rendezvous."""

    net: str
    answers: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    asked: list[tuple[str, int]] = field(default_factory=list)
    wishes: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serves within the block."""
        app = web.Application()
        app.router.add_get("/v1/watch", self._watch)
        app.router.add_post("/v1/relay", self._relay)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, f"{self.net}.1", CONTROL_PORT).start()
        try:
            yield
        finally:
            await runner.cleanup()

    async def _watch(self, request: web.Request) -> web.Response:
        self.asked.append((request.remote or "", int(request.query["index"])))
        return web.Response(body=await self.answers.get())

    async def _relay(self, request: web.Request) -> web.Response:
        self.wishes.append(control.decode_relay_request(await request.read()))
        return web.json_response({"port": 52000})


@dataclass
class Setting:
    """A server and its watcher."""

    server: Server
    watch: RendezvousWatch
    changes: list[None]


@pytest.fixture
async def setting() -> AsyncIterator[Setting]:
    """The watcher runs; the server does when the test says so."""
    net = f"127.{80 + os.getpid() % 100}.{100 + next(_subnets)}"
    changes: list[None] = []
    peer = RendezvousPeer(public_key=KEY, endpoint="127.0.0.1:1", address=f"{net}.1")
    watch = RendezvousWatch(peer, f"{net}.2", lambda: changes.append(None), Random(0))
    async with TaskScope() as scope:
        tasks = [scope.start("watch", watch.watch()), scope.start("ask", watch.ask())]
        yield Setting(Server(net), watch, changes)
        for task in tasks:
            task.cancel()


async def test_tables_are_followed_from_our_own_address(setting: Setting) -> None:
    """Each question names the index of the last answer, and comes from our mesh address."""
    first = Table(index=5, mappings={KEY: "198.18.1.1:51820"})
    second = Table(index=9)
    async with setting.server.running():
        for table in (first, first, second):
            setting.server.answers.put_nowait(control.encode_table(table))
        await eventually(lambda: setting.watch.table == second, "the second table is there")
        await eventually(lambda: len(setting.server.asked) == 4, "it asks on")
        own = f"{setting.server.net}.2"
        assert setting.server.asked == [(own, 0), (own, 5), (own, 5), (own, 9)]
        assert len(setting.changes) == 2
        setting.server.answers.put_nowait(control.encode_table(second))


async def test_a_rendezvous_counts_as_silent_from_the_first_question(setting: Setting) -> None:
    """Not only once a question has failed: the first handshake may have been lost, and nobody says so."""
    async with setting.server.running():
        await eventually(lambda: bool(setting.server.asked), "it is asked")
        assert setting.watch.failing_since is not None
        setting.server.answers.put_nowait(control.encode_table(Table(index=5)))
        await eventually(lambda: setting.watch.failing_since is None, "it answers")
        setting.server.answers.put_nowait(control.encode_table(Table(index=5)))


async def test_a_lost_rendezvous_is_noticed_and_its_last_word_kept(setting: Setting) -> None:
    """It is asked again until it answers."""
    table = Table(index=5)
    async with setting.server.running():
        setting.server.answers.put_nowait(control.encode_table(table))
        await eventually(lambda: setting.watch.table == table, "the table is there")
        setting.server.answers.put_nowait(b"garbage")
        await eventually(lambda: setting.watch.failing_since is not None, "garbage is a failure")
        setting.server.answers.put_nowait(control.encode_table(table))
        await eventually(lambda: setting.watch.failing_since is None, "it recovers")
        setting.server.answers.put_nowait(control.encode_table(table))
    await eventually(lambda: setting.watch.failing_since is not None, "the loss is noticed")
    assert setting.watch.table == table
    setting.server.answers = asyncio.Queue()
    setting.server.answers.put_nowait(control.encode_table(Table(index=6)))
    async with setting.server.running():
        await eventually(lambda: setting.watch.failing_since is None, "its return is noticed")
        assert setting.watch.table == Table(index=6)
        setting.server.answers.put_nowait(control.encode_table(Table(index=6)))


async def test_wishes_are_sent_once(setting: Setting) -> None:
    """The driver repeats a wish with every look; the rendezvous hears it once in a while."""
    async with setting.server.running():
        for _ in range(50):
            setting.watch.want_relay(KEY)
        await eventually(lambda: bool(setting.server.wishes), "the wish is sent")
        await asyncio.sleep(0)
        assert setting.server.wishes == [KEY]
        setting.server.answers.put_nowait(b"{}")
