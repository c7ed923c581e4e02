"""The loop that keeps a CVM's tunnels: probes ways, moves endpoints, starts handshakes, repairs the device. IO edge.

What to do is decided by `peer.path` (which way), `peer.mtu` (which packet size), `peer.silence` (who was heard),
`peer.session` (which handshake) and `peer.plan` (which operations); this module carries it out. It is long because one
loop owns the device, the probes and the routes: each decision reads what the others changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from random import Random

from peer import link as health
from peer import mtu, path, session, silence
from peer.link import Contact, LinkStatus
from peer.path import Via
from peer.plan import check_wanted, make_plan
from peer.probe import Kind, ProbeKey, probe_key
from peer.prober import Arrival, Prober, known_path_mtu
from peer.routes import Routes
from peer.spec import (
    DeviceState,
    LinkError,
    Operation,
    Peer,
    PeerState,
    RemovePeer,
    RendezvousPeer,
    WantedPeer,
    check_address,
    check_key,
    parse_endpoint,
)
from peer.watch import RendezvousWatch
from peer.wireguard import Device, DeviceGoneError, public_key
from runtime.backoff import Backoff
from runtime.tasks import TaskScope

log = logging.getLogger(__name__)

_SYNC_CALM, _SYNC_BUSY = 1.0, 0.04
"""Seconds between looks at the device: when all is well, and while a handshake is awaited."""
_RENDEZVOUS_KEEPALIVE = 15
"""Seconds: well below the 30 after which a NAT may forget the mapping that the rendezvous reports."""
_REVIVE_AFTER, _REVIVE_EVERY = 1.0, 6.0
"""Seconds without an answer before the session with a rendezvous is made anew, and between tries."""
_ROUTES_RETRY = 1.0
"""Seconds until routes that the kernel did not take are tried again."""
_DEVICE_RETRY = Backoff(base=0.02, cap=0.5)


@dataclass(slots=True)
class _Link:
    peer: Peer
    key: ProbeKey
    state: path.PathState = dataclasses.field(default_factory=path.PathState)
    choice: path.Choice | None = None
    up_at: float = math.inf
    """When the present way was chosen first, monotonic."""
    pushed_at: float = -math.inf
    """When a handshake was last started from here, monotonic."""
    installed: bool = False
    """Whether the device has the peer: only then do we answer its probes."""
    sizes: mtu.MtuState = dataclasses.field(default_factory=mtu.MtuState)
    tx_checked: int = 0
    """Bytes that the tunnel had carried when the size in use was last checked."""
    silence: silence.Silence = dataclasses.field(default_factory=silence.Silence)
    restarts: int = 0
    """See `peer.link.Contact`."""

    def view(self) -> session.View:
        """What `peer.session` decides from."""
        return session.View(
            peer=self.peer,
            reachable=self.state.via is not Via.NONE,
            endpoint=self.choice.endpoint if self.choice else None,
            contact=self.state.contact,
            up_at=self.up_at,
            pushed_at=self.pushed_at,
        )


class PeerLink:
    """All tunnels of one CVM. `run()` does the work; the other methods may be called at any time from the same loop."""

    def __init__(
        self,
        device: Device,
        *,
        rendezvous: Sequence[RendezvousPeer],
        allow_direct: bool = True,
        rng: Random | None = None,
    ) -> None:
        """`allow_direct=False` keeps every tunnel on relays. LinkError when a rendezvous is not what it must be."""
        self._device = device
        self._spec = device.spec
        self._own_key = public_key(device.spec.private_key)
        self._allow_direct = allow_direct
        self._rng = rng or Random()
        self._links: dict[str, _Link] = {}
        self._device_state = DeviceState(public_key="", listen_port=0)
        self._wake = asyncio.Event()
        self._synced = asyncio.Event()
        self._sync_at = 0.0
        self._answered: Set[str] | None = None
        self._revived_at: dict[str, float] = {}
        for each in rendezvous:
            parse_endpoint(each.endpoint)
            check_address(each.address, self._spec.pool)
        self._watches = [RendezvousWatch(each, self._spec.address, self._on_table, self._rng) for each in rendezvous]
        self._rendezvous_keys = {
            each.public_key: probe_key(self._spec.private_key, check_key(each.public_key), self._own_key)
            for each in rendezvous
        }
        self._prober = Prober(self._spec.listen_port, self._on_arrival, self._on_refused)
        self._routes = Routes(self._spec)
        self._routes_due = asyncio.Event()
        self.on_return: Callable[[], None] = lambda: None
        """Called when a peer is heard again after a silence or has restarted, and when a peer comes or goes."""

    def set_peers(self, peers: Sequence[Peer]) -> None:
        """The CVMs to have tunnels with; ourselves among them is fine. LinkError, and no change, when one is wrong."""
        links = {}
        for peer in peers:
            if peer.public_key == self._own_key:
                continue
            check_address(peer.address, self._spec.pool)
            known = self._links.get(check_key(peer.public_key))
            if known is not None:
                links[peer.public_key] = dataclasses.replace(known, peer=peer)
            else:
                key = probe_key(self._spec.private_key, peer.public_key, self._own_key)
                links[peer.public_key] = _Link(peer=peer, key=key)
        own = [WantedPeer(public_key=key, allowed=(f"{each.peer.address}/32",)) for key, each in links.items()]
        check_wanted([*self._wanted_rendezvous(), *own])
        self._links = links
        self._routes_due.set()
        self._on_table()
        self._hurry()
        self.on_return()

    def set_allow_direct(self, allow: bool) -> None:
        """Whether tunnels may leave the relays. Existing ones move as soon as the other way is there, without loss."""
        self._allow_direct = allow
        self._wake.set()

    def status(self) -> tuple[LinkStatus, ...]:
        """Every peer's link now, by peer ID."""
        now, now_unix = time.monotonic(), time.time()
        rows = []
        for key, each in self._links.items():
            device = self._device_state.peers.get(key)
            age = health.handshake_age(device.latest_handshake, now_unix) if device else None
            via = each.state.via
            alive = via is not Via.NONE and each.state.way(via).alive(now)
            rows.append(
                LinkStatus(
                    peer_id=each.peer.peer_id,
                    public_key=key,
                    path=via.value if alive and age is not None else Via.NONE.value,
                    health=health.health(age),
                    handshake_age_s=age,
                    endpoint=device.endpoint if device else None,
                    round_trip_s=each.state.way(via).round_trip if alive else None,
                    mtu=self._mtu(each),
                )
            )
        return tuple(sorted(rows, key=lambda row: (row.peer_id, row.public_key)))

    def contacts(self) -> tuple[Contact, ...]:
        """When every peer was heard."""
        return tuple(
            Contact(
                peer_id=each.peer.peer_id,
                public_key=key,
                address=each.peer.address,
                heard_at=each.silence.heard_at,
                asked=each.silence.asked,
                restarts=each.restarts,
            )
            for key, each in self._links.items()
        )

    async def wait_up(self, public_keys: Sequence[str], seconds: float) -> bool:
        """True as soon as the tunnels to all `public_keys` are up (ourselves counts as up), False after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                while not all(self._is_up(key) for key in public_keys):
                    self._synced.clear()
                    await self._synced.wait()
        except TimeoutError:
            return False
        return True

    def rendezvous_up(self) -> bool:
        """Whether at least one rendezvous answers, or none is configured."""
        answering = [each for each in self._watches if each.table is not None and each.failing_since is None]
        return bool(answering) or not self._watches

    async def run(self) -> None:
        """Runs until cancelled. The device's process has to be started by the caller, before or after."""
        with self._prober:
            await self._revive()
            async with TaskScope() as scope:
                scope.start("peer links", self._maintain())
                # A connection before the device knows the rendezvous would be lost, and TCP tries again after 1 s.
                await self._synced.wait()
                scope.start("routes to peers", self._keep_routes())
                for each in self._watches:
                    scope.start(f"rendezvous {each.rendezvous.address}", each.watch())
                    scope.start(f"relays at {each.rendezvous.address}", each.ask())

    async def _maintain(self) -> None:
        while True:
            self._wake.clear()
            wake = self._probe(time.monotonic())
            try:
                await self._sync(time.monotonic())
            except DeviceGoneError as error:
                log.warning("%s; waiting for it", error)
                await self._revive()
                continue
            except LinkError as error:
                # Something else configures the device, or a kernel refuses an operation: try again, and say so.
                log.error("the WireGuard device does not take what it is given: %s", error)
                self._sync_at = time.monotonic() + _SYNC_CALM
            # Never zero, so that other tasks get their turn whatever is due.
            pause = max(0.001, min(wake, self._sync_at) - time.monotonic())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    async def _keep_routes(self) -> None:
        """Brings the routes to the links' MTUs. Not in `_maintain`: a thousand take seconds, and probes are due."""
        while True:
            self._routes_due.clear()
            try:
                await self._routes.apply({each.peer.address: self._mtu(each) for each in self._links.values()})
            except (DeviceGoneError, LinkError) as error:
                log.warning("the routes to peers will be set later: %s", error)
                await asyncio.sleep(_ROUTES_RETRY)
            else:
                await self._routes_due.wait()

    async def _revive(self) -> None:
        """Waits for the device and gives it our key and addresses."""
        attempt = 0
        while True:
            try:
                await self._device.wait_device(60.0)
                await self._device.configure()
                break
            except (DeviceGoneError, IndexError) as error:
                # IndexError: the interface vanished between two netlink calls.
                if attempt % 20 == 19:
                    log.warning("still no WireGuard device: %s", error)
                await asyncio.sleep(_DEVICE_RETRY.delay(attempt, self._rng))
                attempt += 1
        self._routes.forget()
        self._routes_due.set()
        for each in self._links.values():
            each.pushed_at = -math.inf
        self._hurry()

    def _hurry(self) -> None:
        self._sync_at = 0.0
        self._wake.set()

    def _probe(self, now: float) -> float:
        """Chooses ways and sends the probes that are due; when to look again."""
        wake = math.inf
        for key, each in self._links.items():
            if not each.installed:
                continue
            before = each.choice
            each.state, choice = path.choose(each.state, now, self._rng, allow_direct=self._allow_direct)
            each.choice = choice
            if before is None or (before.via, before.endpoint) != (choice.via, choice.endpoint):
                self._on_moved(each, before, choice, now)
            for via in choice.probe:
                self._ping(key, each, via)
            if choice.call and each.state.relay.endpoint is not None:
                self._prober.call(key, each.state.relay.endpoint)
            if choice.want_relay:
                self._want_relay(key)
            wake = min(wake, choice.wake, self._measure(key, each, now))
        return wake

    def _measure(self, key: str, each: _Link, now: float) -> float:
        """Probes the sizes that are due on the way in use; when to look again."""
        assert each.choice is not None
        endpoint = each.choice.endpoint
        if self._spec.path_mtu is not None or endpoint is None:
            return math.inf
        before = each.sizes.mtu
        each.sizes = mtu.moved(each.sizes, endpoint, now)
        if now >= each.sizes.wake:
            round_trip = each.state.way(each.choice.via).round_trip
            known = known_path_mtu(endpoint)
            each.sizes, sizes = mtu.choose(each.sizes, now, path_mtu=known, round_trip=round_trip, rng=self._rng)
            for size in sizes:
                self._prober.measure(key, endpoint, size)
        self._on_mtu(each, before)
        return each.sizes.wake

    def _on_mtu(self, each: _Link, before: int) -> None:
        if each.sizes.mtu != before:
            log.info("link to %s: MTU %d, was %d", each.peer.peer_id or each.peer.address, each.sizes.mtu, before)
            self._routes_due.set()

    def _mtu(self, each: _Link) -> int:
        """The link's MTU, bytes: what was set by hand, or measured."""
        return each.sizes.mtu if self._spec.path_mtu is None else self._spec.mtu

    def _on_moved(self, each: _Link, before: path.Choice | None, choice: path.Choice, now: float) -> None:
        if choice.via is not Via.NONE:
            if before is None or before.via is Via.NONE:
                each.up_at = now
            self._sync_at = 0.0
        if before is not None:
            log.info(
                "link to %s: %s, was %s", each.peer.peer_id or each.peer.address, choice.via.value, before.via.value
            )

    def _ping(self, key: str, each: _Link, via: Via) -> None:
        endpoint = each.state.way(via).endpoint
        assert endpoint is not None
        each.silence = silence.asked(each.silence)
        if via is Via.DIRECT:
            self._prober.ping(key, key, endpoint)
            return
        for watch in self._watches:
            if watch.rendezvous.endpoint.rpartition(":")[0] == endpoint.rpartition(":")[0]:
                self._prober.ping(watch.rendezvous.public_key, key, endpoint)

    def _want_relay(self, key: str) -> None:
        for watch in self._watches:
            if watch.failing_since is None and watch.table is not None and key in watch.table.mappings:
                watch.want_relay(key)
                return

    def _on_table(self) -> None:
        """A rendezvous said something new, or there are new peers."""
        now = time.monotonic()
        for key, each in self._links.items():
            mapping = next((w.table.mappings[key] for w in self._watches if w.table and key in w.table.mappings), None)
            relay = next((_relay_endpoint(w, key) for w in self._watches if w.table and key in w.table.relays), None)
            if mapping is not None:
                each.state = path.learn(each.state, Via.DIRECT, mapping, now)
            each.state = path.learn(each.state, Via.RELAY, relay, now)
        self._wake.set()

    def _on_arrival(self, arrival: Arrival) -> None:
        """A probe came in."""
        # A size probe may have come over a relay: it says nothing about where the peer is.
        if arrival.probe.kind is Kind.SIZED:
            self._on_size(arrival)
        elif arrival.probe.kind is not Kind.SIZE:
            self._on_path(arrival)

    def _on_size(self, arrival: Arrival) -> None:
        """A size came through."""
        sent = arrival.sent
        each = self._links.get(arrival.sender)
        if each is None or sent is None or sent.mtu is None:
            return
        self._hear(each, arrival.at)
        before = each.sizes.mtu
        each.sizes = mtu.answered(each.sizes, sent.endpoint, sent.mtu, arrival.at, self._rng)
        self._on_mtu(each, before)
        self._wake.set()

    def _on_refused(self, addresses: frozenset[str]) -> None:
        """A router refused packets to these addresses as too large, and said so to the kernel."""
        now = time.monotonic()
        for each in self._links.values():
            endpoint = each.choice.endpoint if each.choice else None
            if endpoint is not None and endpoint.rpartition(":")[0] in addresses:
                each.sizes = mtu.limited(each.sizes, known_path_mtu(endpoint), now)
                self._wake.set()

    def _on_path(self, arrival: Arrival) -> None:
        """A probe came in that says something about a way."""
        sent = arrival.sent
        each = self._links.get(sent.holder if sent else arrival.sender)
        if each is None:
            return
        contact, via = each.state.contact, each.state.via
        if sent is not None:
            round_trip = arrival.at - sent.at
            if sent.holder == arrival.sender or arrival.probe.through:
                self._hear(each, arrival.at)
            if sent.holder == arrival.sender:
                each.state = path.answered(each.state, Via.DIRECT, sent.endpoint, round_trip, arrival.at)
            elif arrival.probe.through:
                each.state = path.answered(each.state, Via.RELAY, sent.endpoint, round_trip, arrival.at)
        elif arrival.probe.kind is Kind.CALL:
            each.state = path.called(each.state, arrival.at)
        elif arrival.endpoint == each.state.direct.endpoint:
            each.state = path.heard(each.state, Via.DIRECT, arrival.at)
        elif not each.state.direct.alive(arrival.at):
            # Its NAT gave it another port towards us than towards the rendezvous.
            each.state = path.learn(each.state, Via.DIRECT, arrival.endpoint, arrival.at)
            each.state = path.heard(each.state, Via.DIRECT, arrival.at)
        if not contact:
            self._sync_at = 0.0
        if not contact or via is not Via.DIRECT or not each.state.way(via).alive(arrival.at):
            self._wake.set()

    def _hear(self, each: _Link, at: float) -> None:
        """Something arrived from the peer."""
        self._heard(each, silence.heard(each.silence, at), at)

    def _heard(self, each: _Link, after: silence.Silence, at: float) -> None:
        before, each.silence = each.silence, after
        if before.heard_at is not None and before.heard_at != after.heard_at and at - before.heard_at > path.LATE_AFTER:
            self.on_return()

    def _note_restart(self, each: _Link, before: PeerState | None, device: PeerState, now: float) -> None:
        heard_at = each.silence.heard_at
        if session.restarted(before, device, 0.0 if heard_at is None else now - heard_at):
            each.restarts += 1
            self.on_return()

    async def _sync(self, now: float) -> None:
        """Looks at the device and changes what is not as wanted; at most as often as `_sync_at` allows."""
        if now < self._sync_at:
            return
        self._sync_at = now + _SYNC_CALM
        state = await self._device.read()
        if state.public_key != self._own_key:
            log.info("the WireGuard device is new: configuring it")
            await self._revive()
            state = await self._device.read()
        revive = self._dead_rendezvous(now)
        if revive:
            await self._device.apply([RemovePeer(public_key=key) for key in revive])
            state = await self._device.read()
        now_unix = time.time()
        wanted = self._wanted_rendezvous()
        pushes: list[Operation] = []
        for key, each in self._links.items():
            device, view = state.peers.get(key), each.view()
            wanted.append(session.wanted(view, device, self._own_key, now, now_unix))
            push = session.push(view, device, self._own_key, now, now_unix)
            if push or (wanted[-1].keepalive and not (device and device.keepalive)):
                each.pushed_at = now
            pushes += push
            if device is not None:
                _note_load(each, device.tx, now)
                self._note_restart(each, self._device_state.peers.get(key), device, now)
                self._heard(each, silence.received(each.silence, device.rx, now), now)
        operations = [*make_plan(state, wanted), *pushes]
        await self._device.apply(operations)
        self._device_state = await self._device.read() if operations else state
        self._install(wanted)
        # Earlier, if something happened meanwhile that wants a look at once.
        self._sync_at = min(self._sync_at, now + self._pause(now, now_unix))
        self._synced.set()

    def _install(self, wanted: Sequence[WantedPeer]) -> None:
        """The device has these peers now: answer and send their probes."""
        for peer in wanted:
            # Peers that left, or came, while the device was written are for the next round.
            if peer.public_key in self._links:
                self._links[peer.public_key].installed = True
        installed = {key: each.key for key, each in self._links.items() if each.installed}
        if installed.keys() != self._answered:
            self._answered = installed.keys()
            self._prober.set_keys({**self._rendezvous_keys, **installed})
            self._wake.set()

    def _pause(self, now: float, now_unix: float) -> float:
        peers = self._device_state.peers
        busy = any(session.expecting(each.view(), peers.get(key), now, now_unix) for key, each in self._links.items())
        return _SYNC_BUSY if busy else _SYNC_CALM

    def _dead_rendezvous(self, now: float) -> list[str]:
        """Rendezvous to start a new session with: one that restarted cannot read the old one's packets.

        Removing this peer loses nothing: no CVM's traffic uses it.
        """
        dead = []
        for watch in self._watches:
            since, key = watch.failing_since, watch.rendezvous.public_key
            failing = since is not None and now - since >= _REVIVE_AFTER
            if failing and now - self._revived_at.get(key, -math.inf) >= _REVIVE_EVERY:
                self._revived_at[key] = now
                dead.append(key)
        return dead

    def _wanted_rendezvous(self) -> list[WantedPeer]:
        return [
            WantedPeer(
                public_key=watch.rendezvous.public_key,
                allowed=(f"{watch.rendezvous.address}/32",),
                endpoint=watch.rendezvous.endpoint,
                keepalive=_RENDEZVOUS_KEEPALIVE,
            )
            for watch in self._watches
        ]

    def _is_up(self, key: str) -> bool:
        return key == self._own_key or (
            key in self._links and session.fresh(self._device_state.peers.get(key), time.time())
        )


def _note_load(each: _Link, tx: int, now: float) -> None:
    """The tunnel has carried `tx` bytes: where a full packet may have been among the last ones, its size is checked."""
    if 0 <= tx - each.tx_checked < each.sizes.mtu:
        return
    sizes = mtu.loaded(each.sizes, now)
    if sizes is not each.sizes:
        each.sizes, each.tx_checked = sizes, tx


def _relay_endpoint(watch: RendezvousWatch, key: str) -> str:
    assert watch.table is not None
    return f"{watch.rendezvous.endpoint.rpartition(':')[0]}:{watch.table.relays[key]}"
