"""The workload's port before a real Consul: what its amounts are, and that its checks lead the agent nowhere else."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from runtime.consul import ConsulClient, ConsulError
from runtime.tasks import TaskScope
from sidecar.workload_amounts import MAX_CHECKS, MAX_KEYS, MAX_SESSIONS
from sidecar.workload_api import WorkloadApi
from sidecar.workload_rights import MAX_OPERATIONS, Rights
from tests.coordinator.world import free_port
from tests.sidecar.test_workload_api import TOKEN
from tests.support import eventually, popen, tool

NODE = "db-0"


class World:
    """A Consul server in memory, without rights of its own; the port before it; two clients."""

    def __init__(self, folder: Path) -> None:
        self.backend = free_port()
        own = Rights(
            peer_id=NODE, services={"db-db-0": "db"}, ports=frozenset({self.backend}), prefixes=("service/db",),
            sessions=True,
        )  # fmt: skip
        port, self._socket = free_port(), folder / "api.sock"
        self.api = WorkloadApi(self._socket, lambda: own, port)
        self.api.use(TOKEN)
        self.consul = ConsulClient(socket=self._socket)
        self.workload = ConsulClient(TOKEN, port=port)

    def start(self) -> subprocess.Popen[bytes]:
        """Starts the server."""
        ports = (
            f"ports {{ http = {free_port()} server = {free_port()} serf_lan = {free_port()} serf_wan = -1 dns = -1 "
            f'grpc = -1 grpc_tls = -1 }} addresses {{ http = "unix://{self._socket}" }} node_name = "{NODE}"'
        )
        argv = [tool("consul"), "agent", "-dev", "-hcl", ports, "-bind", f"127.{os.getpid() % 200 + 20}.0.2"]
        return popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    async def leads(self) -> None:
        """Returns when both answer."""
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(ConsulError):
                    if (await self.consul.get("/v1/status/leader"))[1]:
                        await self.workload.get("/v1/catalog/nodes")
                        return
                await asyncio.sleep(0.05)

    async def refused(self, path: str, body: object, status: int) -> str:
        """Why a write is refused, which it is."""
        with pytest.raises(ConsulError) as error:
            await self.workload.put(path, body)
        assert error.value.status == status, error.value
        return error.value.reason


@contextlib.asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    made = World(folder)
    process = made.start()
    try:
        async with made.consul, made.workload, TaskScope() as scope:
            task = scope.start("workload", made.api.run())
            await made.leads()
            yield made
            task.cancel()
    finally:
        process.kill()
        process.wait()


def batch(start: int, value: str) -> list[Any]:
    """A transaction that writes some keys."""
    encoded = base64.b64encode(value.encode()).decode()
    return [{"KV": {"Verb": "set", "Key": f"service/db/{start + n}", "Value": encoded}} for n in range(MAX_OPERATIONS)]


async def test_keys_are_bounded_and_the_rest_goes_on(tmp_path: Path) -> None:
    """No further key, by neither way, once there are as many as may be, whoever wrote them; reads, the session and
    deletions are as before, and what was deleted makes room.
    """
    async with world(tmp_path) as it:
        session = (await it.workload.put("/v1/session/create", {"TTL": "30s"}))["ID"]
        for start in range(0, MAX_KEYS, MAX_OPERATIONS):
            await it.consul.put("/v1/txn", batch(start, "x"))
        assert f"{MAX_KEYS} keys" in await it.refused("/v1/kv/service/db/more", b"x", 413)
        assert "Delete some" in await it.refused("/v1/txn", batch(MAX_KEYS, "x"), 413)
        assert len((await it.workload.get("/v1/kv/service/db", params={"keys": ""}))[1]) == MAX_KEYS
        await it.workload.put(f"/v1/session/renew/{session}")
        await it.workload.delete("/v1/kv/service/db/7")

        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(ConsulError):
                    assert await it.workload.put("/v1/kv/service/db/more", b"x") is True
                    break
                await asyncio.sleep(0.1)


async def test_sessions_and_checks_are_bounded(tmp_path: Path) -> None:
    """Also where many ask at once; those that are there are renewed and updated, and an end makes room."""
    async with world(tmp_path) as it:
        made = await asyncio.gather(
            *(it.workload.put("/v1/session/create", {"TTL": "60s"}) for _ in range(MAX_SESSIONS + 8)),
            return_exceptions=True,
        )
        sessions = [each["ID"] for each in made if isinstance(each, dict)]
        assert len(sessions) == MAX_SESSIONS
        assert f"at most {MAX_SESSIONS}" in await it.refused("/v1/session/create", {"TTL": "60s"}, 413)
        await it.workload.put(f"/v1/session/renew/{sessions[0]}")
        await it.workload.put(f"/v1/session/destroy/{sessions[0]}")
        await it.workload.put("/v1/session/create", {"TTL": "60s"})

        checks = [{"CheckID": f"c{n}", "TTL": "60s"} for n in range(MAX_CHECKS)]
        service = {"ID": "db-db-0", "Name": "db", "Port": 25432, "Checks": checks}
        await it.workload.put("/v1/agent/service/register", service)
        await it.workload.put("/v1/agent/service/register", service)
        one = {"Name": "one more", "ServiceID": "db-db-0", "TTL": "60s"}
        assert f"at most {MAX_CHECKS}" in await it.refused("/v1/agent/check/register", one, 413)
        await it.workload.put("/v1/agent/check/update/c0", {"Status": "passing"})
        await it.workload.put("/v1/agent/check/deregister/c0")
        await it.workload.put("/v1/agent/check/register", one)


async def test_writes_that_come_too_fast_are_told_when_to_come_again(tmp_path: Path) -> None:
    """429, while the same program's reads and session go on."""
    async with world(tmp_path) as it:
        session = (await it.workload.put("/v1/session/create", {"TTL": "30s"}))["ID"]
        refused: list[ConsulError] = []
        while not refused:
            # No more at once than the port has connections.
            writes = [it.workload.put("/v1/kv/service/db/a", b"x") for _ in range(100)]
            answers = await asyncio.gather(*writes, return_exceptions=True)
            refused = [each for each in answers if isinstance(each, ConsulError)]
        assert {each.status for each in refused} == {429}
        assert "50 a second" in refused[0].reason
        await it.workload.put(f"/v1/session/renew/{session}")
        assert (await it.workload.get("/v1/kv/service/db/a"))[1] is not None


