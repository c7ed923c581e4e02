"""The simulated dstack guest agent: HTTP on a unix socket, as the real one's web framework (Rocket) answers.

The answers are those recorded from the real programs, for OS 0.5.7 and 0.6.0; what is left out is said in
docs/attestation.md.
"""

from __future__ import annotations

import http
import time
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from . import agent_wire
from .agent_methods import AgentState, Method
from .agent_wire import Message, WireError
from .tee import CvmIdentity, DevTee

MAX_BODY = 10 * 1024 * 1024
"""Bytes, the real agent's limit."""
_KEEP_ALIVE = 10.0
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>
<body><h1>{title}</h1><p>The request could not be served.</p><hr><small>Rocket</small></body></html>
"""


class GuestAgentServer:
    """The agent of one simulated CVM."""

    def __init__(self, tee: DevTee, cvm: CvmIdentity, *, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives the Unix time that certificates are counted from."""
        self._methods = AgentState(tee, cvm, clock).methods()
        self._server = f"dstack-guest-agent/{cvm.os_version} (cvm-mesh DEVELOPMENT)"
        self._runner: web.AppRunner | None = None
        self._path: Path | None = None

    async def start(self, path: Path) -> None:
        """Listens on a unix socket at `path` that every user may connect to. A socket left there by a crash is
        replaced.
        """
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_route("*", "/{path:.*}", self._answer)
        app.on_response_prepare.append(self._dress)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, keepalive_timeout=_KEEP_ALIVE)
        await self._runner.setup()
        await web.UnixSite(self._runner, path).start()
        # As systemd makes it in a CVM: containers run as any user.
        path.chmod(0o777)
        self._path = path

    async def stop(self) -> None:
        """Closes the socket and removes it."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None

    async def _answer(self, request: web.Request) -> web.Response:
        path = request.match_info["path"]
        if request.method not in ("GET", "HEAD", "POST") or "/" in path:
            return _page(404)
        if not path:
            return _page(422)
        reading = request.method in ("GET", "HEAD")
        asked = request.query.get("json") in ("", "true")
        as_json = reading or asked or request.content_type == "application/json"
        method = self._methods.get(path)
        if method is None:
            return _error(f"Service not found: {path}", as_json)
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return _error("failed to read data: payload too large", asked)
        try:
            args = agent_wire.decode_query(method.takes, request.query) if reading else _decode(method, body, as_json)
            return _result(method, method.run(args), as_json)
        except WireError as error:
            return _error(str(error), as_json)

    async def _dress(self, _request: web.Request, response: web.StreamResponse) -> None:
        """Headers as Rocket sends them: lower case, and the same ones on every answer."""
        sent = [(name.lower(), value) for name, value in response.headers.items() if name.lower() != "connection"]
        response.headers.clear()
        response.headers.extend(sent)
        response.headers["server"] = self._server
        response.headers["x-frame-options"] = "SAMEORIGIN"
        response.headers["permissions-policy"] = "interest-cohort=()"
        response.headers["x-content-type-options"] = "nosniff"


def _decode(method: Method, body: bytes, as_json: bool) -> Message:
    if not as_json:
        return agent_wire.decode_protobuf(method.takes, body)
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise WireError(f"invalid unicode code point at line 1 column {error.start + 1}") from error
    return agent_wire.decode_json(method.takes, text)


def _result(method: Method, values: Message, as_json: bool) -> web.Response:
    if not as_json:
        return _respond(200, agent_wire.encode_protobuf(method.gives, values), as_json)
    # An empty message is Rust's unit type, which JSON calls null.
    body = agent_wire.encode_json(method.gives, values) if agent_wire.MESSAGES[method.gives] else b"null"
    return _respond(200, body, as_json)


def _error(text: str, as_json: bool) -> web.Response:
    return _respond(400, agent_wire.error_body(text, as_json=as_json), as_json)


def _respond(status: int, body: bytes, as_json: bool) -> web.Response:
    return web.Response(
        status=status, body=body, content_type="application/json" if as_json else "application/octet-stream"
    )


def _page(status: int) -> web.Response:
    title = f"{status}: {http.HTTPStatus(status).phrase}"
    return web.Response(status=status, text=_PAGE.format(title=title), content_type="text/html", charset="utf-8")
