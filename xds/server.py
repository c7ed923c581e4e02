"""The gRPC server that the local Envoy's ADS streams end at. The only place with gRPC: it moves messages, it decides
nothing.

One process, one node: the newest stream is the one whose acknowledgements count.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio

from runtime.tasks import TaskScope
from xds import wire
from xds.snapshot import Snapshot
from xds.stream import History, Nack, Stream

MAX_MESSAGE = 50 << 20
"""Bytes of one message, both ways. Above any snapshot that we make (1,000 routes with 10 endpoints: 1.5 MiB); gRPC's
4 MiB is not."""
MAX_SOCKET_PATH = 107
"""Bytes that a unix socket's path may have (sun_path less its final zero)."""

_REMEMBERED = 256
"""Published versions that `wait_acked` still knows; a waiter is never that far behind."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class XdsStatus:
    """Where Envoy is."""

    version: str | None
    """Of the newest published snapshot; None before the first."""
    acked_version: str | None
    """Of the last snapshot that Envoy acknowledged whole; None before that, without a stream, and on a new stream at
    first."""
    connected: bool
    """A stream is open."""
    nacks: tuple[Nack, ...]
    """What Envoy rejects at present. It runs on with what it had."""


class _Session:
    """A running stream: its machine, and the event that there may be something to send."""

    def __init__(self, machine: Stream) -> None:
        self.machine = machine
        self.wake = asyncio.Event()


class XdsServer:
    """Serves snapshots on a unix socket. `publish` at any time; every open stream converges on the newest."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path
        self._server: Any = None
        self._histories: dict[str, History] = {}
        self._sessions: list[_Session] = []
        self._snapshot: Snapshot | None = None
        self._order: dict[str, int] = {}
        self._published = 0
        self._acked: str | None = None
        self._progress = asyncio.Condition()
        self._idle = asyncio.Event()
        self._idle.set()
        self.on_stream: Callable[[], None] | None = None
        """Called when Envoy has opened a stream: what was acknowledged before counts no longer."""

    async def start(self) -> None:
        """Listens; returns once bound. OSError if the socket cannot be."""
        if len(str(self._path).encode()) > MAX_SOCKET_PATH:
            raise OSError(
                f"socket path {str(self._path)!r} is over {MAX_SOCKET_PATH} bytes; use a shorter state directory"
            )
        _remove_socket(self._path)
        limits = [("grpc.max_receive_message_length", MAX_MESSAGE), ("grpc.max_send_message_length", MAX_MESSAGE)]
        self._server = grpc.aio.server(options=limits)
        handlers = {wire.METHOD: grpc.stream_stream_rpc_method_handler(self._serve)}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(wire.SERVICE, handlers),))
        try:
            self._server.add_insecure_port(f"unix:{self._path}")
        except RuntimeError as error:
            raise OSError(
                f"cannot listen on {str(self._path)!r}: {error}; is its directory there and writable?"
            ) from error
        self._path.chmod(0o600)
        await self._server.start()

    async def stop(self) -> None:
        """Ends every stream and removes the socket. Envoy keeps what it has."""
        if self._server is not None:
            await self._server.stop(grace=None)
            self._server = None
            # gRPC has cancelled the handlers, which need a moment to leave; afterwards nothing of ours runs.
            await self._idle.wait()
        _remove_socket(self._path)

    def publish(self, snapshot: Snapshot) -> None:
        """Makes `snapshot` the one to converge on, at once. Call it from the event loop."""
        self._snapshot = snapshot
        self._published += 1
        self._order.pop(snapshot.version, None)
        self._order[snapshot.version] = self._published
        if len(self._order) > _REMEMBERED:
            del self._order[next(iter(self._order))]
        for session in self._sessions:
            session.machine.publish(snapshot)
            session.wake.set()

    def retry(self) -> None:
        """Offers what Envoy rejected once more (see `Stream.retry`). The caller chooses when, with a back-off."""
        for session in self._sessions:
            session.machine.retry()
            session.wake.set()

    def status(self) -> XdsStatus:
        """Where Envoy is now."""
        newest = self._sessions[-1] if self._sessions else None
        return XdsStatus(
            version=self._snapshot.version if self._snapshot else None,
            acked_version=self._acked,
            connected=newest is not None,
            nacks=newest.machine.nacks() if newest else (),
        )

    async def wait_acked(self, version: str, seconds: float) -> None:
        """Returns once Envoy acknowledged snapshot `version`, or one published after it. TimeoutError says what is
        missing."""
        if version not in self._order:
            raise ValueError(f"version {version!r} was not published here; expected one given to publish()")
        wanted = self._order[version]
        try:
            async with asyncio.timeout(seconds), self._progress:
                await self._progress.wait_for(lambda: self._order.get(self._acked or "", 0) >= wanted)
        except TimeoutError:
            raise TimeoutError(
                f"envoy did not acknowledge snapshot {version} in {seconds} s: {self.status()}"
            ) from None

    async def _serve(self, _: object, context: Any) -> None:
        """One stream, until the client or `stop` ends it."""
        session = _Session(Stream(self._histories))
        if self._snapshot is not None:
            session.machine.publish(self._snapshot)
        self._sessions.append(session)
        self._idle.clear()
        self._acked = None
        if self.on_stream is not None:
            self.on_stream()
        bad: BaseException | None = None
        try:
            async with TaskScope() as scope:
                writer = scope.start("xds writer", self._write(session, context))
                await self._read(session, context)
                writer.cancel()
        except* wire.RequestError as errors:
            bad = errors.exceptions[0]
        finally:
            self._sessions.remove(session)
            if not self._sessions:
                # Most likely Envoy died. What it had acknowledged says nothing about the next one.
                self._acked = None
                self._idle.set()
        if bad is not None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(bad))

    async def _read(self, session: _Session, context: Any) -> None:
        """Requests, never held up by writes: a client that reads slowly must still be heard."""
        while (data := await context.read()) is not grpc.aio.EOF:
            request = wire.read_request(data)
            if request.error is not None:
                log.warning("envoy rejected resources", extra={"type_url": request.type_url, "reason": request.error})
            session.machine.handle(request)
            session.wake.set()
            await self._note_progress(session)

    async def _write(self, session: _Session, context: Any) -> None:
        """Responses, each made when the one before was taken."""
        while True:
            while (response := session.machine.poll()) is not None:
                await context.write(wire.write_response(response))
            await self._note_progress(session)
            session.wake.clear()
            await session.wake.wait()

    async def _note_progress(self, session: _Session) -> None:
        if session is not self._sessions[-1]:
            return
        acked = session.machine.acknowledged()
        if acked is not None and acked != self._acked:
            self._acked = acked
            async with self._progress:
                self._progress.notify_all()


def _remove_socket(path: Path) -> None:
    """Removes a socket that an earlier process left. Anything else at that path is not ours."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
