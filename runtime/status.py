"""The status socket: a process's own account of itself, over HTTP on a unix socket.

`GET /status` is the document, `GET /healthz` 200 or 503 by its `ready`, `GET /metrics` its figures for Prometheus.
Written on plain asyncio streams: three fixed paths without bodies do not justify a web framework's memory in every CVM.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

REQUEST_SECONDS = 5.0
"""A client that has not sent its request by then is cut off."""
MAX_HEADER = 8192
"""Bytes of request line and headers; the common limit of HTTP servers."""

Document = Callable[[], Mapping[str, Any]]


class StatusServer:
    """Serves `document()` on the unix socket `path` (mode 0600). `/status` also has what `more()` says.

    `more` is for what is looked up when somebody asks, and is asked by neither health checks nor scrapes.
    """

    def __init__(self, path: Path, document: Document, more: Document = dict) -> None:
        self._path = path
        self._document = document
        self._more = more
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Returns once the socket accepts. A socket left over by an earlier run is replaced."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self._path, limit=MAX_HEADER)
        self._path.chmod(0o600)

    async def stop(self) -> None:
        """Closes the socket and removes its file."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError):
            writer.write(await self._answer(reader))
            await writer.drain()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return _response(400, "text/plain", "expected a complete request within 5 s and 8 KiB\n")
        return respond(head, self._document, self._more)


def respond(head: bytes, document: Document, more: Document = dict) -> bytes:
    """The response to the request with the header bytes `head`."""
    words = head.split(b"\r\n", 1)[0].split()
    if len(words) != 3 or words[0] != b"GET":
        return _response(405, "text/plain", "only GET is answered here\n")
    path = words[1].split(b"?")[0]
    if path == b"/status":
        return _response(200, "application/json", json.dumps({**document(), **more()}) + "\n")
    if path == b"/healthz":
        now = document()
        reasons = "".join(f"{reason}\n" for reason in now.get("reasons", ()))
        return _response(200, "text/plain", "ready\n") if now.get("ready") else _response(503, "text/plain", reasons)
    if path == b"/metrics":
        return _response(200, "text/plain; version=0.0.4", prometheus(document()))
    return _response(404, "text/plain", "there is /status, /healthz and /metrics\n")


def prometheus(document: Mapping[str, Any], prefix: str = "mesh") -> str:
    """The numbers and booleans of a status document as gauges.

    An object's key extends the name; in an object of objects the keys become the label `name`; in a list of objects
    each object's texts become labels. Everything else is left out.
    """
    samples: dict[str, list[str]] = {}
    for name, labels, number in _samples(document, prefix, {}):
        text = ",".join(f"{key}={json.dumps(value)}" for key, value in sorted(labels.items()))
        samples.setdefault(name, []).append(f"{name}{{{text}}} {number}" if text else f"{name} {number}")
    return "".join(
        f"# TYPE {name} gauge\n" + "".join(f"{line}\n" for line in lines) for name, lines in sorted(samples.items())
    )


def _samples(node: Any, name: str, labels: dict[str, str]) -> Iterator[tuple[str, dict[str, str], float]]:
    if isinstance(node, bool | int | float):
        yield name, labels, float(node) if isinstance(node, float) else int(node)
    elif isinstance(node, Mapping):
        of_objects = bool(node) and all(isinstance(value, Mapping) for value in node.values())
        for key, value in node.items():
            if of_objects:
                yield from _samples(value, name, {**labels, "name": str(key)})
            else:
                yield from _samples(value, f"{name}_{re.sub('[^a-zA-Z0-9_]', '_', str(key))}", labels)
    elif isinstance(node, list | tuple):
        for item in node:
            if isinstance(item, Mapping):
                texts = {key: value for key, value in item.items() if isinstance(value, str)}
                yield from _samples(item, name, {**labels, **texts})


def _response(status: int, kind: str, body: str) -> bytes:
    reason = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}
    data = body.encode()
    head = (
        f"HTTP/1.1 {status} {reason[status]}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(data)}",
        "Connection: close",
    )
    return "\r\n".join((*head, "", "")).encode() + data
