"""`evidence.collateral`: one fetch for many callers, kept while it is good, and a service that fails in every way."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from evidence import collateral as module
from evidence.collateral import FixedCollateral, HttpCollateral, signed_part
from evidence.errors import EvidenceError
from lab import tee_pki
from lab.pccs import PccsServer
from lab.tee import CvmIdentity, DevTee
from runtime.tasks import TaskScope
from tests.evidence.world import NOW, SAID, boot

DAY = 86400.0
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Clock:
    """The time that the service makes collateral for."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class Front:
    """Stands before the PCCS and passes requests on; counts them, may hold them back, or answers in its place."""

    def __init__(self, behind: str) -> None:
        self.requests: list[str] = []
        self.asked = asyncio.Event()
        self.gate: asyncio.Event | None = None
        self.instead: Answer | None = None
        self._behind = behind

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        self.requests.append(request.path_qs)
        self.asked.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.instead is not None:
            return await self.instead(request)
        async with aiohttp.ClientSession() as session, session.get(self._behind + request.path_qs) as response:
            chains = {name: value for name, value in response.headers.items() if name.endswith("-Issuer-Chain")}
            return web.Response(status=response.status, body=await response.read(), headers=chains)


@asynccontextmanager
async def pccs(tee: DevTee) -> AsyncIterator[tuple[str, Front, Clock]]:
    """A PCCS on loopback behind a `Front`; yields the front's URL, the front and the service's clock."""
    clock = Clock()
    with socket.create_server(("127.0.0.1", 0)) as behind, socket.create_server(("127.0.0.1", 0)) as before:
        server = PccsServer(tee, clock=clock)
        front = Front(f"http://127.0.0.1:{behind.getsockname()[1]}")
        app = web.Application()
        app.router.add_get("/{path:.*}", front.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await server.start(behind)
        await runner.setup()
        await web.SockSite(runner, before).start()
        try:
            yield f"http://127.0.0.1:{before.getsockname()[1]}", front, clock
        finally:
            await runner.cleanup()
            await server.stop()


@pytest.fixture
def raw(tee: DevTee, cvm: CvmIdentity) -> bytes:
    """A quote of the development platform."""
    return tee.quote(cvm.measurements, SAID)


async def failure(source: HttpCollateral, quote: bytes, now: float) -> EvidenceError:
    """The error with which `source` has nothing for `quote`."""
    with pytest.raises(EvidenceError) as caught:
        await source.collateral(quote, now)
    return caught.value


async def test_four_requests_give_collateral(tee: DevTee, raw: bytes) -> None:
    """What comes over HTTP is byte for byte what the TEE published, and was asked for as a PCCS expects."""
    async with pccs(tee) as (url, front, _):
        found = await HttpCollateral(url + "/").collateral(raw, NOW)
    published = tee.collateral(NOW)
    assert {key: json.loads(found.to_json())[key] for key in published} == published
    assert sorted(front.requests) == [
        "/sgx/certification/v4/pckcrl?ca=platform&encoding=der",
        "/sgx/certification/v4/rootcacrl",
        "/tdx/certification/v4/qe/identity?update=standard",
        "/tdx/certification/v4/tcb?fmspc=C0FFEE000000&update=standard",
    ]


async def test_callers_share_one_fetch(tee: DevTee, raw: bytes) -> None:
    """Twenty callers at once cost four requests, and the next one none."""
    async with pccs(tee) as (url, front, _):
        source = HttpCollateral(url)
        async with TaskScope() as scope:
            tasks = [scope.start(f"caller {n}", source.collateral(raw, NOW)) for n in range(20)]
        first = tasks[0].result()
        assert all(task.result() is first for task in tasks)
        assert await source.collateral(raw, NOW + module.MAX_AGE - 1) is first
        assert len(front.requests) == 4


async def test_a_caller_that_gives_up_does_not_spoil_it_for_others(tee: DevTee, raw: bytes) -> None:
    """When the caller that fetches is cancelled, a waiting one fetches itself."""
    async with pccs(tee) as (url, front, _):
        front.gate = asyncio.Event()
        source = HttpCollateral(url)
        async with TaskScope() as scope:
            impatient = scope.start("impatient", source.collateral(raw, NOW))
            patient = scope.start("patient", source.collateral(raw, NOW))
            await front.asked.wait()
            impatient.cancel()
            front.gate.set()
        assert impatient.cancelled()
        assert patient.result() is not None


async def test_it_is_fetched_again_after_an_hour(tee: DevTee, raw: bytes) -> None:
    """Revocations must not wait for the end of the collateral's life."""
    async with pccs(tee) as (url, front, clock):
        source = HttpCollateral(url)
        first = await source.collateral(raw, NOW)
        clock.now = NOW + DAY
        second = await source.collateral(raw, NOW + module.MAX_AGE)
        assert second is not first
        assert len(front.requests) == 8


async def broken(_request: web.Request) -> web.StreamResponse:
    """A service in trouble."""
    return web.Response(status=500)


async def test_the_last_good_serves_while_the_service_fails(tee: DevTee, raw: bytes) -> None:
    """Until the collateral expires an outage is not noticed by callers, and the service is asked only now and then."""
    async with pccs(tee) as (url, front, clock):
        source = HttpCollateral(url)
        first = await source.collateral(raw, NOW)
        front.instead = broken
        asked = len(front.requests)
        for second in range(int(module.RETRY_AFTER)):
            assert await source.collateral(raw, NOW + module.MAX_AGE + second) is first
        assert len(front.requests) == asked + 1
        assert await source.collateral(raw, NOW + 20 * DAY) is first
        error = await failure(source, raw, NOW + 40 * DAY)
        assert (error.code, "500" in error.reason) == ("VERIFIER_FAILED", True)
        front.instead = None
        clock.now = NOW + 40 * DAY
        assert await source.collateral(raw, NOW + 40 * DAY + module.FAILURE_MEMORY) is not first


async def test_only_one_caller_waits_for_newer_collateral(tee: DevTee, raw: bytes) -> None:
    """While a refresh hangs, everybody else goes on with what is still in date."""
    async with pccs(tee) as (url, front, _):
        source = HttpCollateral(url)
        first = await source.collateral(raw, NOW)
        front.gate = asyncio.Event()
        front.asked.clear()
        async with TaskScope() as scope:
            waiting = scope.start("waiting", source.collateral(raw, NOW + module.MAX_AGE))
            await front.asked.wait()
            assert await source.collateral(raw, NOW + module.MAX_AGE) is first
            assert not waiting.done()
            front.gate.set()
        assert waiting.result() is not first


async def test_invented_platforms_push_out_no_real_one(
    tee: DevTee, raw: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quotes that name platforms which do not exist cost one request each and leave the real one's collateral alone."""
    monkeypatch.setattr(module, "MAX_PLATFORMS", 3)
    async with pccs(tee) as (url, front, _):
        source = HttpCollateral(url)
        first = await source.collateral(raw, NOW)
        asked = len(front.requests)
        for number in range(8):
            with monkeypatch.context() as patch:
                patch.setattr(tee_pki, "FMSPC", bytes([number]) * 6)
                invented = DevTee(b"inventor").quote(boot(tee).measurements, SAID)
            assert (await failure(source, invented, NOW)).code == "VERIFIER_FAILED"
        assert len(front.requests) == asked + 8
        assert await source.collateral(raw, NOW + 1) is first


async def test_few_machines_are_remembered(tee: DevTee, raw: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their certificates, which say what kind they are: the oldest is forgotten, and read again."""
    monkeypatch.setattr(module, "MAX_MACHINES", 2)
    others = [tee.quote(boot(tee, instance_seed=bytes([n])).measurements, SAID) for n in range(3)]
    async with pccs(tee) as (url, _, _):
        source = HttpCollateral(url)
        first = await source.collateral(raw, NOW)
        for each in (*others, raw):
            assert await source.collateral(each, NOW) is first, "all are of one kind"
            assert len(source._kinds) <= 2


async def test_a_failure_is_remembered_for_a_moment(tee: DevTee, raw: bytes) -> None:
    """Waiters behind a failed fetch fail with it instead of each trying in turn."""
    async with pccs(tee) as (url, front, _):
        front.instead = broken
        source = HttpCollateral(url)
        async with TaskScope() as scope:
            for number in range(10):
                scope.start(f"caller {number}", failure(source, raw, NOW))
        assert len(front.requests) == 1


async def test_collateral_that_arrives_expired_is_refused(tee: DevTee, raw: bytes) -> None:
    """A cache that serves old data is a failing cache."""
    async with pccs(tee) as (url, _, _clock):
        error = await failure(HttpCollateral(url), raw, NOW + 60 * DAY)
        assert (error.code, "expired" in error.reason) == ("VERIFIER_FAILED", True)


async def huge(_request: web.Request) -> web.StreamResponse:
    """More than anyone would want."""
    return web.Response(body=bytes(module.MAX_ANSWER + 1))


async def bare(_request: web.Request) -> web.StreamResponse:
    """An answer without its issuer chain."""
    return web.Response(body=b"0")


async def elsewhere(_request: web.Request) -> web.StreamResponse:
    """A redirect, which could lead anywhere."""
    raise web.HTTPFound("http://127.0.0.1:9/")


async def nonsense(_request: web.Request) -> web.StreamResponse:
    """Bytes that are no collateral."""
    chain = "x"
    names = ("SGX-PCK-CRL-Issuer-Chain", "TCB-Info-Issuer-Chain", "SGX-Enclave-Identity-Issuer-Chain")
    return web.Response(body=b"\xffnonsense", headers=dict.fromkeys(names, chain))


@pytest.mark.parametrize("answer", [huge, bare, elsewhere, nonsense, broken])
async def test_any_bad_answer_is_one_typed_error(
    tee: DevTee,
    raw: bytes,
    answer: Answer,
) -> None:
    """Whatever the service does, callers get VERIFIER_FAILED naming it."""
    async with pccs(tee) as (url, front, _):
        front.instead = answer
        error = await failure(HttpCollateral(url), raw, NOW)
        assert (error.code, url in error.reason) == ("VERIFIER_FAILED", True)


async def test_a_service_that_hangs_is_given_up(tee: DevTee, raw: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """All requests together have one deadline."""
    monkeypatch.setattr(module, "TIMEOUT", 0.05)
    async with pccs(tee) as (url, front, _):
        front.gate = asyncio.Event()
        error = await failure(HttpCollateral(url), raw, NOW)
        front.gate.set()
        assert error.code == "VERIFIER_FAILED"


async def test_nobody_listening(raw: bytes) -> None:
    """A refused connection is a failure like any other."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    assert (await failure(HttpCollateral(f"http://127.0.0.1:{port}"), raw, NOW)).code == "VERIFIER_FAILED"


async def test_a_quote_without_a_platform_is_the_quotes_fault() -> None:
    """Nothing is fetched for bytes that name no platform."""
    assert (await failure(HttpCollateral("http://127.0.0.1:9"), b"x" * 700, NOW)).code == "QUOTE_INVALID"


@pytest.mark.parametrize(("trusted", "failed"), [(True, "answers 404"), (False, "certificate verify failed")])
async def test_only_a_certified_service_is_asked(
    raw: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool, failed: str
) -> None:
    """Over https, the system's authorities decide, whatever aiohttp itself was loaded with."""
    mine, other = _certificate(tmp_path / "mine.pem"), _certificate(tmp_path / "other.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(mine if trusted else other))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(mine)
    runner = web.AppRunner(web.Application())
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await web.SockSite(runner, listener, ssl_context=context).start()
        try:
            url = f"https://127.0.0.1:{listener.getsockname()[1]}"
            assert failed in str(await failure(HttpCollateral(url), raw, NOW))
        finally:
            await runner.cleanup()


def _certificate(path: Path) -> Path:
    """Writes a key and its own certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, path.stem)])
    start = datetime.now(UTC) - timedelta(hours=1)
    address = x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + certificate.public_bytes(Encoding.PEM))
    return path


async def test_fixed_collateral_is_always_the_same(tee: DevTee, raw: bytes) -> None:
    """The same object for every quote and time."""
    source = FixedCollateral(tee.collateral_json(NOW))
    assert await source.collateral(raw, 0) is await source.collateral(b"", 1e12)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"a":{},"signature":"zz"}',
        '{"a":1,"signature":""}',
        '{"a":{"b":1},"a":{},"signature":""}',
    ],
)
def test_signed_part_refuses_what_is_not_unambiguous(text: str) -> None:
    """ValueError for anything but one object and its signature."""
    with pytest.raises(ValueError):  # noqa: PT011 - one of several kinds, all ValueError
        signed_part(text, "a")


def test_signed_part_keeps_every_byte() -> None:
    """White space and order inside the object are what was signed."""
    assert signed_part('{ "signature": "00ff", "a" : { "z":1,  "b" : 2 } }', "a") == ('{ "z":1,  "b" : 2 }', b"\0\xff")
