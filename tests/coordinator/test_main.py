"""`python -m coordinator` as a process."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.agent import GuestAgentServer
from lab.namespaces import inside_network
from lab.owner import Coordinator, give
from runtime.tasks import TaskScope
from tests.coordinator.world import COORDINATOR_COMPOSE, OWNER, OWNER_KEY, TEE, cvm, make_manifest
from tests.support import ROOT, eventually, network_namespace, popen, tool, unread_pipe
from topology.envelope import seal

ENTER = """
import runpy, sys
from pyroute2 import netns
netns.setns(sys.argv.pop(1))
runpy.run_module("coordinator", run_name="__main__")
"""


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network namespace for one test. Made outside of its event loop, where pyroute2's simple calls do not work."""
    with network_namespace() as name:
        yield name


def environment(folder: Path, **more: str) -> dict[str, str]:
    """A good configuration whose guest agent does not exist."""
    return {
        "PATH": os.environ["PATH"],
        "MESH_CLUSTER": "tests",
        "MESH_OWNERS": OWNER_KEY,
        "MESH_STATE_DIR": str(folder / "private"),
        "MESH_DATA_DIR": str(folder / "data"),
        "MESH_GUEST_AGENT": str(folder / "none.sock"),
        **more,
    }


def start(environ: dict[str, str], namespace: str | None = None) -> subprocess.Popen[str]:
    """The process, in a network namespace where one is named."""
    arguments = ["-c", ENTER, namespace] if namespace else ["-m", "coordinator"]
    return popen([sys.executable, *arguments], cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True)


def test_a_wrong_configuration_ends_with_2(tmp_path: Path) -> None:
    """All problems on stderr, nothing made."""
    process = start(environment(tmp_path, MESH_FOO="1", MESH_LISTEN="x"))
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "MESH_FOO" in told
    assert "MESH_LISTEN" in told
    assert not (tmp_path / "private").exists()


def test_a_program_that_cannot_be_run_ends_it_with_2(tmp_path: Path) -> None:
    """A Consul that is not there is told at once, with the variable, instead of being restarted for ever."""
    process = start(environment(tmp_path, MESH_CONSUL="/no/consul"))
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "MESH_CONSUL: is '/no/consul', expected a program that can be run" in err


def test_it_waits_for_the_guest_agent_and_stops_when_told(tmp_path: Path) -> None:
    """Without an agent it says what it waits for, in log and status, and SIGTERM ends it with 0."""
    process = start(environment(tmp_path, MESH_CONSUL="/bin/true"))
    assert process.stderr is not None
    for line in process.stderr:
        if "guest agent not usable yet" in line:
            break
    with socket.socket(socket.AF_UNIX) as status:
        status.connect(str(tmp_path / "private" / "status.sock"))
        status.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"none.sock" in status.recv(65536)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0


async def test_a_log_that_nobody_reads_stops_nothing(tmp_path: Path) -> None:
    """Its stderr takes nothing any more from the first line on: it starts, answers, and ends when told."""
    with unread_pipe() as log:
        process = popen(
            [sys.executable, "-m", "coordinator"],
            cwd=ROOT,
            env=environment(tmp_path, MESH_CONSUL="/bin/true"),
            stdout=log,
            stderr=log,
        )
        try:
            path = tmp_path / "private" / "status.sock"
            await eventually(path.exists, "it has begun")
            async with asyncio.timeout(30):
                reader, writer = await asyncio.open_unix_connection(path)
                writer.write(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b"none.sock" in await reader.read()
                writer.close()
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 30) == 0
        finally:
            process.kill()
            process.wait()


@pytest.mark.netns
async def test_a_coordinator_in_a_network_of_its_own(namespace: str) -> None:
    """With the real link and the real Consul it becomes ready; SIGTERM leaves nothing running."""
    folder = Path(tempfile.mkdtemp(prefix="m-", dir="/dev/shm"))
    agent = GuestAgentServer(TEE, cvm(COORDINATOR_COMPOSE, "coordinator-0"))
    await agent.start(folder / "dstack.sock")
    manifest = dataclasses.replace(make_manifest(network="100.96.0"), mesh_pool="100.96.0.0/16")
    process = start(
        environment(
            folder,
            MESH_GUEST_AGENT=str(folder / "dstack.sock"),
            MESH_CONSUL=tool("consul"),
            MESH_WIREGUARD_GO=tool("wireguard-go"),
        ),
        namespace,
    )
    lead = Coordinator(
        name="coordinator-0",
        status_socket=folder / "private" / "status.sock",
        runs=lambda: process.poll() is None,
        address=lambda: "127.0.0.1",
    )

    def make_socket() -> socket.socket:
        with inside_network(f"/run/netns/{namespace}"):
            return socket.socket(socket.AF_INET, socket.SOCK_STREAM)

    try:
        async with TaskScope() as scope:
            owner = scope.start("owner", give(lead, seal(manifest, OWNER), make_socket))
            document = await ready(lead.status_socket)
            owner.cancel()
        assert document["address"] == "100.96.0.1"
        assert document["children"]["consul"]["state"] == "running"
        children = [child["pid"] for child in document["children"].values()]
        process.send_signal(signal.SIGTERM)
        _, told = await asyncio.to_thread(process.communicate, timeout=30)
        assert process.returncode == 0, told
        assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []
    finally:
        process.kill()
        process.wait()
        await agent.stop()
        shutil.rmtree(folder)


async def ready(path: Path) -> Any:
    """The status document once it says ready."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_unix_connection(path)
                writer.write(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
                document = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
                writer.close()
                await writer.wait_closed()
                if document["ready"]:
                    return document
            await asyncio.sleep(0.01)
