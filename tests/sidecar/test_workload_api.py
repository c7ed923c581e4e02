"""The workload's port: its own token and nothing else, answers as they come, places for who has the token."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from runtime.consul import ConsulClient, ConsulError
from runtime.secret import Secret
from runtime.tasks import TaskScope
from sidecar.workload_api import LIMITS, MAX_BODY, WorkloadApi
from tests.coordinator.world import free_port
from tests.sidecar.test_workload_rights import LEADER, OWN
from tests.support import eventually

TOKEN = Secret("the-workloads")


class Agent:
    """Stands in for Consul's agent, on a socket: says what it was asked, waits where a query blocks."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "api.sock"
        self.asked: list[tuple[str, str, str, bytes]] = []
        self.waiting = 0
        self.changed = asyncio.Event()
        self.broken = False
        self.hangs = ""
        """A path that is not answered."""
        self.bytes = b"[]"
        """What it answers."""
        app = web.Application(client_max_size=MAX_BODY * 2)
        app.router.add_route("*", "/{path:.*}", self.answer)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)

    async def start(self) -> None:
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.socket)).start()

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        token = request.headers.get("X-Consul-Token", "")
        self.asked.append((request.method, str(request.rel_url), token, await request.read()))
        response = web.StreamResponse(headers={"X-Consul-Index": "7", "Server": "agent"})
        if "index" in request.query or request.path == self.hangs:
            self.waiting += 1
            try:
                await self.changed.wait()
            finally:
                self.waiting -= 1
        await response.prepare(request)
        await response.write(self.bytes)
        if self.broken:
            assert request.transport is not None
            request.transport.abort()
        return response


class World:
    """The port, and what a workload sends to it."""

    def __init__(self, folder: Path) -> None:
        self.agent = Agent(folder)
        self.port = free_port()
        self.api = WorkloadApi(self.agent.socket, lambda: OWN, self.port)
        self.api.use(TOKEN)

    async def call(
        self, method: str, path: str, data: bytes = b"", *, token: str = TOKEN.reveal(), header: str = "X-Consul-Token"
    ) -> tuple[int, str]:
        """Status and text, on a connection of its own."""
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                method, f"http://127.0.0.1:{self.port}{path}", headers={header: token}, data=io.BytesIO(data)
            ) as response,
        ):
            return response.status, await response.text()

    async def up(self) -> None:
        """Returns when the port is there."""
        while True:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                await self.call("GET", "/")
                return
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def world(folder: Path, *, agent: bool = True) -> AsyncIterator[World]:
    made = World(folder)
    if agent:
        await made.agent.start()
    try:
        async with TaskScope() as scope:
            task = scope.start("workload", made.api.run())
            await made.up()
            yield made
            task.cancel()
    finally:
        await made.agent.stop()


async def test_a_call_goes_on_with_the_workloads_token(tmp_path: Path) -> None:
    """Path, query and body as judged, the answer's index with it; the agent's own words about itself stay behind.
    Before the first write the keys are counted.
    """
    async with world(tmp_path) as it, ConsulClient(TOKEN, port=it.port) as client:
        index, answer = await client.get(f"/v1/kv/{LEADER}", params={"consistent": ""})
        assert (index, answer) == (7, [])
        await client.put(f"/v1/kv/{LEADER}", b"db-0", params={"cas": "3"})
        assert it.agent.asked == [
            ("GET", f"/v1/kv/{LEADER}?consistent=", TOKEN.reveal(), b""),
            ("GET", "/v1/kv/service/db?recurse=&stale=", TOKEN.reveal(), b""),
            ("PUT", f"/v1/kv/{LEADER}?cas=3", TOKEN.reveal(), b"db-0"),
        ]
        bearer = f"Bearer {TOKEN.reveal()}"
        assert (await it.call("GET", f"/v1/kv/{LEADER}", token=bearer, header="Authorization"))[0] == 200


async def test_nobody_without_the_workloads_token_reaches_the_agent(tmp_path: Path) -> None:
    """Neither without one nor with another, also where Consul asks for none; and the caller holds no connection."""
    async with world(tmp_path) as it:
        for token in ("", "another", "ö"):
            for method, path in (("GET", f"/v1/kv/{LEADER}"), ("PUT", "/v1/agent/leave"), ("GET", "/v1/status/leader")):
                reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
                writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nX-Consul-Token: {token}\r\n\r\n".encode())
                answer = await asyncio.wait_for(reader.read(), 10)
                assert answer.startswith(b"HTTP/1.1 403")
                assert b"/run/mesh/secrets/consul-token" in answer
                writer.close()
        assert it.agent.asked == []


