"""The rendezvous process: configuration, its first manifest, and keys over attested connections."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import json
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from admission.client import BEGUN_WITH, Attested, CoordinatorError, Greeting, Verify
from peer.rendezvous import AttestedKeys, Config, Known, Newest, first_manifest, misfit, read_config
from peer.spec import LinkError
from peer.wireguard import generate_key
from runtime.env import ConfigError
from runtime.tasks import TaskScope
from tests.support import ROOT, eventually
from tests.topology.support import REFERENCE, after
from topology.envelope import open_envelope, seal
from topology.handover import Handover
from topology.manifest import (
    MANIFEST_VERSION,
    CoordinatorPeer,
    Coordinators,
    Manifest,
    Rendezvous,
)
from topology.owners import Owners, key_of, text_of

OWNER = Ed25519PrivateKey.generate()
OWNERS = Owners(keys=(key_of(OWNER),))
OWNER_KEY = text_of(OWNERS)
KEY, PUBLIC = generate_key()


def _manifest(public: str = PUBLIC) -> Manifest:
    coordinator = CoordinatorPeer(peer_id="coordinator-0", address="100.96.0.10", url="https://c0.example:443")
    return Manifest(
        version=MANIFEST_VERSION,
        epoch=1,
        owners=OWNERS,
        cluster="starter",
        references=(REFERENCE,),
        coordinators=Coordinators(app_id="aa" * 20, compose_hashes=("bb" * 32,), peers=(coordinator,)),
        rendezvous=(Rendezvous(public_key=public, endpoint="198.18.0.10:51820", address="100.96.0.1"),),
        groups={},
        routes=(),
    )


def _environ(tmp_path: Path, **changes: str) -> dict[str, str]:
    key = tmp_path / "key"
    key.touch(mode=0o600)
    key.write_text(KEY.reveal())
    good = {
        "MESH_OWNERS": OWNER_KEY,
        "MESH_COORDINATORS": '["https://c0.example:443"]',
        "MESH_RENDEZVOUS_ADDRESS": "100.96.0.1",
        "MESH_RENDEZVOUS_PUBLIC": "198.18.0.10",
        "MESH_RENDEZVOUS_KEY_FILE": str(key),
    }
    return {**good, **changes}


def test_a_good_configuration(tmp_path: Path) -> None:
    """Defaults are filled in."""
    config = read_config(_environ(tmp_path))
    assert config.coordinators == ("https://c0.example:443",)
    assert (config.port, config.dev_root, config.owners) == (51820, None, OWNERS)
    assert config.private_key == KEY


def test_unsigned_manifests_need_a_word(tmp_path: Path) -> None:
    """The insecure flag, and then the owner's key is not asked for."""
    environ = _environ(tmp_path)
    del environ["MESH_OWNERS"]
    with pytest.raises(ConfigError, match="MESH_OWNERS"):
        read_config(environ)
    assert read_config({**environ, "MESH_INSECURE_UNSIGNED_MANIFEST": "1"}).owners is None


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MESH_MANIFEST", "a.b", "no environment has a manifest"),
        ("MESH_OWNERS", "abc", "32 bytes"),
        ("MESH_COORDINATORS", '["http://plain"]', "https"),
        ("MESH_COORDINATORS", "{", "JSON"),
        ("MESH_COORDINATORS", "", "expected a JSON list of the coordinators' https URLs"),
        ("MESH_RENDEZVOUS_PUBLIC", "rendezvous.example", "IPv4"),
        ("MESH_RENDEZVOUS_PORT", "0", "port"),
        ("MESH_RENDEZVOUS_KEY_FILE", "/no/such/folder/key", "cannot be used"),
        ("MESH_INSECURE_DEV_ROOT", "*", "base64"),
        ("MESH_RENDEZVOUS_PUBLICK", "1.2.3.4", "did you mean MESH_RENDEZVOUS_PUBLIC"),
    ],
)
def test_bad_configuration(tmp_path: Path, variable: str, value: str, message: str) -> None:
    """Each mistake is named with what was expected."""
    with pytest.raises(ConfigError) as caught:
        read_config(_environ(tmp_path, **{variable: value}))
    assert any(problem.variable == variable for problem in caught.value.problems)
    assert message in str(caught.value)


def test_a_manifest_has_to_name_its_address_and_key() -> None:
    """A rendezvous with others would wait for CVMs that never come."""
    assert misfit(_manifest(), "100.96.0.1", PUBLIC) is None
    assert "its rendezvous are ['100.96.0.1']" in (misfit(_manifest(), "100.96.0.2", PUBLIC) or "")
    assert "and it names" in (misfit(_manifest(generate_key()[1]), "100.96.0.1", PUBLIC) or "")


