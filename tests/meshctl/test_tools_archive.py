"""Fetching a tool's archive from a site that this test plays."""

from __future__ import annotations

import hashlib
import io
import platform
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from meshctl import tools, tools_archive, tools_install
from meshctl.console import Silent
from meshctl.errors import UserError
from meshctl.tools_archive import Bounds
from tests.meshctl.test_tools_build import CONSUL, WIREGUARD, environ

__all__ = ["environ"]

PROGRAM = b"#!/bin/sh\necho Consul v1.22.7\n"
SHORT = Bounds(silent=0.5, total=1.5, archive=1 << 16, program=1 << 16)
"""For a site that has to be given up: what it costs is what is said here, in tests and elsewhere."""


def zipped(program: bytes = PROGRAM, name: str = "consul") -> bytes:
    """An archive with `program` in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("LICENSE.txt", "x")
        archive.writestr(name, program)
    return buffer.getvalue()


def of(archive: bytes) -> tools.Tool:
    """Consul, if its makers' archive were this one."""
    assert CONSUL.archive is not None
    digests = {platform.machine(): ("cpu", hashlib.sha256(archive).hexdigest())}
    return replace(CONSUL, archive=replace(CONSUL.archive, digests=digests))


@dataclass
class Site:
    """What it was asked for, and where it is."""

    url: str = ""
    asked: list[str] = field(default_factory=list)


@contextmanager
def site(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[Site]:
    """A site that gives `answer` to each request."""
    made = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append(self.path)
            with suppress(OSError):
                answer(self)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()


def file(data: bytes, announced: int | None = None) -> Callable[[BaseHTTPRequestHandler], None]:
    """Answers with `data`, and says that it has `announced` bytes."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(data) if announced is None else announced))
        request.end_headers()
        request.wfile.write(data)

    return answer


def redirect(to: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """Answers that it is elsewhere."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", to)
        request.end_headers()

    return answer


def fetch(url: str, environ: dict[str, str], tool: tools.Tool, bounds: Bounds = SHORT) -> tuple[Path | None, list[str]]:
    """From `url`."""
    return tools_archive.fetch(tool, {**environ, "MESH_CONSUL_RELEASES": url}, Silent(), bounds)


def test_the_archive_is_taken_instead_of_a_build(tmp_path: Path, environ: dict[str, str]) -> None:
    """By digest; afterwards it is in the cache, and nothing else is. What has no archive is built."""
    archive = zipped()
    with site(file(archive)) as made:
        told = {**environ, "MESH_CONSUL_RELEASES": f"{made.url}/consul/"}
        paths, failures = tools_install.install([of(archive), WIREGUARD], told, Silent())
    assert made.asked == ["/consul/1.22.7/consul_1.22.7_linux_cpu.zip"]
    assert failures == {}
    assert paths["consul"].read_bytes() == PROGRAM
    assert tools.search(CONSUL, environ).found == tools.Found(path=paths["consul"], source="cache")
    assert "consul" not in (tmp_path / "calls").read_text()
    kept = {path.name for path in (tmp_path / "cache" / "tools").iterdir()}
    assert kept == {".archive-lock", ".lock", "consul-1.22.7-release", f"wireguard-go-{WIREGUARD.version}"}


