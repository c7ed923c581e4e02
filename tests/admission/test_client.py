"""Nothing goes to a coordinator before its evidence was verified, and to no other afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ServerFingerprintMismatch, web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from admission import client
from admission.broker import Broker
from admission.client import (
    BEGUN_WITH,
    IN_FORCE,
    Attested,
    CoordinatorError,
    Greeting,
    NotAllowedError,
    RefusedError,
    decode_answer,
)
from admission.protocol import Code


@dataclass
class Fake:
    """A coordinator's HTTP API with a certificate of its own; counts what reached it."""

    url: str = ""
    requests: list[str] = field(default_factory=list)
    answer: tuple[int, Any] = (200, {"nonce": "00" * 32, "peer_id": "api-0", "expires_in": 60})
    manifest: tuple[int, Any] = (200, {"epoch": 1, "digest": "", "envelope": "signed"})
    connections: set[Any] = field(default_factory=set)

    async def handle(self, request: web.Request) -> web.Response:
        self.requests.append(request.path)
        self.connections.add(request.transport)
        status, body = self.manifest if request.path in (IN_FORCE, BEGUN_WITH) else self.answer
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


async def ask(coordinator: Attested) -> Any:
    """Some question."""
    return await coordinator.call("POST", "/v1/admission/challenge", {"group": "api"})


async def trusting(_: Greeting) -> None:
    """Believes every certificate."""


async def test_nothing_is_sent_to_a_coordinator_that_is_not_believed(tmp_path: Path) -> None:
    """The public question for the manifest is all that an unverified server gets."""

    async def refuse(_: Greeting) -> None:
        raise CoordinatorError("the coordinator's evidence is refused")

    fake = Fake()
    async with serve(fake, tmp_path):
        coordinator = Attested(fake.url, refuse)
        for _ in range(2):
            with pytest.raises(CoordinatorError):
                await ask(coordinator)
        await coordinator.close()
    assert fake.requests == [IN_FORCE, IN_FORCE]


class Lost:
    """A connection that ended after its handshake, whose other end showed `certificate`."""

    def __init__(self, certificate: bytes) -> None:
        self.certificate = certificate

    def get_extra_info(self, name: str) -> Any:
        return self if name == "ssl_object" else None

    def getpeercert(self, **_form: bool) -> bytes:
        return self.certificate


def test_another_certificate_on_a_lost_connection_is_a_mismatch() -> None:
    """A coordinator that boots anew, and ends the connection at once, has failed in a way that is foreseen."""
    pin = client._pin()
    pin.check(Lost(b"before"))  # type: ignore[arg-type]
    with pytest.raises(ServerFingerprintMismatch):
        pin.check(Lost(b"after"))  # type: ignore[arg-type]


async def test_certificate_is_verified_once_and_then_pinned(tmp_path: Path) -> None:
    """Calls go to the verified certificate only; a server with another one gets no request until it is verified too."""
    seen: list[bytes] = []

    async def verify(greeting: Greeting) -> None:
        seen.append(greeting.certificate)

    fake = Fake()
    async with serve(fake, tmp_path):
        coordinator = Attested(fake.url, verify)
        assert (await ask(coordinator))["peer_id"] == "api-0"
        await ask(coordinator)
        assert len(seen) == 1
    port = int(fake.url.rpartition(":")[2])
    async with serve(fake, tmp_path, port):
        before = len(fake.requests)
        with pytest.raises(CoordinatorError):
            await ask(coordinator)
        assert len(fake.requests) == before
        await ask(coordinator)
        assert len(seen) == 2
        assert seen[0] != seen[1]
    await coordinator.close()


async def test_manifest_and_question_go_over_one_connection(tmp_path: Path) -> None:
    """So asking for the manifest costs no further handshake; what is verified is the certificate of that connection."""
    said: list[Greeting] = []

    async def verify(greeting: Greeting) -> None:
        said.append(greeting)
        assert (await greeting.ask("/v1/manifest/history?after=0"))["peer_id"] == "api-0"

    fake = Fake()
    async with serve(fake, tmp_path):
        coordinator = Attested(fake.url, verify, manifest=BEGUN_WITH)
        await ask(coordinator)
        await coordinator.close()
    assert fake.requests == [BEGUN_WITH, "/v1/manifest/history", "/v1/admission/challenge"]
    assert len(fake.connections) == 1
    assert (said[0].url, said[0].envelope, said[0].reason) == (fake.url, "signed", "")


async def test_a_coordinator_without_a_manifest_says_why(tmp_path: Path) -> None:
    """It is judged by whoever holds one; nonsense in place of a manifest is an error."""
    said: list[Greeting] = []

    async def verify(greeting: Greeting) -> None:
        said.append(greeting)

    fake = Fake(manifest=(503, {"code": "NO_MANIFEST", "reason": "waits for an owner"}))
    async with serve(fake, tmp_path):
        coordinator = Attested(fake.url, verify)
        await ask(coordinator)
        assert (said[0].envelope, said[0].reason) == ("", "NO_MANIFEST: waits for an owner")
        await coordinator.close()
        fake.manifest = (200, b"<html>")
        with pytest.raises(CoordinatorError, match="expected a JSON object"):
            await ask(coordinator)
        await coordinator.close()
    assert len(said) == 1


async def test_old_verification_is_not_believed_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an hour the coordinator's evidence is looked at again: it may have been revoked since."""
    seen: list[bytes] = []

    async def verify(greeting: Greeting) -> None:
        seen.append(greeting.certificate)

    fake = Fake()
    async with serve(fake, tmp_path):
        coordinator = Attested(fake.url, verify)
        await ask(coordinator)
        monkeypatch.setattr("admission.client.VERIFY_SECONDS", -1.0)
        await ask(coordinator)
        await coordinator.close()
    assert len(seen) == 2


