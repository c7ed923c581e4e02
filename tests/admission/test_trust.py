from __future__ import annotations

import time

import pytest

from admission.client import CoordinatorError, Greeting, NotAllowedError
from admission.trust import by, coordinator_check
from lab.agent import GuestAgentServer
from lab.pccs import PccsServer
from runtime.guest import GuestAgent
from tests.coordinator.world import API_COMPOSE, COORDINATOR_COMPOSE, TEE, cvm, make_manifest
from tests.topology.support import opened
from topology.envelope import Signed

SIGNED = opened(make_manifest())


@pytest.fixture
async def pccs() -> object:
    import socket

    sock = socket.create_server(("127.0.0.1", 0))
    server = PccsServer(TEE)
    await server.start(sock)
    yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    await server.stop()


async def certificate(tmp_path: object, compose: str, seed: str, *, ra_tls: bool = True) -> bytes:
    """The certificate (DER) that a guest agent makes in the CVM of that app."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    server = GuestAgentServer(TEE, cvm(compose, seed))
    path = tmp_path / "dstack.sock"  # type: ignore[operator]
    await server.start(path)
    try:
        async with GuestAgent(path) as guest:
            key = await guest.tls_key("test", ra_tls=ra_tls, server=True, client=False)
    finally:
        await server.stop()
    return x509.load_pem_x509_certificate(key.chain_pem.encode()).public_bytes(Encoding.DER)


async def ask(_path: str) -> dict[str, object]:
    """Has nothing more to say."""
    raise AssertionError


def greeting(certificate: bytes) -> Greeting:
    """Of a server with that certificate."""
    return Greeting(url="https://one.test", certificate=certificate, envelope="", reason="", ask=ask)


class Taker:
    """Keeps what was taken."""

    def __init__(self) -> None:
        self.taken: list[Signed] = []

    async def __call__(self, signed: Signed) -> None:
        self.taken.append(signed)


async def test_coordinator_of_the_manifest_is_believed(tmp_path: object, pccs: str) -> None:
    """The RA-TLS certificate of the measured coordinator app passes against the simulated TEE's root, and then its
    manifest is taken.
    """
    take = Taker()
    verify = coordinator_check(by(SIGNED), take, pccs, TEE.root_der, time.time)
    await verify(greeting(await certificate(tmp_path, COORDINATOR_COMPOSE, "coordinator-0")))
    assert take.taken == [SIGNED]


@pytest.mark.parametrize("case", ["other app", "no evidence", "Intel's root", "garbage"])
async def test_everyone_else_is_refused(tmp_path: object, pccs: str, case: str) -> None:
    """Another measured app, a plain certificate, a simulated quote under Intel's root, and noise."""
    root = None if case == "Intel's root" else TEE.root_der
    take = Taker()
    verify = coordinator_check(by(SIGNED), take, pccs, root, time.time)
    compose = API_COMPOSE if case == "other app" else COORDINATOR_COMPOSE
    der = b"noise" if case == "garbage" else await certificate(tmp_path, compose, "x", ra_tls=case != "no evidence")
    with pytest.raises(CoordinatorError, match="evidence is refused") as caught:
        await verify(greeting(der))
    assert isinstance(caught.value, NotAllowedError) == (case == "other app"), "genuine, and not allowed"
    assert take.taken == []
