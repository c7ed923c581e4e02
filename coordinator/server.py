"""The broker's HTTP API on aiohttp: routes, limits, error bodies and the log of refusals. Decisions are the
broker's.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from aiohttp import web

from coordinator.broker import Broker, decode
from coordinator.feed import Feed
from coordinator.forming import Standing, StandingRequest
from coordinator.protocol import (
    MAX_BODY,
    AttestRequest,
    ChallengeRequest,
    Code,
    LeaseRequest,
    ManifestHead,
    ManifestRequest,
)
from coordinator.refusal import RefusalError
from evidence.bundle import AttestationRequest

log = logging.getLogger(__name__)

BODY_SECONDS = 15.0
"""A body must be here after this (the template family's limit)."""
HEAD_SECONDS = 15.0
"""So is the first request of a connection, handshake excluded."""
MAX_CONNECTIONS = 4096
"""Open connections; more are closed at once. A CVM holds one, and strangers must not use up the memory that the Consul
server beside us lives in."""
BODY = web.RequestKey("body", bytes)
"""What was read of a request, for the log of a refusal."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Manifests(Protocol):
    """What the API asks of `coordinator.records`."""

    def shown(self) -> ManifestHead:
        """The manifest in force."""
        ...

    async def propose(self, envelope: str) -> ManifestHead:
        """Sets the manifest in `envelope`; the one in force afterwards. RefusalError."""
        ...


def application(
    broker: Broker,
    feed: Feed,
    not_ready: Callable[[], str | None],
    standing: Callable[[StandingRequest], Awaitable[Standing]],
    manifests: Manifests,
    asked: Callable[[AttestationRequest], AbstractAsyncContextManager[bytes]],
) -> web.Application:
    """The API. `not_ready` gives the reason for 503 on `/healthz`, or None; `standing` answers another coordinator,
    `asked` (`coordinator.attest`) anyone who wants to verify this one.
    """

    async def challenge(request: web.Request) -> web.StreamResponse:
        return _answer(broker.challenge(decode(ChallengeRequest, await _body(request))))

    async def attest(request: web.Request) -> web.StreamResponse:
        return _answer(await broker.attest(decode(AttestRequest, await _body(request))))

    async def renew(request: web.Request) -> web.StreamResponse:
        return _answer(await broker.renew(decode(LeaseRequest, await _body(request))))

    async def release(request: web.Request) -> web.StreamResponse:
        await broker.release(decode(LeaseRequest, await _body(request)).lease)
        return web.json_response({})

    async def coordinators(request: web.Request) -> web.StreamResponse:
        return _answer(await standing(decode(StandingRequest, await _body(request))))

    async def healthz(_: web.Request) -> web.StreamResponse:
        reason = not_ready()
        return web.Response(status=204) if reason is None else _error(Code.NOT_READY, reason)

    async def keys(request: web.Request) -> web.StreamResponse:
        text = request.query.get("seen", "0")
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise RefusalError(Code.BAD_REQUEST, f"seen is {text!r:.40}, expected the version of the last answer")
        news = await feed.poll(int(text))
        peers = [{"public_key": peer.public_key, "address": peer.address} for peer in news.peers]
        return web.json_response({"version": news.version, "peers": peers})

    app = web.Application(client_max_size=MAX_BODY, middlewares=[_refusals])
    app.router.add_post("/v1/admission/challenge", challenge)
    app.router.add_post("/v1/admission/attest", attest)
    app.router.add_post("/v1/admission/renew", renew)
    app.router.add_post("/v1/admission/release", release)
    app.router.add_post("/v1/coordinators/standing", coordinators)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/v1/rendezvous/keys", keys)
    _add_manifest(app, not_ready, manifests)
    _add_attestation(app, asked)
    return app


def _add_attestation(
    app: web.Application, asked: Callable[[AttestationRequest], AbstractAsyncContextManager[bytes]]
) -> None:
    """The route for whoever wants to verify this coordinator."""

    async def attestation(request: web.Request) -> web.StreamResponse:
        async with asked(decode(AttestationRequest, await _body(request))) as bundle:
            response = web.Response(body=bundle, content_type="application/json")
            try:
                # Sent in here, so that one who reads slowly counts as open, and not for long.
                async with asyncio.timeout(BODY_SECONDS):
                    await response.prepare(request)
                    await response.write_eof()
            except TimeoutError:
                if request.transport is not None:
                    request.transport.abort()
        return response

    app.router.add_post("/v1/attest", attestation)


def _add_manifest(app: web.Application, not_ready: Callable[[], str | None], manifests: Manifests) -> None:
    """The routes of the manifest: it is signed and public, so anybody may see it, and bring the next one."""

    def check_ready() -> None:
        if (reason := not_ready()) is not None:
            raise RefusalError(Code.NOT_READY, reason)

    async def get_manifest(_: web.Request) -> web.StreamResponse:
        check_ready()
        return _answer(manifests.shown())

    async def set_manifest(request: web.Request) -> web.StreamResponse:
        check_ready()
        return _answer(await manifests.propose(decode(ManifestRequest, await _body(request)).envelope))

    app.router.add_get("/v1/manifest", get_manifest)
    app.router.add_post("/v1/manifest", set_manifest)


class Server:
    """Serves `app` on `host:port`; `tls=None` only in tests. Bound when `start` returns."""

    def __init__(self, app: web.Application, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        # Lingering: how long the rest of a refused body is read and thrown away, so that its sender sees the answer.
        self._runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=30.0,
            shutdown_timeout=2.0,
            lingering_time=2.0,
            # Nobody of ours sends a packed body, and a thousandth of MAX_BODY could unpack to all of it.
            auto_decompress=False,
        )
        self._host, self._port, self._tls = host, port, tls
        self._server: asyncio.Server | None = None
        self._silent: set[asyncio.BaseProtocol] = set()
        app.middlewares.insert(0, self._note_request)

    async def start(self) -> int:
        """Begins to listen; the port that was bound. OSError names a taken address."""
        await self._runner.setup()
        try:
            self._server = await asyncio.get_running_loop().create_server(
                self._connection,
                self._host,
                self._port,
                ssl=self._tls,
                backlog=1024,
                ssl_handshake_timeout=HEAD_SECONDS if self._tls else None,
            )
        except OSError:
            await self._runner.cleanup()
            raise
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        """Stops listening; requests under way get 2 s."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            await self._runner.cleanup()
            await server.wait_closed()

    def _connection(self) -> asyncio.BaseProtocol:
        """aiohttp's protocol for a new connection, which is closed when it brings no request in time: aiohttp limits
        only the time between requests, and not how many connections there are.
        """
        factory = self._runner.server
        assert factory is not None
        if len(factory.connections) >= MAX_CONNECTIONS:
            return _Closed()
        protocol = factory()
        self._silent.add(protocol)
        asyncio.get_running_loop().call_later(HEAD_SECONDS, self._close_silent, protocol)
        return protocol

    def _close_silent(self, protocol: web.RequestHandler) -> None:
        if protocol in self._silent:
            self._silent.discard(protocol)
            if protocol.transport is not None:
                protocol.transport.abort()

    @web.middleware
    async def _note_request(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._silent.discard(request.protocol)
        return await handler(request)


class _Closed(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Closes it."""
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


@web.middleware
async def _refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except RefusalError as refusal:
        log.warning(
            "request refused",
            extra={
                "path": request.path,
                "remote": request.remote,
                "code": refusal.code.name,
                "reason": refusal.reason,
                "claims": _claims(request),
            },
        )
        return _error(refusal.code, refusal.reason, **refusal.more)
    except web.HTTPException as error:
        return web.json_response({"code": Code.BAD_REQUEST.name, "reason": error.reason}, status=error.status)
    except Exception:
        log.exception("request failed", extra={"path": request.path, "remote": request.remote})
        return _error(Code.VERIFIER_FAILED, "the coordinator failed; its log says why")


async def _body(request: web.Request) -> bytes:
    if (request.content_length or 0) > MAX_BODY:
        # Refused before it is read; the connection cannot be used after that.
        raise RefusalError(Code.BAD_REQUEST, f"the body has {request.content_length} bytes, allowed are {MAX_BODY}")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await request.read()
    except TimeoutError:
        raise RefusalError(Code.BAD_REQUEST, f"the body was not here after {BODY_SECONDS:g} s") from None
    except web.HTTPRequestEntityTooLarge:
        raise RefusalError(Code.BAD_REQUEST, f"the body exceeds {MAX_BODY} bytes") from None
    request[BODY] = body
    return body


def _claims(request: web.Request) -> str:
    """Who the peer says it is, for the log: unproven, cut short."""
    import json

    try:
        tree = json.loads(request.get(BODY, b"{}"))
        if "binding" in tree:
            tree = json.loads(bytes.fromhex(tree["binding"]))
        names = ("group", "peer_id", "app_id", "instance_id", "compose_hash")
        return " ".join(f"{name}={tree[name]!s:.64}" for name in names if name in tree)
    except (ValueError, TypeError, KeyError, RecursionError):
        return "unreadable"


def _answer(value: object) -> web.Response:
    return web.json_response(dataclasses.asdict(value))  # type: ignore[call-overload]


def _error(code: Code, reason: str, **more: object) -> web.Response:
    response = web.json_response({"code": code.name, "reason": reason, **more}, status=code.status)
    if code is Code.BAD_REQUEST:
        # What is left of a body that was not read must not be taken for a next request.
        response.force_close()
    return response
