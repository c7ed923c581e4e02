"""The Consul client, against a real development server on loopback and against a server that misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from runtime import consul as consul_module
from runtime.consul import ConsulClient, ConsulError, next_index, reading
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


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b'Content-Length: 9\r\n\r\n{"a":"\xff"}', "not UTF-8"),
        (b"Content-Length: 5000\r\n\r\n" + b"1" * 5000, "not JSON"),
        (b"Content-Length: 9000\r\n\r\n" + b"[" * 9000, "not JSON"),
        (b"Content-Length: 600\r\n\r\n" + b"1" * 600, "more than 512 bytes"),
        (b"Content-Length: 99\r\n\r\n{}", "Consul"),
    ],
    ids=["no UTF-8", "5,000 digits", "deep", "large", "cut off"],
)
async def test_nonsense_is_an_error_of_consul(monkeypatch: pytest.MonkeyPatch, answer: bytes, reason: str) -> None:
    """Whatever is wrong with an answer, who asked goes on."""
    if "512" in reason:
        monkeypatch.setattr(consul_module, "MAX_ANSWER", 512)
    async with _answering(b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + answer) as client:
        with pytest.raises(ConsulError, match=reason):
            await client.get("/v1/x")


@pytest.mark.parametrize(
    "index", ["1" * 5000, "\u00b2", "-1", "1_0", ""], ids=["5,000 digits", "²", "-1", "1_0", "none"]
)
async def test_an_index_of_nonsense_is_none(index: str) -> None:
    """The header is another party's text, as the body is."""
    head = f"HTTP/1.1 200 OK\r\nConnection: close\r\nX-Consul-Index: {index}\r\nContent-Length: 2\r\n\r\n{{}}"
    async with _answering(head.encode()) as client:
        assert await client.get("/v1/x") == (1, {})


@contextlib.asynccontextmanager
async def _answering(answer: bytes) -> AsyncIterator[ConsulClient]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        async with ConsulClient(port=server.sockets[0].getsockname()[1]) as client:
            yield client
    finally:
        server.close()
        await server.wait_closed()


def test_what_an_answer_lacks_is_an_error_of_consul() -> None:
    """Whichever error the reader ran into; one of Consul itself stays as it is."""
    for unforeseen in (KeyError("x"), OverflowError("inf"), RecursionError(), AttributeError("None")):
        with pytest.raises(ConsulError, match="the records cannot be read"), reading("the records"):
            raise unforeseen
    with pytest.raises(ConsulError, match="404"), reading("the records"):
        raise ConsulError(404, "gone")
