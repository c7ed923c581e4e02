"""The Consul server as a child: it is restarted, and its records and rights survive that."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from coordinator.keys import derive, gossip_key
from coordinator.server_process import ServerProcess, ServerSettings, Start
from runtime.secret import Secret
from runtime.tasks import TaskScope
from tests.coordinator.world import API_COMPOSE, Applicant, Running, cluster, cvm
from tests.support import eventually, tool
from tests.xds.mesh import loopback

KEYS = derive(Secret("00" * 32), "tests")


def consul_child(lead: Running) -> dict[str, object]:
    """Its entry in the status."""
    children = lead.coordinator.document()["children"]
    assert isinstance(children, dict)
    found: dict[str, object] = children["consul"]
    return found


async def test_a_killed_server_comes_back_with_its_records() -> None:
    """SIGKILL: restarted, the holder still holds, the next CVM is admitted, nobody re-attests."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        first = Applicant(url=lead.url, manifest=mesh.manifest)
        admission = await first.admitted()
        before = consul_child(lead)["pid"]
        assert isinstance(before, int)
        os.kill(before, signal.SIGKILL)
        await eventually(lambda: consul_child(lead)["pid"] not in (None, before), "the server is restarted")
        second = Applicant(url=lead.url, manifest=mesh.manifest, who=cvm(API_COMPOSE, "other"))
        assert (await mesh.retry(second, 20))["peer_id"] == "api-1"
        status, answer = await first.post("renew", {"lease": admission["lease"]})
        assert status == 200, answer
        assert consul_child(lead)["restarts"] == 1


async def test_secrets_are_in_private_files_only() -> None:
    """Nothing secret on the server's command line or in its environment; every file is 0600 in a folder of 0700."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        pid = consul_child(lead)["pid"]
        with open(f"/proc/{pid}/cmdline", "rb") as line, open(f"/proc/{pid}/environ", "rb") as environ:  # noqa: ASYNC230, PTH123
            shown = line.read() + environ.read()
        config = (lead.config.state_dir / "consul" / "config" / "server.json").read_text()
        import json

        tree = json.loads(config)
        for secret in (tree["encrypt"], tree["acl"]["tokens"]["initial_management"]):
            assert secret.encode() not in shown
        assert lead.config.state_dir.stat().st_mode & 0o777 == 0o700
        for path in (lead.config.state_dir / "consul").iterdir():
            if path.is_file():
                assert path.stat().st_mode & 0o777 == 0o600
        assert not (lead.config.state_dir / "ra-tls.pem").exists()


async def test_a_server_whose_disk_hangs_is_replaced(tmp_path: Path) -> None:
    """Though it answers, for as a leader it would keep the lead and finish no write."""
    hangs: list[bool] = []
    (tmp_path / "consul").mkdir()
    server = ServerProcess(
        ServerSettings(
            program=Path(tool("consul")), state_dir=tmp_path, cluster="tests", peer_id="coordinator-0",
            address=loopback(), siblings=tuple, data_dir=tmp_path / "records",
            gossip=lambda: gossip_key(KEYS, 0),
        ),
        KEYS, time.time, lambda: bool(hangs),
    )  # fmt: skip
    server.prepare(Start(server_id=str(uuid.uuid4()), found=True))
    async with TaskScope() as scope:
        child = scope.start("server", server.child.run())
        await until(server.leader, "it leads")
        hangs.append(True)
        await eventually(lambda: server.child.status().last_exit == "hung", "it is given up", 30)
        hangs.clear()
        await until(server.leader, "it leads again")
        child.cancel()
    await server.close()


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Waits, within bounds; fails with `what` was waited for."""
    try:
        async with asyncio.timeout(60):
            while not await condition():  # noqa: ASYNC110 - a program that starts tells nobody
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"not within 60 s: {what}")


async def test_a_disk_that_takes_no_writes_is_named() -> None:
    """Also where the mount's flags and the free space say nothing."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        (lead.config.data_dir / ".probe.new").mkdir()
        said = "takes no writes: Is a directory"
        await eventually(lambda: said in str(lead.coordinator.document()["reasons"]), "it is said")
        (lead.config.data_dir / ".probe.new").rmdir()
        await eventually(lambda: lead.coordinator.document()["reasons"] == [], "and that it is over")