def test_key_files_are_private(tmp_path: Path) -> None:
    """A key that others may read is refused; garbage is named, not shown."""
    environ = _environ(tmp_path)
    key = tmp_path / "key"
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_config(environ)
    key.chmod(0o600)
    key.write_text("not a key but secret")
    with pytest.raises(ConfigError, match="holds no WireGuard private key") as caught:
        read_config(environ)
    assert "not a key" not in str(caught.value)


def test_a_missing_key_is_made(tmp_path: Path) -> None:
    """The first start makes the file, for its owner only; the next one finds the same key."""
    path = tmp_path / "new"
    made = read_config(_environ(tmp_path, MESH_RENDEZVOUS_KEY_FILE=str(path))).private_key
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().strip() == made.reveal()
    assert read_config(_environ(tmp_path, MESH_RENDEZVOUS_KEY_FILE=str(path))).private_key == made


def test_the_process_reports_all_problems_and_ends_with_2() -> None:
    """`python -m peer.rendezvous` without configuration lists what is missing."""
    done = subprocess.run(
        [sys.executable, "-m", "peer.rendezvous"], cwd=ROOT, env={"PATH": "/usr/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 2
    for name in ("MESH_COORDINATORS", "MESH_OWNERS", "MESH_RENDEZVOUS_ADDRESS", "MESH_RENDEZVOUS_KEY_FILE"):
        assert name in done.stderr
    assert "Traceback" not in done.stderr


@dataclass
class Coordinator:
    """A coordinator's broker with a self-made certificate."""

    url: str = ""
    certificate: bytes = b""
    requests: list[str] = field(default_factory=list)
    answer: bytes = b'{"version": 4, "peers": []}'
    envelope: str = ""


def _certificate(tmp_path: Path) -> tuple[Path, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "c0")])
    today = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(today)
        .not_valid_after(today + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "c0.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + made.public_bytes(Encoding.PEM))
    return path, made.public_bytes(Encoding.DER)


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[Coordinator]:
    """Serves manifest and keys over TLS on loopback."""
    made = Coordinator()
    path, made.certificate = _certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)

    async def manifest(request: web.Request) -> web.Response:
        made.requests.append("manifest")
        if not made.envelope:
            return web.json_response({"code": "NO_MANIFEST", "reason": "waits for an owner"}, status=503)
        return web.json_response({"epoch": 1, "digest": "", "envelope": made.envelope})

    async def keys(request: web.Request) -> web.Response:
        made.requests.append(request.query["seen"])
        return web.Response(body=made.answer)

    app = web.Application()
    app.router.add_get("/v1/rendezvous/manifest", manifest)
    app.router.add_get("/v1/rendezvous/keys", keys)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    made.url = f"https://localhost:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


def attested(url: str, verify: Verify) -> Attested:
    """The client of a rendezvous."""
    return Attested(url, verify, manifest=BEGUN_WITH)


async def test_keys_come_after_verification(coordinator: Coordinator) -> None:
    """The certificate is verified once, before the first key is asked for; then keys flow and `seen` is said."""
    verified: list[bytes] = []

    async def verify(greeting: Greeting) -> None:
        assert coordinator.requests == ["manifest"]
        verified.append(greeting.certificate)

    client = attested(coordinator.url, verify)
    keys = AttestedKeys(client, "100.96.0.0/16")
    try:
        assert (await keys.watch(0)).version == 4
        assert (await keys.watch(4)).version == 4
        assert verified == [coordinator.certificate]
        assert coordinator.requests == ["manifest", "0", "4"]
        coordinator.answer = b"garbage"
        with pytest.raises(LinkError, match="expected a JSON object"):
            await keys.watch(0)
        coordinator.answer = b"{}"
        with pytest.raises(LinkError, match="keys"):
            await keys.watch(0)
    finally:
        await client.close()


async def test_no_key_is_taken_from_an_unverified_coordinator(coordinator: Coordinator) -> None:
    """When the evidence is refused it sees no other request; one that is away is no more than that."""

    async def refuse(_: Greeting) -> None:
        raise CoordinatorError("the coordinator's evidence is refused")

    for url, words in ((coordinator.url, "refused"), ("https://127.0.0.1:1", "cannot be reached")):
        client = attested(url, refuse)
        with pytest.raises(LinkError, match=words):
            await AttestedKeys(client, "100.96.0.0/16").watch(0)
        await client.close()
    assert coordinator.requests == ["manifest"]