class Judging:
    """Who holds manifests, and judges coordinators by them; each verdict is noted."""

    def __init__(self) -> None:
        self.held = "first"
        self.refused: set[str] = set()
        self.by: list[str] = []

    async def __call__(self, greeting: Greeting) -> str:
        self.by.append(greeting.envelope)
        if greeting.envelope in self.refused:
            raise NotAllowedError("the coordinator is revoked")
        return greeting.envelope


async def test_a_newer_manifest_judges_who_was_verified_before_it(tmp_path: Path) -> None:
    """Before it is asked anything more, by what it has shown already, and once."""
    fake, judging = Fake(manifest=(200, {"envelope": "first"})), Judging()
    async with serve(fake, tmp_path):
        coordinator = Attested(fake.url, judging, held=lambda: judging.held)
        await ask(coordinator)
        judging.held = "second"
        await ask(coordinator)
        await ask(coordinator)
        assert judging.by == ["first", "second"]
        assert (fake.requests.count(IN_FORCE), len(fake.connections)) == (1, 1)
        judging.held, judging.refused, before = "third", {"first", "third"}, len(fake.requests)
        for _ in range(2):
            with pytest.raises(NotAllowedError):
                await ask(coordinator)
        assert fake.requests[before:] == [IN_FORCE], "the second time it is a stranger"
        await coordinator.close()


async def test_a_broker_is_judged_by_what_its_cvm_holds(tmp_path: Path) -> None:
    """All calls of an admission go through it."""
    fake, judging = Fake(manifest=(200, {"envelope": "first"})), Judging()
    async with serve(fake, tmp_path):
        broker = Broker(fake.url, judging, lambda: judging.held)
        await broker.ask("/v1/x")
        judging.held, judging.refused = "second", {"second"}
        with pytest.raises(NotAllowedError):
            await broker.ask("/v1/x")
        await broker.close()


async def test_what_a_coordinator_answers_while_it_is_revoked_is_not_taken(tmp_path: Path) -> None:
    """The manifest came between question and answer: what it says, such as keys and secrets, is of its choice."""
    judging = Judging()
    judging.refused = {"second"}

    class Slow(Fake):
        """Answers while a manifest is taken."""

        async def handle(self, request: web.Request) -> web.Response:
            if request.path != IN_FORCE:
                judging.held = "second"
            return await super().handle(request)

    fake = Slow(manifest=(200, {"envelope": "first"}))
    async with serve(fake, tmp_path):
        coordinator = Attested(fake.url, judging, held=lambda: judging.held)
        with pytest.raises(NotAllowedError):
            await ask(coordinator)
        await coordinator.close()


async def test_unreachable_coordinator_is_a_coordinator_error() -> None:
    """Nobody listening, and somebody who does not speak TLS."""
    coordinator = Attested("https://127.0.0.1:1", trusting)
    with pytest.raises(CoordinatorError, match="cannot be reached"):
        await ask(coordinator)
    with pytest.raises(CoordinatorError, match="is no https URL"):
        await ask(Attested("http://127.0.0.1:1", trusting))

    async def rude(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")
        writer.close()

    server = await asyncio.start_server(rude, "127.0.0.1", 0)
    async with server:
        with pytest.raises(CoordinatorError):
            await ask(Attested(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", trusting))


async def test_error_codes_become_refusals(tmp_path: Path) -> None:
    """A known code is a RefusedError with its reason; anything else is a CoordinatorError."""
    fake = Fake(answer=(409, {"code": "SLOT_TAKEN", "reason": "held by another"}))
    async with serve(fake, tmp_path):
        coordinator = Attested(fake.url, trusting)
        with pytest.raises(RefusedError, match="held by another") as caught:
            await ask(coordinator)
        assert (caught.value.code, caught.value.answer["code"]) == (Code.SLOT_TAKEN, "SLOT_TAKEN")
        for body in ({"code": "NONSENSE"}, b"<html>", [], {}):
            fake.answer = (500, body)
            with pytest.raises(CoordinatorError):
                await ask(coordinator)
        fake.answer = (200, b" " * ((1 << 20) + 1))
        with pytest.raises(CoordinatorError, match="more than"):
            await ask(coordinator)
        await coordinator.close()


def test_empty_answer_is_an_empty_object() -> None:
    """A release is answered without a body by some servers."""
    assert decode_answer("u", 204, b"") == {}


async def test_the_clock_is_measured_by_a_verified_coordinators_answers(tmp_path: Path) -> None:
    """Not by what a server says before its evidence was verified, and anew with each answer."""
    shift = 3600.0

    class Late(Fake):
        async def handle(self, request: web.Request) -> web.Response:
            response = await super().handle(request)
            response.headers["Date"] = formatdate(time.time() - shift, usegmt=True)
            return response

    fake = Late()

    async def refuse(greeting: Greeting) -> str:
        raise CoordinatorError("not ours")

    async def trust(_: Greeting) -> str:
        return ""

    async with serve(fake, tmp_path):
        stranger = Attested(fake.url, refuse)
        with pytest.raises(CoordinatorError):
            await stranger.call("GET", "/x")
        assert stranger.skew is None
        it = Attested(fake.url, trust)
        for shift in (3600.0, -3600.0):
            await it.call("GET", "/x")
            assert it.skew is not None
            assert it.skew.least < shift < it.skew.most
            assert abs(it.skew.certain) > 3500
        await it.close()
