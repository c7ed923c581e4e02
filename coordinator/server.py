"""The broker's HTTP API on aiohttp: routes, limits, error bodies and the log of refusals. Decisions are the
broker's.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from aiohttp import web

from admission.client import BEGUN_WITH
from admission.protocol import (
    ESTATE,
    MAX_BODY,
    AttestRequest,
    ChallengeRequest,
    Code,
    EstatePage,
    EstateRequest,
    LeaseRequest,
    ManifestHead,
    ManifestHistory,
    ManifestRequest,
)
from coordinator import openapi
from coordinator.bodies import BODY_SECONDS, Bodies
from coordinator.broker import Broker, decode
from coordinator.feed import Feed
from coordinator.forming import Standing, StandingRequest
from coordinator.proposal import shown
from coordinator.refusal import RefusalError
from evidence.bundle import AttestationRequest
from runtime import jsons
from runtime.http_server import Handler, Limits, keep
from runtime.log import BY_STRANGERS

log = logging.getLogger(__name__)

LIMITS = Limits(
    # A CVM holds one, and strangers must not use up the memory that the Consul server beside us lives in.
    connections=4096,
    # One that went through its handshake takes 0.29 MiB (asyncio's buffers), so these take 186 MiB, and bodies 32 more
    # (`coordinator.bodies`). Twice as many as may be in their handshake, and more than CVMs that boot at once.
    strangers=640,
    head_seconds=15.0,
    idle_seconds=30.0,
    stop_seconds=2.0,
    # As long as a body: no answer is longer than what a CVM takes, which is MAX_BODY.
    answer_seconds=15.0,
    # One, and the one before while it ends.
    kept_each=2,
    # Twice as many as may be in their handshake are left to who comes new. A mesh of more than 1,792 CVMs has no place
    # kept for each; whoever has none comes in as a newcomer does.
    kept=3584,
)
BODIES = web.AppKey("bodies", Bodies)
BODY = web.RequestKey("body", bytes)
"""What was read of a request, for the log of a refusal."""


class Manifests(Protocol):
    """What the API asks of `coordinator.records`."""

    def shown(self) -> ManifestHead:
        """The manifest in force."""
        ...

    def history(self, after: int) -> ManifestHistory:
        """The manifests that led to it, from epoch `after` on."""
        ...

    async def propose(self, envelope: str, documents: Mapping[str, str]) -> ManifestHead:
        """Sets the manifest in `envelope`, and keeps the app-compose texts `documents` by their hash; the manifest in
        force afterwards. RefusalError.
        """
        ...

    @property
    def leaderless(self) -> bool:
        """Whether the coordinator waits for a manifest that drops those that are lost."""
        ...

    @property
    def handed_over(self) -> bool:
        """Whether its manifest gives the mesh to coordinators of another app."""
        ...


def application(
    broker: Broker,
    feed: Feed,
    not_ready: Callable[[], str | None],
    standing: Callable[[StandingRequest], Awaitable[Standing]],
    manifests: Manifests,
    asked: Callable[[AttestationRequest], AbstractAsyncContextManager[bytes]],
    *,
    estate: Callable[[EstateRequest], Awaitable[EstatePage]],
) -> web.Application:
    """The API. `not_ready` gives the reason for 503 on `/healthz`, or None; `standing` answers another coordinator,
    `asked` (`coordinator.attest`) anyone who wants to verify this one, `estate` a coordinator that takes the mesh over.
    """

    async def healthz(_: web.Request) -> web.StreamResponse:
        reason = not_ready()
        return web.Response(status=204) if reason is None else _error(Code.NOT_READY, reason)

    async def keys(request: web.Request) -> web.StreamResponse:
        news = await feed.poll(_number(request, "seen", "the version of the last answer"))
        peers = [{"public_key": peer.public_key, "address": peer.address} for peer in news.peers]
        # A rendezvous that goes by another one asks for it.
        digest = broker.rules.signed.digest
        return web.json_response({"version": news.version, "peers": peers, "manifest": digest})

    async def begun_with(_: web.Request) -> web.StreamResponse:
        return _answer(shown(broker.rules.signed))

    app = _empty()
    _add_admission(app, broker, standing)
    _add_estate(app, broker, estate)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/v1/rendezvous/keys", keys)
    app.router.add_get(BEGUN_WITH, begun_with)
    _add_manifest(app, not_ready, manifests)
    _add_attestation(app, asked)
    app.router.add_get(openapi.PATH, _document)
    return app


def _empty() -> web.Application:
    app = web.Application(client_max_size=MAX_BODY, middlewares=[_refusals])
    app[BODIES] = Bodies()
    return app


def _add_admission(
    app: web.Application, broker: Broker, standing: Callable[[StandingRequest], Awaitable[Standing]]
) -> None:
    """The routes of CVMs and of other coordinators: whoever proves a lease keeps its connection for as long as it has
    its slot.
    """

    def known(request: web.Request, text: str) -> None:
        lease = broker.lease(text)
        keep(request, lease.peer_id, lambda: broker.holds(lease))

    async def challenge(request: web.Request) -> web.StreamResponse:
        return _answer(broker.challenge(decode(ChallengeRequest, await _body(request))))

    async def attest(request: web.Request) -> web.StreamResponse:
        admission = await broker.attest(decode(AttestRequest, await _body(request)))
        known(request, admission.lease)
        return _answer(admission)

    async def renew(request: web.Request) -> web.StreamResponse:
        asked = decode(LeaseRequest, await _body(request))
        renewal = await broker.renew(asked)
        known(request, asked.lease)
        return _answer(renewal)

    async def release(request: web.Request) -> web.StreamResponse:
        await broker.release(decode(LeaseRequest, await _body(request)).lease)
        return web.json_response({})

    async def coordinators(request: web.Request) -> web.StreamResponse:
        asked = decode(StandingRequest, await _body(request))
        answer = await standing(asked)
        known(request, asked.lease)
        return _answer(answer)

    app.router.add_post("/v1/admission/challenge", challenge)
    app.router.add_post("/v1/admission/attest", attest)
    app.router.add_post("/v1/admission/renew", renew)
    app.router.add_post("/v1/admission/release", release)
    app.router.add_post("/v1/coordinators/standing", coordinators)


def _add_estate(app: web.Application, broker: Broker, estate: Callable[[EstateRequest], Awaitable[EstatePage]]) -> None:
    """The route of those to whom the owners hand the mesh over."""

    async def hand_out(request: web.Request) -> web.StreamResponse:
        asked = decode(EstateRequest, await _body(request))
        answer = await estate(asked)
        lease = broker.lease(asked.lease)
        keep(request, lease.peer_id, lambda: broker.holds(lease))
        return _answer(answer)

    app.router.add_post(ESTATE, hand_out)


async def _document(_: web.Request) -> web.StreamResponse:
    return web.Response(body=openapi.document(), content_type="application/json")


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


def waiting_application(reason: str, take: Callable[[str, tuple[str, ...]], ManifestHead]) -> web.Application:
    """The API of a coordinator that has no manifest: `take` takes the first one, everything else is refused for
    `reason`.
    """

    async def set_manifest(request: web.Request) -> web.StreamResponse:
        asked = decode(ManifestRequest, await _body(request))
        if asked.documents:
            raise RefusalError(Code.NO_MANIFEST, "documents are taken once the first manifest is in force")
        return _answer(take(asked.envelope, asked.handovers))

    async def anything(_: web.Request) -> web.StreamResponse:
        return _error(Code.NO_MANIFEST, reason)

    app = _empty()
    app.router.add_post("/v1/manifest", set_manifest)
    app.router.add_route("*", "/{path:.*}", anything)
    return app


def _add_manifest(app: web.Application, not_ready: Callable[[], str | None], manifests: Manifests) -> None:
    """The routes of the manifest: it is signed and public, so anybody may see it, and bring the next one."""

    def check_ready() -> None:
        if (reason := not_ready()) is not None:
            raise RefusalError(Code.NOT_READY, reason)

    async def get_manifest(_: web.Request) -> web.StreamResponse:
        if manifests.handed_over:
            # Where the mesh's coordinators are, for whoever knows only the former ones.
            return _answer(manifests.shown())
        if (reason := not_ready()) is not None and manifests.leaderless:
            # Not in force here; what a manifest has to follow that lets the records go on.
            raise RefusalError(Code.NOT_READY, reason, head=dataclasses.asdict(manifests.shown()))
        check_ready()
        return _answer(manifests.shown())

    async def set_manifest(request: web.Request) -> web.StreamResponse:
        if (reason := not_ready()) is not None and not (manifests.leaderless or manifests.handed_over):
            raise RefusalError(Code.NOT_READY, reason)
        asked = decode(ManifestRequest, await _body(request))
        return _answer(await manifests.propose(asked.envelope, asked.documents))

    async def get_history(request: web.Request) -> web.StreamResponse:
        # Also of one that is not ready: a rendezvous that missed some comes by it to what coordinators begin with, and
        # none is ready before there is a rendezvous.
        return _answer(manifests.history(_number(request, "after", "an epoch")))

    app.router.add_get("/v1/manifest", get_manifest)
    app.router.add_get("/v1/manifest/history", get_history)
    app.router.add_post("/v1/manifest", set_manifest)


@web.middleware
async def _refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except RefusalError as refusal:
        log.warning(
            "request refused",
            extra={
                **BY_STRANGERS,
                "path": f"{request.path:.200}",
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
        log.exception(
            "request failed", extra={**BY_STRANGERS, "path": f"{request.path:.200}", "remote": request.remote}
        )
        return _error(Code.VERIFIER_FAILED, "the coordinator failed; its log says why")


def _number(request: web.Request, name: str, meaning: str) -> int:
    """The number that the query has under `name`, 0 where it has none. RefusalError."""
    text = request.query.get(name, "0")
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise RefusalError(Code.BAD_REQUEST, f"{name} is {text!r:.40}, expected {meaning}")
    return int(text)


async def _body(request: web.Request) -> bytes:
    body = await request.app[BODIES].read(request, BODY_SECONDS)
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
    return web.Response(text=jsons.text(value), content_type="application/json")


def _error(code: Code, reason: str, **more: object) -> web.Response:
    response = web.json_response({"code": code.name, "reason": reason, **more}, status=code.status)
    if code is Code.BAD_REQUEST:
        # What is left of a body that was not read must not be taken for a next request.
        response.force_close()
    return response