async def test_what_is_not_promised_is_refused_with_the_reason(tmp_path: Path) -> None:
    """With the right token too; a body that is too long likewise."""
    async with world(tmp_path) as it:
        status, reason = await it.call("PUT", "/v1/agent/leave")
        assert (status, "not what a workload may ask" in reason) == (403, True)
        assert (await it.call("PUT", f"/v1/kv/{LEADER}", b"x" * (MAX_BODY + 1)))[0] == 413
        assert it.agent.asked == []


async def test_a_blocking_query_wakes_at_once_and_ends_with_its_caller(tmp_path: Path) -> None:
    """The agent's answer goes on when it comes; nobody waits for a caller who has gone."""
    async with world(tmp_path) as it, ConsulClient(TOKEN, port=it.port) as client, TaskScope() as scope:
        asked = scope.start("ask", client.get(f"/v1/kv/{LEADER}", index=7, wait=300))
        await eventually(lambda: it.agent.waiting == 1, "the query blocks at the agent")
        it.agent.changed.set()
        assert await asked == (7, [])
        it.agent.changed.clear()
        gone = scope.start("gone", client.get(f"/v1/kv/{LEADER}", index=7, wait=300))
        await eventually(lambda: it.agent.waiting == 1, "the next one blocks")
        gone.cancel()
        await eventually(lambda: it.agent.waiting == 0, "it has ended")


async def test_connections_of_strangers_keep_nobody_out(tmp_path: Path) -> None:
    """More of them than there are places: who has the token gets one, and the agent hears of none of them."""
    async with world(tmp_path) as it:
        held = [await asyncio.open_connection("127.0.0.1", it.port) for _ in range(LIMITS.connections + 50)]
        assert (await it.call("GET", f"/v1/kv/{LEADER}"))[0] == 200
        assert len(it.agent.asked) == 1
        for _, writer in held:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def test_a_renewed_token_counts_at_once_and_the_one_before_with_it(tmp_path: Path) -> None:
    """Its holder reads the new one a moment later; one before that is nobody's."""
    async with world(tmp_path) as it:
        it.api.use(Secret("second"))
        it.api.use(Secret("second"))
        for token, wanted in (("second", 200), (TOKEN.reveal(), 200)):
            assert (await it.call("GET", f"/v1/kv/{LEADER}", token=token))[0] == wanted
        it.api.use(Secret("third"))
        for token, wanted in (("third", 200), ("second", 200), (TOKEN.reveal(), 403)):
            assert (await it.call("GET", f"/v1/kv/{LEADER}", token=token))[0] == wanted


async def test_an_agent_that_is_away_is_said(tmp_path: Path) -> None:
    """503 with the reason, and the next call is tried anew; half an answer is no answer."""
    async with world(tmp_path, agent=False) as it, ConsulClient(TOKEN, port=it.port) as client:
        status, reason = await it.call("GET", f"/v1/kv/{LEADER}")
        assert (status, "does not answer" in reason) == (503, True)
        await it.agent.start()
        assert (await client.get(f"/v1/kv/{LEADER}"))[1] == []
        it.agent.broken = True
        with pytest.raises(ConsulError) as error:
            await client.get(f"/v1/kv/{LEADER}")
        assert error.value.status == 0


async def test_long_answers_are_paid_for(tmp_path: Path) -> None:
    """Whoever has read a lot waits before the next read; a session is renewed meanwhile."""
    async with world(tmp_path) as made:
        made.agent.bytes = b"x" * (8 << 20)
        found = [(await made.call("GET", f"/v1/kv/{LEADER}"))[0] for _ in range(12)]
        assert found[:4] == [200] * 4
        assert 429 in found
        made.agent.bytes = b"[]"
        assert (await made.call("PUT", "/v1/session/renew/5e55"))[0] == 200


async def test_what_cannot_be_counted_in_time_is_refused_for_now(tmp_path: Path) -> None:
    """503, which a client tries again; nothing is opened that nobody has counted."""
    async with world(tmp_path) as it:
        it.agent.hangs = "/v1/session/node/db-0"
        status, reason = await it.call("PUT", "/v1/session/create")
        assert (status, "did not say within" in reason) == (503, True)
        assert [path for _, path, _, _ in it.agent.asked] == ["/v1/session/node/db-0"]
        it.agent.hangs = ""
        assert (await it.call("PUT", "/v1/session/create"))[0] == 200


async def test_a_port_that_is_taken_is_said_and_waited_for(tmp_path: Path) -> None:
    """An application that was first does not end the sidecar; the port is served once it is free."""
    made = World(tmp_path)
    taken = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", made.port)
    async with TaskScope() as scope:
        task = scope.start("workload", made.api.run())
        await eventually(lambda: made.api.problem is not None, "the status says so")
        taken.close()
        await taken.wait_closed()
        await eventually(lambda: made.api.problem is None, "served")
        assert (await made.call("GET", f"/v1/kv/{LEADER}"))[0] == 503
        task.cancel()