def test_several_fetch_it_once(environ: dict[str, str]) -> None:
    """Who comes later takes what is there."""
    archive = zipped()
    with site(file(archive)) as made:
        found: list[Path | None] = []
        threads = [
            threading.Thread(target=lambda: found.append(fetch(made.url, environ, of(archive))[0])) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [tools.released_path(CONSUL, environ)] * 3
    assert len(made.asked) == 1


def dripping(request: BaseHTTPRequestHandler) -> None:
    """One byte of the head every now and then, for as long as somebody listens."""
    while True:
        request.wfile.write(b"HTTP/1.1 200 OK\r\n"[:1])
        if released.wait(0.1):
            return


def mute(request: BaseHTTPRequestHandler) -> None:
    """No answer."""
    released.wait(30)


released = threading.Event()
"""Ends what still answers."""


@pytest.fixture(autouse=True)
def _release() -> Iterator[None]:
    released.clear()
    yield
    released.set()


GOOD = zipped()


@pytest.mark.parametrize(
    ("answer", "pinned", "reason"),
    [
        (file(b"another"), GOOD, "what it has is SHA-256"),
        (file(GOOD[:-20], announced=len(GOOD)), GOOD, "it ended after"),
        (file(GOOD[:-20]), GOOD, "what it has is SHA-256"),
        (file(b"x" * (SHORT.archive + 1)), GOOD, "it has more than"),
        (lambda request: request.send_error(404), GOOD, "Not Found"),
        (lambda request: request.wfile.write(b"SSH-2.0-x\r\n"), GOOD, "SSH-2.0-x"),
        (lambda request: request.connection.shutdown(socket.SHUT_RDWR), GOOD, "closed connection without response"),
        (redirect("http://203.0.113.9/x.zip"), GOOD, "it redirects to 'http://203.0.113.9/x.zip', expected an https"),
        (redirect("file:///etc/passwd"), GOOD, "'file:///etc/passwd' is not allowed"),
        (redirect("/again"), GOOD, "redirect"),
        (file(zipped(name="vault")), zipped(name="vault"), "no zip file with 'consul' in it"),
        (file(b"no zip"), b"no zip", "no zip file"),
        (file(zipped(b"0" * (SHORT.program + 1))), zipped(b"0" * (SHORT.program + 1)), "it has more than"),
        (file(zipped(b"#!/bin/sh\necho Consul v1.9.0\n")), zipped(b"#!/bin/sh\necho Consul v1.9.0\n"), "version 1.9.0"),
        (dripping, GOOD, "came in 1.5 s"),
        (mute, GOOD, "timed out"),
    ],
)
def test_whatever_else_a_site_sends_is_a_reason(
    tmp_path: Path,
    environ: dict[str, str],
    answer: Callable[[BaseHTTPRequestHandler], None],
    pinned: bytes,
    reason: str,
) -> None:
    """Nothing of it stays in the cache."""
    with site(answer) as made:
        path, reasons = fetch(made.url, environ, of(pinned))
        released.set()
    assert path is None
    assert len(reasons) == 1
    assert reason in reasons[0]
    assert reasons[0].startswith(f"{made.url}/1.22.7/")
    assert [item.name for item in (tmp_path / "cache" / "tools").iterdir()] == [".archive-lock"]


def test_without_the_site_it_is_built(tmp_path: Path, environ: dict[str, str]) -> None:
    """And a person hears why; where the build fails as well, both reasons are there."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        gone = f"http://127.0.0.1:{free.getsockname()[1]}"
    told = {**environ, "MESH_CONSUL_RELEASES": gone}
    lines: list[str] = []

    class Lines(Silent):
        def line(self, text: str) -> None:
            lines.append(text)

    paths, failures = tools_install.install([CONSUL], told, Lines())
    assert paths == {"consul": tools.cached_path(CONSUL, environ)}
    assert failures == {}
    assert lines[0].startswith(f"consul is built here, for {gone}/1.22.7/consul_1.22.7_linux_")
    assert "Connection refused" in lines[0]
    paths["consul"].unlink()
    (tmp_path / "bin" / "go").write_text("#!/bin/sh\n[ $1 = version ] && echo go version go1.26.6 || exit 1\n")
    paths, failures = tools_install.install([CONSUL], told, Silent())
    assert paths == {}
    assert [reason.partition(" failed")[0] for reason in failures["consul"][1:]] == [f"go list {CONSUL.go_package}"]
    assert "Connection refused" in failures["consul"][0]


def test_a_redirect_to_an_address_that_counts_is_followed(environ: dict[str, str]) -> None:
    """Sites of releases stand in front of others."""
    with site(file(GOOD)) as other, site(redirect(f"{other.url}/x.zip")) as made:
        assert fetch(made.url, environ, of(GOOD)) == (tools.released_path(CONSUL, environ), [])
    assert other.asked == ["/x.zip"]


@pytest.mark.parametrize(
    "text", ["http://mirror.example/consul", "ftp://x", "https://", "mirror.example", "https://[x"]
)
def test_an_address_that_is_none_is_refused(environ: dict[str, str], text: str) -> None:
    """Before anything is asked of anybody."""
    with pytest.raises(UserError, match=r"MESH_CONSUL_RELEASES is .*expected an https address") as caught:
        fetch(text, environ, CONSUL)
    assert "https://releases.hashicorp.com/consul" in caught.value.remedy


def test_what_is_not_fetched_says_so(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Off; another kind of machine; a tool without an archive."""
    assert fetch("off", environ, CONSUL) == (None, ["MESH_CONSUL_RELEASES is 'off': no archive is fetched"])
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert fetch("https://x.example", environ, CONSUL) == (
        None,
        ["https://x.example has no pinned archive for riscv64"],
    )
    assert fetch("https://x.example", environ, WIREGUARD) == (None, [])
