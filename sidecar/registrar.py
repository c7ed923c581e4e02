"""Keeps this CVM's backends registered with the local agent: again after each of its starts, until a clean stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from random import Random
from typing import Any

from runtime.backoff import Backoff
from runtime.consul import ConsulClient, ConsulError
from runtime.tasks import TaskScope
from sidecar import registration
from topology.manifest import BackendEntry

log = logging.getLogger(__name__)

PROBE = Backoff(base=0.02, cap=0.25, factor=1.1, jitter=0.0)
"""Between attempts to reach a backend that does not listen yet: soon at first, then cheap."""
RETRY_SECONDS = 0.1
"""After a call that the agent refused or did not take."""
PROBE_SECONDS = 1.0


class Registrar:
    """Registers `backends` at `address`. `restarted()` tells of an agent that has to be told everything anew."""

    def __init__(
        self,
        consul: ConsulClient,
        backends: tuple[BackendEntry, ...],
        peer_id: str,
        address: str,
        serving: asyncio.Event,
    ) -> None:
        """`serving` is set once Envoy serves: before, a passing instance would be an endpoint that refuses its
        callers.
        """
        self._rng = Random(0)  # PROBE has no jitter
        self._consul = consul
        self._backends = backends
        self._peer_id = peer_id
        self._address = address
        self._serial = 0
        self._restart = asyncio.Event()
        self._other = asyncio.Event()
        self._serving = serving
        self.known: set[str] = set()
        """IDs that are registered with the agent as it runs now."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when `known` grew."""

    async def run(self) -> None:
        """Registers everything, and again after each `restarted()` and `use`. Ends only by cancellation."""
        while True:
            # A pure client has nothing to register, and is not to wait for it.
            self.on_change()
            backends = self._backends
            async with TaskScope() as scope:
                keeps = [scope.start(f"register {backend.service}", self._keep(backend)) for backend in backends]
                await self._other.wait()
                for task in keeps:
                    task.cancel()
            self._other.clear()
            self.known.clear()
            await self._deregister(self._ids(backends) - self._ids(self._backends))

    def use(self, backends: tuple[BackendEntry, ...]) -> None:
        """Makes `backends` those that are registered and checked. Who may call them is none of Consul's business."""
        if [_registered(each) for each in backends] != [_registered(each) for each in self._backends]:
            self._other.set()
        self._backends = backends

    def restarted(self) -> None:
        """The agent has started: register everything again."""
        self.known.clear()
        self._restart.set()
        self._restart = asyncio.Event()

    @property
    def complete(self) -> bool:
        """Whether the running agent knows every backend."""
        return self.known >= self._ids(self._backends)

    def _ids(self, backends: tuple[BackendEntry, ...]) -> set[str]:
        return {registration.service_id(backend, self._peer_id) for backend in backends}

    async def deregister(self) -> None:
        """Takes the services away. What the agent does not do now, its leaving does."""
        await self._deregister(self._ids(self._backends))

    async def _deregister(self, ids: set[str]) -> None:
        for own in sorted(ids):
            with contextlib.suppress(ConsulError):
                await self._consul.put(f"/v1/agent/service/deregister/{own}")

    async def _keep(self, backend: BackendEntry) -> None:
        own = registration.service_id(backend, self._peer_id)
        while True:
            restart = self._restart
            if backend.owner != registration.PLATFORM:
                await self._stub(backend)
                self._know(own)
            elif self._serving.is_set() and await listens(backend.port):
                await self._listening(backend)
                self._know(own)
            else:
                await self._put(registration.not_listening(backend, self._peer_id, self._address))
                self._know(own)
                if await self._until_listening(backend.port, restart):
                    await self._listening(backend)
            await restart.wait()

    def _know(self, own: str) -> None:
        self.known.add(own)
        self.on_change()

    async def _until_listening(self, port: int, restart: asyncio.Event) -> bool:
        """True when Envoy serves and the backend listens, False when the agent restarted meanwhile."""
        await self._serving.wait()
        attempt = 0
        while not restart.is_set():
            if await listens(port):
                return True
            await asyncio.sleep(PROBE.delay(attempt, self._rng))
            attempt += 1
        return False

    async def _listening(self, backend: BackendEntry) -> None:
        self._serial += 1
        await self._put(registration.listening(backend, self._peer_id, self._address, self._serial))
        log.info("backend passing", extra={"service": backend.service, "port": backend.port})

    async def _stub(self, backend: BackendEntry) -> None:
        own = registration.service_id(backend, self._peer_id)
        while True:
            try:
                _, existing = await self._consul.get(f"/v1/agent/service/{own}")
            except ConsulError as error:
                if error.status == 404:
                    existing = None
                else:
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
            if registration.is_ours_to_replace(existing):
                await self._put(registration.stub(backend, self._peer_id, self._address))
            return

    async def _put(self, body: dict[str, Any]) -> None:
        failures = 0
        while True:
            try:
                await self._consul.put("/v1/agent/service/register", body, params={"replace-existing-checks": "true"})
            except ConsulError as error:
                failures += 1
                # An agent that is just starting refuses for a moment; that is not worth a line each time.
                if failures % 50 == 10:
                    log.warning("registration refused", extra={"service": body["Name"], "reason": str(error)})
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return


def _registered(backend: BackendEntry) -> tuple[object, ...]:
    """What of it makes a registration."""
    return backend.service, backend.port, backend.sidecar_port, backend.owner


async def listens(port: int) -> bool:
    """Whether something accepts connections on 127.0.0.1:`port`."""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