async def test_a_redirect_leads_the_agents_check_nowhere(tmp_path: Path) -> None:
    """The workload's server answers an HTTP check with another place: the agent shows the answer, and does not go."""
    elsewhere = 0

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{other}/\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    async def count(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal elsewhere
        elsewhere += 1
        writer.close()

    async with world(tmp_path) as it:
        servers = [
            await asyncio.start_server(redirect, "127.0.0.1", it.backend),
            await asyncio.start_server(count, "127.0.0.1", 0),
        ]
        other = servers[1].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{it.backend}/health"
        checks = [{"CheckID": "web", "HTTP": url, "Interval": "1s", "Status": "passing"}]
        service = {"ID": "db-db-0", "Name": "db", "Port": 25432, "Checks": checks}
        await it.workload.put("/v1/agent/service/register", service)
        shown: dict[str, Any] = {}

        async def look() -> None:
            while "302" not in json.dumps(shown):
                shown.update((await it.consul.get("/v1/agent/checks"))[1])
                await asyncio.sleep(0.05)

        async with TaskScope() as scope:
            scope.start("look", look())
            await eventually(lambda: "302" in json.dumps(shown) or elsewhere > 0, "the agent has asked")
            assert (elsewhere, shown["web"]["Status"]) == (0, "critical")
        for server in servers:
            server.close()
            await server.wait_closed()
