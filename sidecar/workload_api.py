"""Consul's API for the workload of this CVM, on loopback: what `sidecar.workload_rights` allows, as much of it as
`sidecar.workload_amounts` does, with the workload's own token, passed on to the agent's socket. IO: HTTP on both sides.

Answers go on as they come, so a blocking query wakes its caller at once; a caller that goes away ends the agent's work.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from aiohttp import web
from yarl import URL

from runtime.backoff import Backoff
from runtime.consul_config import WORKLOAD_PORT
from runtime.http_server import Limits, Server, keep
from runtime.secret import Secret
from sidecar import workload_amounts as amounts
from sidecar.workload_amounts import TooMuchError, TooOftenError
from sidecar.workload_rights import Call, RefusedError, Rights, judge

log = logging.getLogger(__name__)

LIMITS = Limits(
    # Patroni and its supervisor hold some ten. Each that counts may hold one of the agent's 2000.
    connections=256,
    head_seconds=15.0,
    # A client that has sent nothing for so long opens another one; sooner, it would meet a close now and then.
    idle_seconds=600.0,
    # Who waits for a change has no answer to lose.
    stop_seconds=0.1,
    answer_seconds=15.0,
    # All are one caller's: whoever has the token.
    kept_each=256,
    kept=256,
    cancels=True,
)
BODY_SECONDS = 15.0
MAX_BODY = 1 << 20
"""Bytes: a transaction may carry several values, each a third longer than it is (base64)."""
CALL_SECONDS = 30.0
"""For a call that waits for no change: a write waits for Raft, and an election takes some seconds."""
COUNT_SECONDS = 2.0
"""For looking at what is there before something is added: whoever adds it waits for that."""
WAIT_SECONDS = 660.0
"""For one that does: Consul waits at most 10 minutes, and a sixteenth more."""
KEPT = ("content-type", "x-consul-", "x-cache", "age")
"""Beginnings of the names of headers that go back to the caller."""
BIND = Backoff(base=0.2, cap=2.0)


class SlowError(Exception):
    """What is there could not be counted in time."""


class WorkloadApi:
    """Serves on 127.0.0.1:`port`, once `run`."""

    def __init__(self, agent: Path, rights: Callable[[], Rights | None], port: int = WORKLOAD_PORT) -> None:
        """`agent`: the socket of the agent's API. `rights`: the workload's, by the newest manifest."""
        self._agent = agent
        self._rights = rights
        self._port = port
        self._tokens: tuple[Secret, ...] = ()
        self._pace = amounts.Pace()
        self._account = amounts.Account()
        self._counting, self._adding = asyncio.Lock(), asyncio.Lock()
        """For keys, and for sessions and checks: no two calls find the same last place."""
        self.problem: str | None = None
        """Why nobody is served; None while it works."""

    def use(self, token: Secret) -> None:
        """The workload's token from now on. The one before is taken too: its holder reads the new one a moment later,
        and Consul judges both.
        """
        if not self._tokens or self._tokens[0] != token:
            self._tokens = (token, *self._tokens[:1])

    async def run(self) -> None:
        """Serves until it is cancelled."""
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_route("*", "/{path:.*}", self._answer)
        server = Server(app, "127.0.0.1", self._port, None, LIMITS)
        # A watch of the workload holds its connection for minutes, so the pool is not the bound.
        connector = aiohttp.UnixConnector(str(self._agent), limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as self._session:
            await self._bind(server)
            try:
                await asyncio.Event().wait()
            finally:
                await server.stop()

    async def _bind(self, server: Server) -> None:
        attempt = 0
        while True:
            try:
                await server.start()
            except OSError as error:
                problem = f"127.0.0.1:{self._port} cannot be served to the workload ({error.strerror}); is it taken?"
                if self.problem is None:
                    log.warning("workload port waits", extra={"reason": problem})
                self.problem = problem
                await asyncio.sleep(BIND.delay(attempt, Random()))
                attempt += 1
            else:
                self.problem = None
                return

    def _is_ours(self, text: str) -> bool:
        given = text.encode()
        return any(hmac.compare_digest(given, token.reveal().encode()) for token in self._tokens)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        rights = self._rights()
        given = _token(request)
        if rights is None or not self._is_ours(given):
            return _refused(
                403, "expected the workload's own token, which is in /run/mesh/secrets/consul-token and is renewed "
                "there, as X-Consul-Token",
            )  # fmt: skip
        keep(request, "workload", lambda: self._is_ours(given))
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await request.read()
            call = judge(rights, request.method, request.rel_url.raw_path, request.query, body)
            self._pace.take(call, asyncio.get_running_loop().time())
            async with self._room(rights, call, given):
                return await self._pass_on(request, call)
        except TimeoutError:
            return _refused(408, f"the body was not here after {BODY_SECONDS:g} s")
        except web.HTTPRequestEntityTooLarge:
            return _refused(413, f"the body exceeds {MAX_BODY} bytes")
        except SlowError as slow:
            return _refused(503, str(slow), ends=False)
        except TooMuchError as much:
            return _refused(413, str(much), ends=False)
        except TooOftenError as often:
            return _refused(429, str(often), ends=False, again=often.seconds)
        except RefusedError as refused:
            return _refused(403, str(refused), ends=False)

    @contextlib.asynccontextmanager
    async def _room(self, rights: Rights, call: Call, token: str) -> AsyncIterator[None]:
        """There is room for what `call` adds; TooMuchError where there is none. What cannot be counted, because the
        agent refuses or is away, is none: it refuses the call too, in its own words.
        """
        added = amounts.growth(call)
        brought = amounts.checks_of(call)
        if added.keys:
            async with self._counting:
                if self._account.needs_count(added, asyncio.get_running_loop().time()):
                    await self._count_keys(rights, token)
                self._account.add(added)
            yield
        elif brought is not None:
            async with self._adding:
                amounts.judge_checks(brought, await self._look("/v1/agent/checks", token), rights.services)
                yield
        elif call.path == "/v1/session/create":
            async with self._adding:
                amounts.judge_sessions(await self._look(f"/v1/session/node/{quote(rights.peer_id)}", token))
                yield
        else:
            yield

    async def _count_keys(self, rights: Rights, token: str) -> None:
        before = self._account.begin(asyncio.get_running_loop().time())
        tally = amounts.Tally()
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with asyncio.timeout(COUNT_SECONDS):
                for prefix in amounts.outermost(rights.prefixes):
                    # Any server may answer: it is some milliseconds behind at most, and the others go on writing.
                    async with self._ask("GET", f"/v1/kv/{quote(prefix)}?recurse=&stale=", token) as answer:
                        if answer.status not in (200, 404):
                            return
                        async for part in answer.content.iter_any():
                            tally.feed(part if answer.status == 200 else b"")
                self._account.counted(tally.amount, before)

    async def _look(self, path: str, token: str) -> Any:
        """The agent's answer; None where it refuses, or is away."""
        try:
            async with self._ask("GET", path, token, seconds=COUNT_SECONDS) as answer:
                return json.loads(await answer.read()) if answer.status == 200 else None
        except TimeoutError:
            raise SlowError(f"Consul did not say within {COUNT_SECONDS:g} s what is there; try again") from None
        except (aiohttp.ClientError, OSError, ValueError, RecursionError):
            return None

    async def _pass_on(self, request: web.Request, call: Call) -> web.StreamResponse:
        response: web.StreamResponse | None = None
        query = urlencode(list(request.query.items()))
        path = f"{quote(call.path)}{'?' if query else ''}{query}"
        limit = WAIT_SECONDS if request.query.keys() & {"index", "hash"} else CALL_SECONDS
        try:
            async with self._ask(call.method, path, _token(request), call.body, limit) as answer:
                kept = {name: text for name, text in answer.headers.items() if name.lower().startswith(KEPT)}
                response = web.StreamResponse(status=answer.status, headers=kept)
                response.content_length = answer.content_length
                await response.prepare(request)
                async for part in answer.content.iter_any():
                    self._pace.answered(call, len(part))
                    await response.write(part)
                await response.write_eof()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if response is None:
                return _refused(503, f"Consul's agent does not answer: {error!r:.200}", ends=False)
            # Half an answer must not pass for a whole one.
            if request.transport is not None:
                request.transport.abort()
        return response

    def _ask(
        self, method: str, path: str, token: str, body: bytes = b"", seconds: float = CALL_SECONDS
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._session.request(
            method,
            URL(f"http://localhost{path}", encoded=True),
            data=body or None,
            headers={"X-Consul-Token": token, "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=seconds),
        )


def _token(request: web.Request) -> str:
    """As Consul takes it; never out of the query, which ends up in logs."""
    bearer = request.headers.get("Authorization", "")
    return request.headers.get("X-Consul-Token", "") or bearer.removeprefix("Bearer ").strip()


def _refused(status: int, reason: str, *, ends: bool = True, again: float | None = None) -> web.Response:
    response = web.Response(status=status, text=f"{reason}\n")
    if again is not None:
        response.headers["Retry-After"] = str(math.ceil(again))
    if ends:
        # Nobody without the token holds a connection, and no rest of a body is taken for a next request.
        response.force_close()
    return response
