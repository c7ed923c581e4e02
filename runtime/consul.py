"""Consul from Python: an async client with blocking queries, private files; the configuration builders are passed on
from `consul_config`.

`ConsulClient` is py-consul's API over a transport of our own: py-consul's async transport has no time limit that
suits a blocking query, and no errors with a status. `get`, `put` and `delete` serve the endpoints that py-consul
lacks and need no import of it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlencode

from runtime.consul_config import (
    SERVER_PORT,
    WORKLOAD_PORT,
    TlsFiles,
    agent_config,
    api_socket,
    argv,
    node_id,
    server_config,
)
from runtime.secret import Secret

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

__all__ = [
    "SERVER_PORT",
    "WORKLOAD_PORT",
    "ConsulClient",
    "ConsulError",
    "TlsFiles",
    "agent_config",
    "api_socket",
    "argv",
    "next_index",
    "node_id",
    "reading",
    "server_config",
    "write_config",
    "write_private",
]

TIMEOUT = 10.0
"""Seconds for a call that does not block on an index. A write waits for raft; an election takes about 2 s."""
MAX_ANSWER = 64 << 20
"""Bytes. All health of a service with 1,000 instances is some 2 MB; the largest is all app-compose texts of a mesh, of
512 KiB at most each."""
WAIT = 300.0
"""Seconds that a blocking query waits at most when the caller does not say (Consul's own default)."""


class ConsulError(Exception):
    """Consul refused, or did not answer. `status` is the HTTP status, 0 when there was no answer."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"Consul answers {status}: {reason}" if status else f"Consul does not answer: {reason}")
        self.status = status
        self.reason = reason


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """The one place in which an answer of Consul is read that may be anything: what it lacks, or has in another shape,
    is Consul's failure and not the end of who reads it. `what` is the beginning of the reason. ConsulError.
    """
    try:
        yield
    except ConsulError:
        raise
    except Exception as error:
        raise ConsulError(200, f"{what} cannot be read: {error!r:.200}") from error


def next_index(previous: int | None, seen: int) -> int:
    """The index to block on after an answer that carried `seen`.

    Consul's rules for blocking queries: an index that went backwards starts over (0: the next call does not block),
    and 0 is never blocked on, else every call returns at once.
    """
    if seen <= 0:
        return 1
    if previous is not None and seen < previous:
        return 0
    return seen


def write_config(path: Path, config: dict[str, object]) -> None:
    """Writes `config` to `path` with mode 0600, whole or not at all; its folder is made 0700 when it does not exist."""
    write_private(path, json.dumps(config, indent=1, sort_keys=True))


def write_private(path: Path, text: str) -> None:
    """Writes `text` to `path` with mode 0600, whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.new")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    partial.replace(path)


class ConsulClient:
    """A Consul agent's HTTP API on the unix socket `socket`, or what a workload may use of it on the loopback `port`.
    Use as an async context manager, or `close()` it.
    """

    def __init__(self, token: Secret | None = None, *, socket: Path | None = None, port: int = WORKLOAD_PORT) -> None:
        self._base = "http://localhost" if socket is not None else f"http://127.0.0.1:{port}"
        self._socket = socket
        self._token = token
        self._session: ClientSession | None = None
        self._api: Any = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes all connections. Safe to repeat."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def use_token(self, token: Secret) -> None:
        """Calls from now on carry `token`."""
        self._token = token

    @property
    def api(self) -> Any:
        """py-consul's calls (`api.kv`, `api.agent`, `api.acl`, `api.txn`, …), each awaitable; failures are
        ConsulError.
        """
        if self._api is None:
            self._api = _py_consul(self.request)
        return self._api

    async def get(
        self,
        path: str,
        *,
        index: int | None = None,
        wait: float | None = None,
        params: Mapping[str, str] | None = None,
    ) -> tuple[int, Any]:
        """`(index to block on next, parsed JSON)` of a GET; None as JSON when the answer is 404 with an index (no
        such key).

        With `index` (from the call before) it blocks until the data changed or about `wait` seconds passed. Raises
        ConsulError.
        """
        query = dict(params or {})
        limit = TIMEOUT
        if index:
            seconds = WAIT if wait is None else wait
            query |= {"index": str(index), "wait": f"{max(1, round(seconds * 1000))}ms"}
            # Consul adds up to a sixteenth of the wait as jitter.
            limit = seconds * 17 / 16 + TIMEOUT
        status, headers, text = await self.request("GET", path, query, None, limit)
        seen = _index(headers)
        if status == 404 and seen is None:
            raise ConsulError(status, text.strip()[:300] or "not found")
        return next_index(index, seen or 0), _parse(text) if status != 404 else None

    async def put(self, path: str, body: object = None, *, params: Mapping[str, str] | None = None) -> Any:
        """The parsed answer of a PUT with `body` as JSON (bytes go as they are); None when the answer is empty.
        Raises ConsulError.
        """
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        return await self._write("PUT", path, params, data)

    async def post(self, path: str, *, params: Mapping[str, str] | None = None) -> Any:
        """The parsed answer of a POST without a body. Raises ConsulError."""
        return await self._write("POST", path, params, b"")

    async def delete(self, path: str, body: object = None, *, params: Mapping[str, str] | None = None) -> Any:
        """The parsed answer of a DELETE, with `body` as JSON where there is one. Raises ConsulError."""
        return await self._write("DELETE", path, params, None if body is None else json.dumps(body).encode())

    async def _write(self, method: str, path: str, params: Mapping[str, str] | None, data: bytes | None) -> Any:
        status, _, text = await self.request(method, path, dict(params or {}), data, TIMEOUT)
        if status == 404:
            raise ConsulError(status, text.strip()[:300] or "not found")
        return _parse(text) if text.strip() else None

    async def request(
        self, method: str, path: str, params: Mapping[str, str], data: bytes | None, limit: float
    ) -> tuple[int, Mapping[str, str], str]:
        """One call: status (2xx or 404), headers, body. ConsulError for other statuses, a broken connection or
        `limit` seconds.
        """
        import aiohttp

        url = self._base + quote(path, safe="/:") + (f"?{urlencode(params)}" if params else "")
        # The agent is on this machine: packing an answer costs both ends more than its bytes do.
        headers = {"Accept-Encoding": "identity"}
        if self._token:
            headers["X-Consul-Token"] = self._token.reveal()
        try:
            async with self._client().request(
                method, _url(url), data=data, headers=headers, timeout=aiohttp.ClientTimeout(total=limit)
            ) as response:
                text = _text(await _body(response))
        except TimeoutError as error:
            raise ConsulError(0, f"{method} {path} took longer than {limit:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ConsulError(0, f"{method} {path}: {error}") from error
        if response.status >= 300 and response.status != 404:
            raise ConsulError(response.status, f"{method} {path}: {text.strip()[:300]}")
        return response.status, response.headers, text

    def _client(self) -> ClientSession:
        import aiohttp

        if self._session is None:
            # Every watch holds a connection of its own for minutes, so the pool must not be the bound.
            connector = (
                aiohttp.TCPConnector(limit=0)
                if self._socket is None
                else aiohttp.UnixConnector(str(self._socket), limit=0)
            )
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session


async def query_clock(consul: ConsulClient) -> int:
    """The Lamport time of gossip's queries (`runtime.gossip.query`), as the agent has it. ConsulError."""
    _, tree = await consul.get("/v1/agent/self")
    with reading("the agent's query clock"):
        return int(tree["Stats"]["serf_lan"]["query_time"])


def _url(text: str) -> Any:
    from yarl import URL

    # Keys and filters are quoted already; a second round would change them.
    return URL(text, encoded=True)


async def _body(response: ClientResponse) -> bytes:
    data = bytearray()
    async for part in response.content.iter_chunked(1 << 16):
        data += part
        if len(data) > MAX_ANSWER:
            raise ConsulError(response.status, f"the answer has more than {MAX_ANSWER} bytes")
    return bytes(data)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConsulError(200, f"the answer is not UTF-8: {data[:80]!r}") from error


def _index(headers: Mapping[str, str]) -> int | None:
    text = headers.get("X-Consul-Index", "")
    # Consul's is an unsigned number of 64 bits: 20 digits at most.
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else None


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConsulError(200, f"the answer is not JSON: {text[:80]!r}") from error


Request = Callable[[str, str, Mapping[str, str], bytes | None, float], Awaitable[tuple[int, Mapping[str, str], str]]]


def _py_consul(request: Request) -> Any:
    """A py-consul API object whose transport is `request`. Its token is left to our transport, which holds it as a
    Secret.
    """
    from consul import base

    class Transport(base.HTTPClient):  # type: ignore[misc]
        """py-consul's transport contract: each call takes a callback that decodes a base.Response."""

        async def _send(self, method: str, callback: Any, path: str, params: Any, data: Any) -> Any:
            payload = data.encode() if isinstance(data, str) else data
            status, headers, text = await request(method, path, dict(params or ()), payload, TIMEOUT)
            return callback(base.Response(status, headers, text))

        def get(self, callback: Any, path: str, params: Any = None, **_: Any) -> Any:
            return self._send("GET", callback, path, params, None)

        def put(self, callback: Any, path: str, params: Any = None, data: Any = "", **_: Any) -> Any:
            return self._send("PUT", callback, path, params, data)

        def post(self, callback: Any, path: str, params: Any = None, data: Any = "", **_: Any) -> Any:
            return self._send("POST", callback, path, params, data)

        def delete(self, callback: Any, path: str, params: Any = None, **_: Any) -> Any:
            return self._send("DELETE", callback, path, params, None)

        def close(self) -> None:
            """The session belongs to ConsulClient."""

    class Api(base.Consul):  # type: ignore[misc]
        """py-consul's client over Transport."""

        def http_connect(self, host: str, port: int, scheme: str, verify: Any = True, cert: Any = None) -> Any:
            return Transport(host, port, scheme, verify, cert)

    api = Api(host="127.0.0.1", port=WORKLOAD_PORT, scheme="http", verify=False)
    # py-consul reads CONSUL_HTTP_TOKEN from the environment on its own; no token may enter that way.
    api.token = None
    return api
