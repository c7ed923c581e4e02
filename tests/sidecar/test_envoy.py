from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runtime.children import Child
from runtime.tasks import TaskScope
from sidecar.envoy import Envoy, count_connections, machines_roots
from tests.support import eventually, tool


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[tuple[Envoy, Child]]:
    """A real Envoy without a control plane."""
    # Not in pytest's own folder: a socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="mesh-test-") as folder:
        envoy = Envoy(Path(tool("envoy")), Path(folder), "api-0", "demo")
        child = Child(envoy.spec())
        async with TaskScope() as scope:
            task = scope.start("envoy", child.run())
            try:
                await up(envoy)
                yield envoy, child
            finally:
                task.cancel()


async def up(envoy: Envoy) -> None:
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(OSError, TimeoutError):
                if await envoy.healthy():
                    return
            await asyncio.sleep(0.02)


async def test_envoy_answers_on_private_sockets_and_drains_at_once_without_connections() -> None:
    """The bootstrap is private, the admin socket answers before there is any configuration, an idle drain is short."""
    async with running() as (envoy, child):
        folder = envoy.xds_socket.parent
        assert stat.S_IMODE((folder / "envoy.yaml").stat().st_mode) == 0o600
        assert stat.S_IMODE((folder / "envoy-admin.sock").stat().st_mode) == 0o600
        async with asyncio.timeout(5):
            assert await envoy.drain(60) == 0
        assert child.status().restarts == 0


async def test_killed_envoy_is_back_with_the_same_bootstrap() -> None:
    """SIGKILL: a new process that answers."""
    async with running() as (envoy, child):
        before = child.status().pid
        assert before is not None
        os.kill(before, signal.SIGKILL)
        await eventually(lambda: child.status().pid not in (None, before), "replaced")
        await up(envoy)


async def test_drain_of_an_envoy_that_is_gone_does_not_wait() -> None:
    """Nobody to ask means nobody to wait for."""
    envoy = Envoy(Path("/bin/true"), Path("/does/not/exist"), "api-0", "demo")
    async with asyncio.timeout(5):
        assert await envoy.drain(60) == 0


async def test_listeners_stay_open_while_others_still_call() -> None:
    """They have not heard yet that this CVM's services are gone: whom they connect to must not refuse them."""
    with tempfile.TemporaryDirectory(prefix="mesh-test-") as folder:
        envoy = Envoy(Path("/bin/true"), Path(folder), "api-0", "demo")
        asked = list[str]()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append((await reader.readline()).decode().split()[1])
            count = min(10, len(asked))
            text = "cluster.local/api.upstream_cx_active: 0" if "active" in asked[-1] else (
                f"cluster.local/api.upstream_cx_total: {count}"
            )  # fmt: skip
            writer.write(f"HTTP/1.1 200 OK\r\n\r\n{text}\n".encode())
            writer.close()

        async with await asyncio.start_unix_server(answer, envoy.xds_socket.parent / "envoy-admin.sock"):
            assert await envoy.drain(60) == 0
        closed = asked.index("/drain_listeners")
        assert closed > 10
        assert all("upstream_cx_total" in path for path in asked[:closed])
        assert [path for path in asked[closed + 1 :] if "upstream_cx_active" not in path] == []


async def test_who_calls_on_and_on_takes_half_of_the_drain_and_what_is_left_is_told() -> None:
    """The other half is for what is open."""
    with tempfile.TemporaryDirectory(prefix="mesh-test-") as folder:
        envoy = Envoy(Path("/bin/true"), Path(folder), "api-0", "demo")
        asked = list[str]()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append((await reader.readline()).decode().split()[1])
            text = f"cluster.local/api.upstream_cx_total: {len(asked)}\ncluster.local/api.upstream_cx_active: 7\n"
            writer.write(f"HTTP/1.1 200 OK\r\n\r\n{text}".encode())
            writer.close()

        async with await asyncio.start_unix_server(answer, envoy.xds_socket.parent / "envoy-admin.sock"):
            assert await envoy.drain(1.0) > 0
        assert "/drain_listeners" in asked


def test_connections_are_counted_without_those_of_the_admin_interface() -> None:
    """Local programs' connections and other CVMs' streams add up; our own question does not count."""
    stats = (
        "HTTP/1.1 200 OK\r\n\r\nhttp.admin.downstream_cx_active: 1\nhttp.ingress.downstream_rq_active: 2\n"
        "tcp.api.downstream_cx_active: 3\n"
    )
    assert count_connections(stats) == 5
    assert count_connections("") == 0


def test_the_machines_roots_are_the_first_file_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment says, which the host sets."""
    second, third = tmp_path / "second", tmp_path / "third"
    for file in (second, third):
        file.write_text("x")
    monkeypatch.setenv("SSL_CERT_FILE", str(third))
    files = [str(tmp_path / "first"), str(second), str(third)]
    assert machines_roots(files) == str(second)
    assert machines_roots(files[:1]) is None