async def test_it_waits_for_a_manifest_of_its_own(
    coordinator: Coordinator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of its owners, that names its key, and by which the coordinator's evidence holds; the log says what is missing.
    Another coordinator that is away keeps nobody waiting.
    """
    newest = Newest(_asking(tmp_path, "https://127.0.0.1:1", coordinator.url))
    known = Known(newest)
    async with TaskScope() as scope:
        first = scope.start("first", first_manifest(newest, known))
        for envelope, words in (
            ("", "waits for an owner"),
            (seal(_manifest()), "signed by 0 of"),
            (seal(_manifest(generate_key()[1]), OWNER), "and it names"),
            (seal(_manifest(), OWNER), "the coordinator's evidence is refused"),
        ):
            coordinator.envelope = envelope
            await eventually(lambda words=words: words in caplog.text, f"it says {words!r}")  # type: ignore[misc]
        assert not first.done()
        signed = open_envelope(coordinator.envelope, OWNERS)
        await newest._take(signed)
        assert await first == signed.manifest
    for client in known.all:
        await client.close()


def _asking(tmp_path: Path, *urls: str) -> Config:
    return read_config(_environ(tmp_path, MESH_COORDINATORS=json.dumps(urls)))


def _handed_over(url: str) -> str:
    """The envelope by which the mesh of `_manifest` has its coordinators at `url`."""
    first = open_envelope(seal(_manifest(), OWNER), OWNERS)
    given = Handover(from_app_id="aa" * 20, until=2_000_000_000, urls=("https://c0.example:443",))
    lead = CoordinatorPeer(peer_id="coordinator-1", address="100.96.0.11", url=url)
    own = Coordinators(app_id="cc" * 20, compose_hashes=("dd" * 32,), peers=(lead,), handover=given)
    return seal(after(first, coordinators=own), OWNER)


async def test_where_the_mesh_was_handed_over_is_asked_too(tmp_path: Path, coordinator: Coordinator) -> None:
    """A former coordinator, which is none by the manifest that it shows, says where; and nobody is asked twice."""
    newest = Newest(_asking(tmp_path, coordinator.url))
    known = Known(newest)
    former = await known.next()
    coordinator.envelope = _handed_over("https://new.example:443")
    with pytest.raises(CoordinatorError):
        await former.call("GET", BEGUN_WITH)
    assert newest.signed is None
    assert (await known.next()).url == "https://new.example:443"
    async with TaskScope() as scope:
        waiting = scope.start("next", known.next())
        newest.news.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()
    for client in known.all:
        await client.close()


async def test_who_goes_by_another_manifest_is_asked_anew(coordinator: Coordinator) -> None:
    """It shows it to a new connection, and may be none of this mesh by it; the keys that it gave are taken."""

    async def trust(_: Greeting) -> str:
        return ""

    client = attested(coordinator.url, trust)
    held = ""
    keys = AttestedKeys(client, "100.96.0.0/16", lambda: held)
    coordinator.answer = json.dumps({"version": 4, "peers": [], "manifest": "ab" * 32}).encode()
    for held, stays in (("", True), ("ab" * 32, True), ("cd" * 32, False)):
        await keys.watch(0)
        assert (client._channel is not None) is stays, held
    await client.close()


def _run(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "peer.rendezvous", *arguments]
    return subprocess.run(argv, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60)


def test_the_public_key_is_printed_before_there_is_a_manifest(tmp_path: Path) -> None:
    """The manifest has to name it: `key` needs nothing but the file, makes it once, and prints the same key again."""
    path = tmp_path / "made"
    first = _run({"MESH_RENDEZVOUS_KEY_FILE": str(path), "MESH_COORDINATORS": ""}, "key")
    assert first.returncode == 0, first.stderr
    assert len(base64.b64decode(first.stdout.strip(), validate=True)) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().strip() not in first.stdout + first.stderr
    assert _run({"MESH_RENDEZVOUS_KEY_FILE": str(path)}, "key").stdout == first.stdout
    config = read_config(_environ(tmp_path, MESH_RENDEZVOUS_KEY_FILE=str(path)))
    assert config.private_key.reveal() == path.read_text().strip()


@pytest.mark.parametrize(
    ("environ", "arguments", "words"),
    [
        ({}, ("key",), "MESH_RENDEZVOUS_KEY_FILE: is not set"),
        ({}, ("keys",), "'keys' is no command of it; expected 'key'"),
    ],
)
def test_a_wrong_call_ends_with_two(environ: dict[str, str], arguments: tuple[str, ...], words: str) -> None:
    """One message that says what was expected."""
    result = _run(environ, *arguments)
    assert result.returncode == 2
    assert words in result.stderr
