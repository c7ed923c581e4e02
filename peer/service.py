"""What a rendezvous does: it is a WireGuard peer of every admitted CVM, tells them each other's mappings, and relays.

It learns admitted keys from coordinators only, and mappings from WireGuard's authenticated handshakes only. Its control
API listens on its mesh address alone: a request's source address is the caller's identity, because WireGuard takes a
packet from that address only when it was encrypted with that peer's key.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from random import Random

from aiohttp import web

from peer import control
from peer import link as health
from peer.keys import KeySet, KeySource, unite
from peer.plan import make_plan
from peer.probe import ProbeKey, probe_key
from peer.relay import Relay, RelayFullError
from peer.spec import CONTROL_PORT, LinkError, WantedPeer
from peer.wireguard import Device, DeviceGoneError, public_key
from runtime.backoff import Backoff
from runtime.tasks import TaskScope

log = logging.getLogger(__name__)

_LOOK_EVERY = 1.0
"""Seconds between looks at the device for mappings that moved. New ones are seen when their peer asks."""
MAX_WATCHES = 8
"""That wait at once for one CVM. Its sidecar has one, and for a moment two after a restart; any program of the CVM can
ask from its address. One more has the oldest answered."""
_RETRY = Backoff(base=0.2, cap=5.0)


class Rendezvous:
    """One rendezvous. `run()` does the work."""

    def __init__(
        self,
        device: Device,
        sources: Sequence[KeySource],
        relay: Relay,
        *,
        rng: Random | None = None,
        through_tunnel_only: bool = True,
        more: Callable[[], Awaitable[KeySource]] | None = None,
    ) -> None:
        """`through_tunnel_only=False` is for tests without a device: callers are then whoever has the address. `more`
        waits for a further coordinator, and gives it.
        """
        self._more = more
        self._device = device
        self._through_tunnel_only = through_tunnel_only
        self._sources = sources
        self._relay = relay
        self._rng = rng or Random()
        self._own_key = public_key(device.spec.private_key)
        self._sets: dict[int, KeySet] = {}
        self._admitted: dict[str, str] = {}
        self._callers: dict[str, str] = {}
        self._probe_keys: dict[str, ProbeKey] = {}
        self._mappings: dict[str, str] = {}
        # From the clock, so that a caller who knows a table of an earlier process is answered at once.
        self._index = time.time_ns() // 1_000_000
        self._changed = asyncio.Event()
        self._watches: dict[str, dict[asyncio.Timeout, None]] = {}
        """Those that wait, by caller, the oldest first."""
        self._ending = False
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Runs until cancelled. The device's process has to be started by the caller, before or after."""
        await self._set_up_device()
        runner = web.AppRunner(
            self._app(), access_log=None, handle_signals=False, shutdown_timeout=0.2, auto_decompress=False
        )
        await runner.setup()
        try:
            await web.SockSite(runner, self._listen()).start()
            log.info("rendezvous %s listens on %s:%d", self._own_key, self._device.spec.address, CONTROL_PORT)
            async with TaskScope() as scope:
                scope.start("mappings", self._look())
                for number, source in enumerate(self._sources):
                    scope.start(f"keys from coordinator {number}", self._follow(number, source))
                if self._more is not None:
                    scope.start("further coordinators", self._follow_more(scope, self._more))
        finally:
            self._ending = True
            self._publish()
            self._relay.close()
            await runner.cleanup()

    def _listen(self) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self._through_tunnel_only:
                # Linux takes packets for any address of its own on any interface; only what WireGuard let in counts.
                made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._device.spec.name.encode())
            made.bind((self._device.spec.address, CONTROL_PORT))
        except BaseException:
            made.close()
            raise
        return made

    async def admit(self, number: int, keys: KeySet) -> None:
        """Takes the set of coordinator `number`; returns when the device has it. DeviceGoneError when it cannot."""
        self._sets.pop(number, None)
        # The newest first. A coordinator that is away keeps its last word.
        self._sets = {number: keys, **self._sets}
        self._admitted = unite(list(self._sets.values()), self._device.spec.address)
        self._callers = {address: key for key, address in self._admitted.items()}
        spec = self._device.spec
        self._probe_keys = {
            key: self._probe_keys.get(key) or probe_key(spec.private_key, key, self._own_key) for key in self._admitted
        }
        await self._apply()

    async def _follow_more(self, scope: TaskScope, more: Callable[[], Awaitable[KeySource]]) -> None:
        number = len(self._sources)
        while True:
            scope.start(f"keys from coordinator {number}", self._follow(number, await more()))
            number += 1

    async def _follow(self, number: int, source: KeySource) -> None:
        seen, attempt = 0, 0
        while True:
            try:
                keys = await source.watch(seen)
                if keys.version != seen:
                    await self.admit(number, keys)
            except Exception as error:  # noqa: BLE001 -- the boundary: whatever a coordinator says, only it has failed
                if attempt == 0:
                    log.warning("no keys from coordinator %d, keeping the last ones: %s", number, error)
                await asyncio.sleep(_RETRY.delay(attempt, self._rng))
                attempt += 1
                continue
            if attempt:
                log.info("coordinator %d gives keys again", number)
            seen, attempt = keys.version, 0

    async def _set_up_device(self) -> None:
        attempt = 0
        while True:
            try:
                await self._device.wait_device(60.0)
                await self._device.configure()
                return
            except (DeviceGoneError, IndexError) as error:
                log.warning("no WireGuard device yet: %s", error)
                await asyncio.sleep(_RETRY.delay(attempt, self._rng))
                attempt += 1

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            try:
                await self._apply()
            except DeviceGoneError:
                await self._set_up_device()
            except LinkError as error:
                log.error("the WireGuard device does not take what it is given: %s", error)

    async def _apply(self) -> None:
        """Brings the device to the admitted keys and reads the mappings."""
        async with self._lock:
            state = await self._device.read()
            if state.public_key != self._own_key:
                await self._device.configure()
                state = await self._device.read()
            # No endpoints: only handshakes tell where a peer is.
            wanted = [WantedPeer(public_key=key, allowed=(f"{address}/32",)) for key, address in self._admitted.items()]
            operations = make_plan(state, wanted)
            if operations:
                await self._device.apply(operations)
                log.info("%d peers admitted", len(wanted))
        now_unix = time.time()
        mappings = {
            key: peer.endpoint
            for key, peer in state.peers.items()
            if key in self._admitted and peer.endpoint is not None and _met(peer.latest_handshake, now_unix)
        }
        closed = self._relay.retain(self._admitted, asyncio.get_running_loop().time())
        if closed or mappings != self._mappings:
            self._mappings = mappings
            self._publish()

    def _publish(self) -> None:
        self._index += 1
        # Each waiter holds the event that it began to wait on.
        self._changed.set()
        self._changed = asyncio.Event()

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=4096)
        app.router.add_get("/v1/watch", self._on_watch)
        app.router.add_post("/v1/relay", self._on_relay)
        return app

    def _caller(self, request: web.Request) -> str:
        key = self._callers.get(request.remote or "")
        if key is None:
            raise web.HTTPForbidden(text="not an admitted peer's address")
        return key

    async def _on_watch(self, request: web.Request) -> web.Response:
        caller = self._caller(request)
        try:
            seen = int(request.query.get("index", "0"))
            wait = min(control.MAX_WAIT, max(0.0, float(request.query.get("wait", control.MAX_WAIT))))
        except ValueError:
            raise web.HTTPBadRequest(text="index is an integer, wait is seconds") from None
        if caller not in self._mappings:
            # This request came through its tunnel, so the device knows its mapping by now: others may have it at once.
            try:
                await self._apply()
            except DeviceGoneError as error:
                raise web.HTTPServiceUnavailable(text="the tunnel device is being restarted") from error
        await self._until_changed(caller, seen, wait)
        # The caller may have been dropped while it waited.
        caller = self._caller(request)
        table = control.Table(
            index=self._index,
            mappings={key: endpoint for key, endpoint in self._mappings.items() if key != caller},
            relays=self._relay.ports_of(caller),
        )
        return web.Response(body=control.encode_table(table), content_type="application/json")

    async def _until_changed(self, caller: str, seen: int, wait: float) -> None:
        """Returns when the table is another one than `seen`, after `wait` seconds, or when too many wait for `caller`.
        Each answer is whole, so nobody misses anything by that.
        """
        mine = self._watches.setdefault(caller, {})
        if len(mine) >= MAX_WATCHES:
            oldest = next(iter(mine))
            del mine[oldest]
            if not oldest.expired():
                oldest.reschedule(0.0)
        limit = asyncio.timeout(wait)
        mine[limit] = None
        try:
            async with limit:
                while self._index == seen and not self._ending:
                    await self._changed.wait()
        except TimeoutError:
            pass
        finally:
            mine.pop(limit, None)
            if not mine and self._watches.get(caller) is mine:
                del self._watches[caller]

    async def _on_relay(self, request: web.Request) -> web.Response:
        caller = self._caller(request)
        try:
            peer = control.decode_relay_request(await request.read())
        except LinkError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        if peer not in self._admitted or peer == caller:
            raise web.HTTPNotFound(text="no such peer is admitted")
        try:
            new = await self._relay.open(caller, self._probe_keys[caller], peer, self._probe_keys[peer])
        except RelayFullError as error:
            raise web.HTTPServiceUnavailable(text=str(error)) from error
        if new:
            self._publish()
        port = self._relay.ports_of(caller).get(peer)
        if port is None:
            raise web.HTTPServiceUnavailable(text="the relay is being made; ask again")
        return web.json_response({"port": port})


def _met(latest_handshake: float, now_unix: float) -> bool:
    return health.health(health.handshake_age(latest_handshake, now_unix)) in (health.Health.UP, health.Health.STALE)
