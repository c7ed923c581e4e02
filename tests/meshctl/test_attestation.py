"""Asking a coordinator for a bundle: what comes, and what does not."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from evidence import bundle
from meshctl.attestation import UnreachableError, fetch, fetch_history, fetch_whole, url_of
from tests.evidence.bundles import Coordinator

NONCE = bytes(range(32))
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(
    handler: Handler, context: ssl.SSLContext | None = None, path: str = "/v1/attest"
) -> AsyncIterator[str]:
    """A server whose `path` is `handler`; its URL."""
    app = web.Application()
    app.router.add_route("*", path, handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    try:
        yield f"{'https' if context else 'http'}://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


def self_signed(folder: Path) -> ssl.SSLContext:
    """A server's TLS that no authority vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    start = dt.datetime.now(dt.UTC) - dt.timedelta(days=900)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "nobody")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate.public_bytes(Encoding.PEM)
    path.write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


async def test_tls_proves_nothing_and_need_not(tmp_path: Path) -> None:
    """A certificate of nobody, out of date: what comes is believed for its quote alone."""

    async def answer(request: web.Request) -> web.Response:
        assert await request.json() == {"nonce": NONCE.hex()}
        return web.Response(body=b"a bundle")

    async with serving(answer, self_signed(tmp_path)) as url:
        assert await fetch(url, NONCE) == b"a bundle"


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (429, b'{"code": "BUSY", "reason": "64 others"}', "HTTP 429, BUSY: 64 others"),
        (404, b"<html>", "HTTP 404, b'<html>'"),
        (302, b"{}", "HTTP 302"),
        (503, b"[" * 100_000, "HTTP 503"),
    ],
)
async def test_a_refusal_is_shown_with_its_reason(status: int, body: bytes, words: str) -> None:
    """Whatever answers, cut short; no redirection is followed."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, body=body, headers={"Location": "/elsewhere"})

    async with serving(answer) as url:
        with pytest.raises(UnreachableError) as caught:
            await fetch(url, NONCE)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 1000


async def test_an_answer_is_not_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a bundle may have is not read."""
    monkeypatch.setattr(bundle, "MAX_BUNDLE", 1000)

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=b"x" * 1001)

    async with serving(answer) as url:
        with pytest.raises(UnreachableError, match="more than 1000 bytes"):
            await fetch(url, NONCE)


async def test_nobody_there() -> None:
    """A closed port, and a name that nobody has."""
    for url in ("http://127.0.0.1:1", "https://nobody.invalid"):
        with pytest.raises(UnreachableError, match="does not answer"):
            await fetch(url, NONCE)


@pytest.mark.parametrize("slow", ["/v1/attest", "/v1/manifest/history"])
async def test_a_trickle_has_an_end(slow: str) -> None:
    """Byte after byte, of the bundle or of its history: the whole of it has a time, not only each answer."""
    shown = Coordinator().bundle(NONCE)
    late = bundle.encode(dataclasses.replace(shown, history=shown.history[1:]))

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path != slow:
            return web.Response(body=late)
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b" ")
                await asyncio.sleep(0.05)
        return response

    async with serving(answer, path="/{tail:.*}") as url:
        with pytest.raises(UnreachableError, match=r"history within 0\.5 s"):
            await fetch_whole(url, NONCE, 0.5)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("host:8787", "https://host:8787"),
        ("https://host/", "https://host"),
        ("http://[::1]:80", "http://[::1]:80"),
        ("https://host/behind/a/proxy", "https://host/behind/a/proxy"),
    ],
)
def test_a_url_is_read(text: str, url: str) -> None:
    """`host:port` means https."""
    assert url_of(text) == url


@pytest.mark.parametrize("text", ["", "ftp://host", "https://", "https://host:99999", "https://host/?a=b", "file:///x"])
def test_what_is_no_url_is_refused(text: str) -> None:
    """With the form that is expected."""
    with pytest.raises(ValueError, match="expected https://host:port"):
        url_of(text)


async def test_a_history_comes_in_pages_and_has_an_end() -> None:
    """Each page begins after the one before. A server that repeats itself, or has no end, is not followed; who answers
    with something else is named.
    """
    pages: dict[str, object] = {
        "0": {"manifests": [{"epoch": 1, "envelope": "a"}, {"epoch": 2, "envelope": "b"}]},
        "2": {"manifests": [{"epoch": 3, "envelope": "c"}, {"epoch": 4, "envelope": "d"}]},
    }
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.query["after"])
        return web.json_response(pages[request.query["after"]])

    async with serving(answer, path="/v1/manifest/history") as url:
        assert await fetch_history(url, 3) == ("a", "b", "c")
        assert await fetch_history(url, 0) == ()
        assert asked == ["0", "2"]
        pages["4"] = {"manifests": []}
        assert await fetch_history(url, 9) == ("a", "b", "c", "d")
        pages["4"] = pages["0"]
        assert await fetch_history(url, 9) == ("a", "b", "c", "d")
        for wrong in ([], {"manifests": 1}, {"manifests": [{}]}, {"manifests": [{"epoch": "x", "envelope": ""}]}):
            pages["0"] = wrong
            with pytest.raises(UnreachableError, match="answers with no history"):
                await fetch_history(url, 9)
    with pytest.raises(UnreachableError, match="does not answer"):
        await fetch_history("http://127.0.0.1:1", 9)
