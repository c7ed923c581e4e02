"""The first phase."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from admission.admitted import admitted_as
from coordinator import identity
from coordinator.config import begun, parse
from evidence.ratls import expected_report_data, extract
from lab.agent import GuestAgentServer
from runtime.guest import GuestAgent
from runtime.tasks import TaskScope
from tests.coordinator.world import COORDINATOR_COMPOSE, OWNER, OWNER_KEY, TEE, cvm, make_manifest
from tests.support import eventually
from tests.topology.support import opened
from topology.allowed import why_not_allowed

CONFIG = begun(parse({"MESH_CLUSTER": "tests", "MESH_OWNERS": OWNER_KEY}), opened(make_manifest(), OWNER))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name, for a socket."""
    path = Path(tempfile.mkdtemp(prefix="i-"))
    yield path
    shutil.rmtree(path)


async def test_it_waits_for_the_agent(folder: Path) -> None:
    """An agent that comes up later is found; until then the reason is told."""
    said: list[str] = []
    server = GuestAgentServer(TEE, cvm(COORDINATOR_COMPOSE, "coordinator-0"))
    async with GuestAgent(folder / "dstack.sock") as guest, TaskScope() as scope:
        finding = scope.start("find", identity.find(guest, "tests", asyncio.Event(), said.append))
        await eventually(lambda: bool(said), "the reason is told")
        await server.start(folder / "dstack.sock")
        found = await finding
    await server.stop()
    assert found is not None
    placed = identity.place(found, CONFIG)
    assert (placed.peer_id, placed.address, placed.seed) == ("coordinator-0", "127.90.0.1", found.seed)
    assert "dstack.sock" in said[0]
    entry = placed.entry("key")
    assert (entry.peer_id, entry.address, entry.public_key) == ("coordinator-0", "127.90.0.1", "key")
    assert why_not_allowed(CONFIG.manifest, admitted_as(entry)) is None, "it says as what it is allowed"


async def test_it_stops_when_told(folder: Path) -> None:
    """Without an agent, a stop ends the wait."""
    stop = asyncio.Event()
    async with GuestAgent(folder / "dstack.sock") as guest, TaskScope() as scope:
        finding = scope.start("find", identity.find(guest, "tests", stop, lambda _: None))
        stop.set()
        assert await finding is None


async def test_the_server_certificate_carries_evidence(folder: Path) -> None:
    """TLS 1.3 with the RA-TLS certificate; its key does not stay on disk."""
    server = GuestAgentServer(TEE, cvm(COORDINATOR_COMPOSE, "coordinator-0"))
    await server.start(folder / "dstack.sock")
    async with GuestAgent(folder / "dstack.sock") as guest:
        found = await identity.find(guest, "tests", asyncio.Event(), lambda _: None)
    await server.stop()
    assert found is not None
    context = identity.server_tls(found.tls, folder)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3
    assert list(folder.iterdir()) == []
    der = ssl.PEM_cert_to_DER_cert(
        found.tls.chain_pem.split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----"
    )
    evidence = extract(der)
    assert expected_report_data(evidence.spki) in evidence.quote
