"""The rendezvous process: configuration, and keys over attested connections."""

from __future__ import annotations

import base64
import datetime as dt
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

from peer.rendezvous import AttestedKeys, read_config
from peer.spec import LinkError
from peer.wireguard import generate_key
from runtime.env import ConfigError
from tests.support import ROOT
from topology.envelope import seal
from topology.manifest import (
    MANIFEST_VERSION,
    CoordinatorPeer,
    Coordinators,
    KeyProvider,
    Manifest,
    Rendezvous,
    TcbPolicy,
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
        key_provider=KeyProvider(name="kms", id="00"),
        os_images=(),
        tcb=TcbPolicy(),
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
        "MESH_MANIFEST": seal(_manifest(), OWNER),
        "MESH_OWNERS": OWNER_KEY,
        "MESH_RENDEZVOUS_ADDRESS": "100.96.0.1",
        "MESH_RENDEZVOUS_PUBLIC": "198.18.0.10",
        "MESH_RENDEZVOUS_KEY_FILE": str(key),
    }
    return {**good, **changes}


def test_a_good_configuration(tmp_path: Path) -> None:
    """Defaults are filled in; coordinators come from the manifest where nothing else is said."""
    config = read_config(_environ(tmp_path))
    assert config.coordinators == ("https://c0.example:443",)
    assert (config.port, config.dev_root) == (51820, None)
    assert config.private_key == KEY
    more = read_config(_environ(tmp_path, MESH_COORDINATORS='["https://a:1", "https://b:2"]'))
    assert more.coordinators == ("https://a:1", "https://b:2")


def test_an_unsigned_manifest_needs_a_word(tmp_path: Path) -> None:
    """Only with the insecure flag, and then the owner's key is not asked for."""
    environ = _environ(tmp_path, MESH_MANIFEST=seal(_manifest()))
    with pytest.raises(ConfigError, match="MESH_MANIFEST"):
        read_config(environ)
    del environ["MESH_OWNERS"]
    assert read_config({**environ, "MESH_INSECURE_UNSIGNED_MANIFEST": "1"}).address == "100.96.0.1"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MESH_MANIFEST", "", "a manifest envelope"),
        ("MESH_MANIFEST", "x.y", "MESH_MANIFEST"),
        ("MESH_OWNERS", "abc", "32 bytes"),
        ("MESH_COORDINATORS", '["http://plain"]', "https"),
        ("MESH_COORDINATORS", "{", "JSON"),
        ("MESH_RENDEZVOUS_ADDRESS", "100.96.0.2", "one of the manifest's"),
        ("MESH_RENDEZVOUS_ADDRESS", "10.0.0.1", "pool"),
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


def test_the_key_must_be_the_manifests(tmp_path: Path) -> None:
    """A rendezvous with another key would wait for CVMs that never come."""
    envelope = seal(_manifest(generate_key()[1]), OWNER)
    with pytest.raises(ConfigError, match="use that key's file"):
        read_config(_environ(tmp_path, MESH_MANIFEST=envelope))


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
    with pytest.raises(ConfigError, match="but the manifest names"):
        read_config(_environ(tmp_path, MESH_RENDEZVOUS_KEY_FILE=str(path)))
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text()
    with pytest.raises(ConfigError):
        read_config(_environ(tmp_path, MESH_RENDEZVOUS_KEY_FILE=str(path)))
    assert path.read_text() == text


def test_the_process_reports_all_problems_and_ends_with_2() -> None:
    """`python -m peer.rendezvous` without configuration lists what is missing."""
    done = subprocess.run(
        [sys.executable, "-m", "peer.rendezvous"], cwd=ROOT, env={"PATH": "/usr/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 2
    for name in ("MESH_MANIFEST", "MESH_OWNERS", "MESH_RENDEZVOUS_ADDRESS", "MESH_RENDEZVOUS_KEY_FILE"):
        assert name in done.stderr
    assert "Traceback" not in done.stderr


@dataclass
class Coordinator:
    """A coordinator's broker with a self-made certificate."""

    url: str = ""
    certificates: list[bytes] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    answer: bytes = b'{"version": 4, "peers": []}'
    contexts: list[ssl.SSLContext] = field(default_factory=list)


def _certificate(tmp_path: Path, number: int) -> tuple[Path, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"c{number}")])
    today = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(number + 1)
        .not_valid_before(today)
        .not_valid_after(today + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / f"c{number}.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + made.public_bytes(Encoding.PEM))
    return path, made.public_bytes(Encoding.DER)


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[Coordinator]:
    """Serves keys over TLS on loopback; may change its certificate by SNI callback."""
    made = Coordinator()
    for number in range(2):
        path, der = _certificate(tmp_path, number)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        made.certificates.append(der)
        made.contexts.append(context)

    async def keys(request: web.Request) -> web.Response:
        made.requests.append(request.query["seen"])
        return web.Response(body=made.answer, headers={"Connection": "close"})

    app = web.Application()
    app.router.add_get("/v1/rendezvous/keys", keys)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=made.contexts[0])
    await site.start()
    port = runner.addresses[0][1]
    made.url = f"https://localhost:{port}"
    yield made
    await runner.cleanup()


