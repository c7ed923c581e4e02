from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from coordinator.protocol import ChallengeRequest, Code
from runtime.secret import Secret
from sidecar.broker import (
    Broker,
    CoordinatorError,
    RefusedError,
    decode_admission,
    decode_answer,
    decode_challenge,
    decode_renewal,
)
from tests.sidecar.world import peer

ADMISSION = {
    "peer_id": "api-0",
    "address": "100.96.0.10",
    "consul": {
        "datacenter": "demo",
        "token": "s3cret-token",
        "token_expires_at": 1000,
        "gossip_key": "s3cret-gossip",
        "ca_pem": "CA",
        "certificate_pem": "CERT",
        "servers": ["100.96.0.9"],
    },
    "peers": [asdict(peer("coordinator-0", "100.96.0.9", "coordinator"))],
    "lease": "s3cret-lease",
    "lease_seconds": 15,
    "manifest": "envelope",
    "manifest_epoch": 3,
    "workload_token": "s3cret-workload",
    "secrets": {"database": "s3cret-database"},
    "manifest_digest": "d1" * 32,
    "leaf_pem": "LEAF",
    "authorities_pem": "MESH-CA",
}
ASK = ChallengeRequest(group="api", instance_id="aa")


@dataclass
class Fake:
    """A coordinator's HTTP API with a certificate of its own; counts what reached it."""

    url: str = ""
    requests: list[str] = field(default_factory=list)
    answer: tuple[int, Any] = (200, {"nonce": "00" * 32, "peer_id": "api-0", "expires_in": 60})

    async def handle(self, request: web.Request) -> web.Response:
        self.requests.append(request.path)
        status, body = self.answer
        return web.Response(status=status, body=body if isinstance(body, bytes) else json.dumps(body).encode())


def context(folder: Path) -> ssl.SSLContext:
    """A server context with a fresh self-signed certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = folder / "pair.pem"
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate.public_bytes(Encoding.PEM)
    )
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(path)
    return made


@contextlib.asynccontextmanager
async def serve(fake: Fake, folder: Path, port: int = 0) -> AsyncIterator[None]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fake.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=context(folder))
    await site.start()
    fake.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield
    finally:
        await runner.cleanup()


async def trusting(_: bytes) -> None:
    """Believes every certificate."""


async def test_nothing_is_sent_to_a_coordinator_that_is_not_believed(tmp_path: Path) -> None:
    """The TLS handshake is all that an unverified server gets."""

    async def refuse(_: bytes) -> None:
        raise CoordinatorError("the coordinator's evidence is refused")

    fake = Fake()
    async with serve(fake, tmp_path):
        broker = Broker(fake.url, refuse)
        for _ in range(2):
            with pytest.raises(CoordinatorError):
                await broker.challenge(ASK)
        await broker.close()
    assert fake.requests == []


async def test_certificate_is_verified_once_and_then_pinned(tmp_path: Path) -> None:
    """Calls go to the verified certificate only; a server with another one gets no request until it is verified too."""
    seen: list[bytes] = []

    async def verify(certificate: bytes) -> None:
        seen.append(certificate)

    fake = Fake()
    async with serve(fake, tmp_path):
        broker = Broker(fake.url, verify)
        assert (await broker.challenge(ASK)).peer_id == "api-0"
        await broker.challenge(ASK)
        assert len(seen) == 1
    port = int(fake.url.rpartition(":")[2])
    async with serve(fake, tmp_path, port):
        before = len(fake.requests)
        with pytest.raises(CoordinatorError):
            await broker.challenge(ASK)
        assert len(fake.requests) == before
        await broker.challenge(ASK)
        assert len(seen) == 2
        assert seen[0] != seen[1]
    await broker.close()


async def test_old_verification_is_not_believed_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an hour the coordinator's evidence is looked at again: it may have been revoked since."""
    seen: list[bytes] = []

    async def verify(certificate: bytes) -> None:
        seen.append(certificate)

    fake = Fake()
    async with serve(fake, tmp_path):
        broker = Broker(fake.url, verify)
        await broker.challenge(ASK)
        monkeypatch.setattr("sidecar.broker.VERIFY_SECONDS", -1.0)
        await broker.challenge(ASK)
        await broker.close()
    assert len(seen) == 2


