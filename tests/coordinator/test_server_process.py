"""The Consul server as a child: it is restarted, and its records and rights survive that."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import os
import signal
import socket
import ssl
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from cryptography import x509

from admission.broker import Admitted, decode_admission
from coordinator.keys import AGENT_CERTIFICATE_DAYS, agent_certificate, derive, gossip_key
from coordinator.server_process import ServerProcess, ServerSettings, Start
from runtime.children import Child
from runtime.consul import SERVER_PORT, ConsulClient, ConsulError, api_socket
from runtime.secret import Secret
from runtime.tasks import TaskScope
from sidecar import identity
from sidecar.agent import Agent
from tests.admission.test_broker import ADMISSION
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


async def test_rpc_certificates_are_replaced_while_server_and_agent_run(tmp_path: Path) -> None:
    """After the first ones have ended, the server shows its second one, and the agent comes back to a server that has
    lost all connections; neither was started again for it.
    """
    ends = time.time() + 20
    behind = [AGENT_CERTIFICATE_DAYS * 86400 - 20.0]

    def clock() -> float:
        return time.time() - behind[0]

    address, keys = loopback(), identity.make()
    server, admitted = lone_server(tmp_path / "server", address, clock), agent_admission(keys, address, clock())
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(server.close)
        consul = ConsulClient(KEYS.management_token, socket=api_socket(tmp_path / "agent"))
        await stack.enter_async_context(consul)
        agent = Agent(Path(tool("consul")), tmp_path / "agent", consul)
        stack.push_async_callback(agent.close)
        agent.write(admitted, keys)
        agent_child = Child(agent.spec())
        async with TaskScope() as scope:
            children = [scope.start("server", server.child.run()), scope.start("agent", agent_child.run())]
            await until(server.leader, "it leads")
            await agent.joined()
            assert not await server.renew_certificate()
            pids, first = (server.child.status().pid, agent_child.status().pid), shown(address, keys)
            assert abs(first.not_valid_after_utc.timestamp() - ends) < 2
            behind[0] = 0.0
            assert await server.renew_certificate()
            assert not await server.renew_certificate()
            renewed = dataclasses.replace(
                admitted, certificate_pem=agent_admission(keys, address, clock()).certificate_pem
            )
            assert agent.write(renewed, keys)
            await agent.use_token(admitted.token, reload=True)
            await eventually(lambda: time.time() > ends + 1, "the first certificates have ended", 60)
            second = shown(address, keys)
            assert second.not_valid_after_utc.timestamp() == server.certificate_expires_at
            assert (server.child.status().pid, agent_child.status().pid) == pids
            assert pids[0] is not None
            os.kill(pids[0], signal.SIGKILL)
            await eventually(lambda: server.child.status().pid not in (None, pids[0]), "the server is restarted")
            await until(server.leader, "it leads again")

            async def writes() -> bool:
                try:
                    return bool(await consul.put("/v1/kv/try", b"x"))
                except ConsulError:
                    return False

            await until(writes, "the agent writes through a new connection")
            assert agent_child.status().pid == pids[1]
            for child in children:
                child.cancel()


def lone_server(folder: Path, address: str, clock: Callable[[], float]) -> ServerProcess:
    """A server that founds a cluster of its own."""
    (folder / "consul").mkdir(parents=True)
    settings = ServerSettings(
        program=Path(tool("consul")), state_dir=folder, cluster="tests", peer_id="coordinator-0", address=address,
        siblings=tuple, data_dir=folder / "records", gossip=lambda: gossip_key(KEYS, 0),
    )  # fmt: skip
    server = ServerProcess(settings, KEYS, clock)
    server.prepare(Start(server_id=str(uuid.uuid4()), found=True))
    return server


def agent_admission(keys: identity.Keys, server: str, now: float) -> Admitted:
    """An admission whose agent is of the server at that mesh address, with a certificate made at `now`."""
    spki = base64.b64decode(keys.public.tls)
    consul = {
        "datacenter": "tests", "token": KEYS.management_token.reveal(), "token_expires_at": 0, "gossip_ring": "0",
        "gossip_keys": [gossip_key(KEYS, 0).reveal()], "ca_pem": KEYS.rpc_ca_pem, "servers": [server],
        "certificate_pem": agent_certificate(KEYS, spki, node="api-0", datacenter="tests", server=False, now=now),
    }  # fmt: skip
    return decode_admission({**ADMISSION, "address": loopback(), "consul": consul}, "https://one.test")


def shown(address: str, keys: identity.Keys) -> x509.Certificate:
    """The certificate that the server at `address` shows now, to an agent whose own is good."""
    spki = base64.b64decode(keys.public.tls)
    own = agent_certificate(KEYS, spki, node="api-0", datacenter="tests", server=False, now=time.time())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(own + keys.tls_private_pem.reveal())
        file.flush()
        context.load_cert_chain(file.name)
    with socket.create_connection((address, SERVER_PORT), 10) as raw:
        # The first byte says that TLS follows (Consul's agent/pool/conn.go, RPCTLS).
        raw.sendall(b"\x03")
        with context.wrap_socket(raw) as tls:
            return x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