async def test_keys_come_after_verification(coordinator: Coordinator) -> None:
    """The certificate is verified once, before the first request; then keys flow and `seen` is said."""
    verified: list[bytes] = []

    async def verify(certificate: bytes) -> None:
        assert coordinator.requests == []
        verified.append(certificate)

    keys = AttestedKeys(coordinator.url, "100.96.0.0/16", verify)
    try:
        assert (await keys.watch(0)).version == 4
        assert (await keys.watch(4)).version == 4
        assert verified == [coordinator.certificates[0]]
        assert coordinator.requests == ["0", "4"]
    finally:
        await keys.close()


async def test_nothing_is_sent_to_an_unverified_coordinator(coordinator: Coordinator) -> None:
    """When the evidence is refused the coordinator sees no request."""

    async def refuse(certificate: bytes) -> None:
        raise LinkError("the coordinator's evidence is refused")

    keys = AttestedKeys(coordinator.url, "100.96.0.0/16", refuse)
    try:
        with pytest.raises(LinkError, match="refused"):
            await keys.watch(0)
        assert coordinator.requests == []
    finally:
        await keys.close()


async def test_another_certificate_is_verified_anew(coordinator: Coordinator) -> None:
    """A server that shows another certificate gets no request before that one was verified too."""
    verified: list[bytes] = []

    async def verify(certificate: bytes) -> None:
        verified.append(certificate)

    keys = AttestedKeys(coordinator.url, "100.96.0.0/16", verify)
    try:
        await keys.watch(0)

        def other(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
            connection.context = coordinator.contexts[1]

        coordinator.contexts[0].sni_callback = other
        with pytest.raises(LinkError, match="another certificate"):
            await keys.watch(1)
        assert coordinator.requests == ["0"]
        await keys.watch(1)
        assert verified == coordinator.certificates
        assert coordinator.requests == ["0", "1"]
    finally:
        await keys.close()


async def test_bad_answers_are_link_errors(coordinator: Coordinator) -> None:
    """Garbage, refusals and closed ports are errors that the service knows."""

    async def verify(certificate: bytes) -> None:
        pass

    keys = AttestedKeys(coordinator.url, "100.96.0.0/16", verify)
    try:
        coordinator.answer = b"garbage"
        with pytest.raises(LinkError, match="keys"):
            await keys.watch(0)
    finally:
        await keys.close()
    away = AttestedKeys("https://127.0.0.1:1", "100.96.0.0/16", verify)
    try:
        with pytest.raises(OSError, match=r"refused|failed"):
            await away.watch(0)
    finally:
        await away.close()


def _run(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "peer.rendezvous", *arguments]
    return subprocess.run(argv, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60)


def test_the_public_key_is_printed_before_there_is_a_manifest(tmp_path: Path) -> None:
    """The manifest has to name it: `key` needs nothing but the file, makes it once, and prints the same key again."""
    path = tmp_path / "made"
    first = _run({"MESH_RENDEZVOUS_KEY_FILE": str(path), "MESH_MANIFEST": ""}, "key")
    assert first.returncode == 0, first.stderr
    assert len(base64.b64decode(first.stdout.strip(), validate=True)) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().strip() not in first.stdout + first.stderr
    assert _run({"MESH_RENDEZVOUS_KEY_FILE": str(path)}, "key").stdout == first.stdout
    signed = seal(_manifest(first.stdout.strip()), OWNER)
    config = read_config(_environ(tmp_path, MESH_RENDEZVOUS_KEY_FILE=str(path), MESH_MANIFEST=signed))
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