async def test_unreachable_coordinator_is_a_coordinator_error() -> None:
    """Nobody listening, and somebody who does not speak TLS."""
    broker = Broker("https://127.0.0.1:1", trusting)
    with pytest.raises(CoordinatorError, match="cannot be reached"):
        await broker.challenge(ASK)

    async def rude(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")
        writer.close()

    server = await asyncio.start_server(rude, "127.0.0.1", 0)
    async with server:
        with pytest.raises(CoordinatorError):
            await Broker(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", trusting).challenge(ASK)


async def test_error_codes_become_refusals(tmp_path: Path) -> None:
    """A known code is a RefusedError with its reason; anything else is a CoordinatorError."""
    fake = Fake(answer=(409, {"code": "SLOT_TAKEN", "reason": "held by another"}))
    async with serve(fake, tmp_path):
        broker = Broker(fake.url, trusting)
        with pytest.raises(RefusedError, match="held by another") as caught:
            await broker.challenge(ASK)
        assert caught.value.code is Code.SLOT_TAKEN
        for body in ({"code": "NONSENSE"}, b"<html>", [], {}):
            fake.answer = (500, body)
            with pytest.raises(CoordinatorError):
                await broker.challenge(ASK)
        fake.answer = (200, b" " * ((1 << 20) + 1))
        with pytest.raises(CoordinatorError, match="more than"):
            await broker.challenge(ASK)
        await broker.close()


def test_admission_is_decoded_with_its_secrets_wrapped() -> None:
    """Token, gossip key and lease hide themselves; whole numbers do for seconds."""
    admitted = decode_admission(ADMISSION, "https://one.test")
    assert admitted.token == Secret("s3cret-token")
    assert admitted.workload_token == Secret("s3cret-workload")
    assert admitted.secrets == {"database": Secret("s3cret-database")}
    assert admitted.lease_seconds == 15.0
    assert admitted.servers == ("100.96.0.9",)
    assert admitted.peers == (peer("coordinator-0", "100.96.0.9", "coordinator"),)
    assert "s3cret" not in repr(admitted)


@pytest.mark.parametrize("name", ["../hosts", "consul-token", "", ".x", "a/b", "A"])
def test_secret_that_could_not_be_a_file_of_its_own_is_refused(name: str) -> None:
    """Names become those of files: none leads out of the folder, or to the token's file."""
    with pytest.raises(CoordinatorError, match="names cannot be those of files"):
        decode_admission({**ADMISSION, "secrets": {name: "x"}}, "u")


@pytest.mark.parametrize(
    "broken", ["peer_id", "consul", "lease", "peers", "lease_seconds", "workload_token", "secrets", "leaf_pem"]
)
def test_admission_that_does_not_fit_is_refused_without_quoting_it(broken: str) -> None:
    """Every part is needed in its form, and no secret gets into the error."""
    for value in (None, 7, {"token": "s3cret-token"}, ["s3cret"]):
        if (broken, value) in (("lease_seconds", 7), ("secrets", {"token": "s3cret-token"})):
            continue
        with pytest.raises(CoordinatorError) as caught:
            decode_admission({**ADMISSION, broken: value}, "u")
        assert "s3cret" not in str(caught.value)


def test_challenge_and_renewal() -> None:
    """A nonce is 32 bytes in hex; a renewal may come without a token."""
    for nonce in ("00" * 31, "zz" * 32, ""):
        with pytest.raises(CoordinatorError):
            decode_challenge({"nonce": nonce, "peer_id": "api-0", "expires_in": 60})
    plain = decode_renewal({"lease_seconds": 15, "token": None, "token_expires_at": None, "manifest_epoch": 3})
    assert plain.token is None
    fresh = decode_renewal({"lease_seconds": 15.0, "token": "s3cret", "token_expires_at": 5, "manifest_epoch": 3})
    assert fresh.token == Secret("s3cret")
    assert (fresh.workload_token, fresh.secrets) == (None, None)
    more = decode_renewal(
        {"lease_seconds": 15, "manifest_epoch": 3, "workload_token": "", "secrets": {"database": "s3cret"}}
    )
    assert (more.workload_token, more.secrets) == (Secret(""), {"database": Secret("s3cret")})
    assert "s3cret" not in repr(more)
    with pytest.raises(CoordinatorError) as caught:
        decode_renewal({"lease_seconds": "s3cret"})
    assert "s3cret" not in str(caught.value)


def test_empty_answer_is_an_empty_object() -> None:
    """A release is answered without a body by some servers."""
    assert decode_answer("u", 204, b"") == {}
