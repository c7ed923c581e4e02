"""The Consul client, against a real development server on loopback and against a server that misbehaves."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from runtime.consul import ConsulClient, ConsulError, next_index
from runtime.secret import Secret
from runtime.tasks import TaskScope
from tests.coordinator.world import free_port
from tests.support import popen, tool


@pytest_asyncio.fixture
async def consul() -> AsyncIterator[ConsulClient]:
    """A client of a development server (in memory, no ACLs)."""
    port, rpc, serf = free_port(), free_port(), free_port()
    ports = f"ports {{ http = {port} server = {rpc} serf_lan = {serf} serf_wan = -1 dns = -1 grpc = -1 grpc_tls = -1 }}"
    process = _popen([tool("consul"), "agent", "-dev", "-hcl", ports, "-bind", f"127.{os.getpid() % 200 + 20}.0.1"])
    try:
        async with ConsulClient(port=port) as client:
            await _wait(client)
            yield client
    finally:
        process.kill()
        process.wait()


def _popen(argv: list[str]) -> subprocess.Popen[bytes]:
    return popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


async def _wait(client: ConsulClient) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                if (await client.get("/v1/status/leader"))[1]:
                    return
            except ConsulError:
                pass
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("previous", "seen", "wanted"),
    [(None, 7, 7), (7, 7, 7), (7, 9, 9), (7, 3, 0), (None, 0, 1), (7, 0, 1), (0, 5, 5)],
)
def test_the_index_rules(previous: int | None, seen: int, wanted: int) -> None:
    """An index goes on, starts over when it goes back, and is never 0 to block on."""
    assert next_index(previous, seen) == wanted


async def test_a_blocking_query_wakes_on_a_change(consul: ConsulClient) -> None:
    """`get` with an index returns when the key changed, with a greater index."""
    await consul.put("/v1/kv/a", b"1")
    index, before = await consul.get("/v1/kv/a")
    async with TaskScope() as scope:
        waiting = scope.start("wait", consul.get("/v1/kv/a", index=index, wait=30))
        await consul.put("/v1/kv/a", b"2")
        later, after = await waiting
    assert later > index
    assert before[0]["Value"] != after[0]["Value"]


async def test_a_blocking_query_ends_without_a_change(consul: ConsulClient) -> None:
    """After its wait it returns the same data and index."""
    await consul.put("/v1/kv/a", b"1")
    index, _ = await consul.get("/v1/kv/a")
    assert (await consul.get("/v1/kv/a", index=index, wait=0.01))[0] == index


async def test_a_missing_key_is_no_error_and_can_be_waited_for(consul: ConsulClient) -> None:
    """Absent: None with an index to block on."""
    index, value = await consul.get("/v1/kv/none")
    assert value is None
    assert index > 0
    async with TaskScope() as scope:
        waiting = scope.start("wait", consul.get("/v1/kv/none", index=index, wait=30))
        await consul.put("/v1/kv/none", b"1")
        assert (await waiting)[1] is not None


async def test_py_consuls_calls_go_over_the_same_transport(consul: ConsulClient) -> None:
    """`api` is py-consul: keys with odd characters survive, answers are decoded."""
    assert await consul.api.kv.put("odd key/ü?&", "value")
    _, entry = await consul.api.kv.get("odd key/ü?&")
    assert entry["Value"] == b"value"
    assert await consul.api.kv.delete("odd key/ü?&")
    assert await consul.get("/v1/kv/odd key/ü?&", params={"raw": ""}) is not None


async def test_errors_have_a_status(consul: ConsulClient) -> None:
    """A refusal of Consul's is a ConsulError with status and text; an unknown path is 404."""
    with pytest.raises(ConsulError, match="400") as bad:
        await consul.put("/v1/agent/service/register", {"Name": 5})
    assert bad.value.status == 400
    with pytest.raises(ConsulError) as missing:
        await consul.get("/v1/none")
    assert missing.value.status == 404


async def test_nobody_there_is_status_zero() -> None:
    """Without an answer the status is 0."""
    async with ConsulClient(port=free_port()) as client:
        with pytest.raises(ConsulError, match="does not answer") as error:
            await client.get("/v1/status/leader")
    assert error.value.status == 0


async def test_the_token_is_sent_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The token goes as a header, a later one replaces it, and one in the environment is not used."""
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "from-environment")
    seen: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\nConnection: close\r\n\r\nlost")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with ConsulClient(Secret("first"), port=server.sockets[0].getsockname()[1]) as client:
        with pytest.raises(ConsulError, match="500") as error:
            await client.get("/v1/x")
        client.use_token(Secret("second"))
        with pytest.raises(ConsulError):
            await client.api.kv.get("a")
    server.close()
    await server.wait_closed()
    assert b"X-Consul-Token: first" in seen[0]
    assert b"X-Consul-Token: second" in seen[1]
    assert b"from-environment" not in b"".join(seen)
    assert "first" not in str(error.value)
