from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from runtime.status import StatusServer, prometheus, respond

DOCUMENT: dict[str, Any] = {
    "ready": False,
    "reasons": ["envoy: no snapshot acknowledged"],
    "peer_id": "api-0",
    "children": {"envoy": {"pid": 7, "restarts": 1, "state": "running"}},
    "links": [{"peer_id": "api-1", "path": "direct", "handshake_age_s": 1.5}],
    "admission": {"state": "admitted", "lease_seconds": 45.0, "expires_at": None},
    "insecure": [],
}


@pytest.fixture
async def socket(tmp_path: Path) -> AsyncIterator[Path]:
    server = StatusServer(tmp_path / "status.sock", lambda: DOCUMENT)
    await server.start()
    yield tmp_path / "status.sock"
    await server.stop()


async def ask(socket: Path, request: bytes) -> tuple[bytes, bytes]:
    reader, writer = await asyncio.open_unix_connection(socket)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0], body


async def test_status_is_the_document(socket: Path) -> None:
    """GET /status answers the document as JSON."""
    line, body = await ask(socket, b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
    assert line == b"HTTP/1.1 200 OK"
    assert json.loads(body) == DOCUMENT


async def test_healthz_is_503_with_the_reasons_until_ready(socket: Path) -> None:
    """GET /healthz says why the process is not ready."""
    assert await ask(socket, b"GET /healthz HTTP/1.1\r\n\r\n") == (
        b"HTTP/1.1 503 Service Unavailable",
        b"envoy: no snapshot acknowledged\n",
    )


async def test_socket_is_private_and_replaces_a_stale_one(tmp_path: Path) -> None:
    """The socket has mode 0600; one left over by a killed process is replaced; stop removes it."""
    path = tmp_path / "status.sock"
    path.write_text("stale")
    server = StatusServer(path, lambda: DOCUMENT)
    await server.start()
    assert path.stat().st_mode & 0o777 == 0o600
    await server.stop()
    assert not path.exists()


async def test_oversized_request_is_refused(socket: Path) -> None:
    """More than 8 KiB of headers is answered with 400."""
    line, _ = await ask(socket, b"GET /status HTTP/1.1\r\nX: " + b"a" * 9000 + b"\r\n\r\n")
    assert line == b"HTTP/1.1 400 Bad Request"


def test_ready_unknown_path_and_wrong_method() -> None:
    """200 when ready, 404 for other paths, 405 for other methods and for garbage."""

    def status(head: bytes) -> bytes:
        return respond(head, lambda: {"ready": True}).split(b"\r\n")[0]

    assert status(b"GET /healthz HTTP/1.1\r\n\r\n") == b"HTTP/1.1 200 OK"
    assert status(b"GET /nothing HTTP/1.1\r\n\r\n") == b"HTTP/1.1 404 Not Found"
    assert status(b"POST /status HTTP/1.1\r\n\r\n") == b"HTTP/1.1 405 Method Not Allowed"
    assert status(b"\x16\x03\x01\r\n\r\n") == b"HTTP/1.1 405 Method Not Allowed"


def test_metrics_are_the_numbers_of_the_document() -> None:
    """Numbers and booleans become gauges, with labels from keys of objects and texts of list entries."""
    assert prometheus(DOCUMENT) == (
        "# TYPE mesh_admission_lease_seconds gauge\n"
        "mesh_admission_lease_seconds 45.0\n"
        "# TYPE mesh_children_pid gauge\n"
        'mesh_children_pid{name="envoy"} 7\n'
        "# TYPE mesh_children_restarts gauge\n"
        'mesh_children_restarts{name="envoy"} 1\n'
        "# TYPE mesh_links_handshake_age_s gauge\n"
        'mesh_links_handshake_age_s{path="direct",peer_id="api-1"} 1.5\n'
        "# TYPE mesh_ready gauge\n"
        "mesh_ready 0\n"
    )


def test_what_is_looked_up_is_looked_up_for_status_alone() -> None:
    """`/status` has what `more` says beside the document; a health check and a scrape do not make it look."""
    asked: list[str] = []

    def more() -> dict[str, object]:
        asked.append("more")
        return {"backends": []}

    def ask(path: str) -> bytes:
        return respond(f"GET {path} HTTP/1.1\r\n\r\n".encode(), lambda: {"ready": True}, more)

    assert b'{"ready": true, "backends": []}' in ask("/status")
    assert b" 200 " in ask("/healthz")
    assert b"mesh_ready" in ask("/metrics")
    assert asked == ["more"]
