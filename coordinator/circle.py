"""The coordinators of the manifest in force: this one asks all others, and those that the manifest dropped leave.

A coordinator that was dropped, or that attested here with a compose hash or OS image that is no longer allowed, goes
off link, registry and lists, and its server out of Raft's configuration. Its server first, where that can be: a removal
needs a majority, to which it may belong (`coordinator.voters`). One that means ill would stay for as long; so after
`GRACE_SECONDS` the link to it ends whatever Raft says, and it is asked no more. Without a link nothing of it is heard,
and Consul cannot take it in again by gossip.

After a restart nobody here has seen the evidence of a coordinator that the records list. Where manifests have withdrawn
anything from coordinators since, one that does not show evidence for `UNPROVEN_SECONDS` has no link: it may be the one
that is meant. Its server counts all the same, as one that does not answer: whoever hosts the coordinators decides what
answers at their URLs, and could else take healthy ones out one after the other. It has its link again once it attests;
the owners drop it by a manifest.

Until then, while its server still counts for Raft, a dropped coordinator is asked as the others are: it may lead, and
have what was acknowledged while this one was away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from admission.protocol import PEERS_PREFIX, MeshPeer
from coordinator import voters
from coordinator.broker import Broker
from coordinator.registry import Registry
from coordinator.server_process import ServerProcess
from coordinator.siblings import Sibling
from runtime.consul import ConsulError
from runtime.tasks import TaskScope
from topology.allowed import coordinators, withdrawn
from topology.envelope import Signed
from topology.manifest import CoordinatorPeer, Manifest

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks, beside each change of the manifest's."""
STEP_SECONDS = 0.05
"""Between two steps that Raft's configuration takes."""
GRACE_SECONDS = 10.0
"""How long a dropped coordinator keeps its link because Raft counts it, and a step of its removal may take: since the
manifest dropped it, without the time in which nobody led. Removing takes well below a second, and an election about 2.
"""
UNPROVEN_SECONDS = 60.0
"""How long a coordinator of the records, of which some may be withdrawn, may show no evidence before its link ends. One
that runs attests to those that it finds within 5 s (`coordinator.siblings.RETRY`); this is four leases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What of a coordinator this works on."""

    own: MeshPeer
    broker: Broker
    registry: Registry
    server: ServerProcess
    chain: Callable[[], tuple[Signed, ...]]
    """The manifests that were in force, oldest first."""
    make: Callable[[CoordinatorPeer], Sibling]
    """Makes who asks a coordinator."""
    dismissed: Callable[[], str | None]
    """Why this coordinator itself has to leave."""


class Circle:
    """The other coordinators."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._made: dict[CoordinatorPeer, Sibling] = {}
        self._tasks: dict[CoordinatorPeer, asyncio.Task[None]] = {}
        self._voters: tuple[str, ...] = ()
        self._grace = voters.Grace()
        self._unproven: dict[str, float] = {}
        """Since when, by the loop's clock, coordinators of the records are without evidence here."""
        self._listed_still: set[str] = set()
        """Peer IDs of those that were put out, and that Consul's KV may have yet."""
        self._news = asyncio.Event()

    @property
    def siblings(self) -> tuple[Sibling, ...]:
        """Those of the manifest, heard or not: whoever is left out here would not be waited for."""
        return tuple(self._sibling(peer) for peer in self._others())

    @property
    def leaving(self) -> tuple[Sibling, ...]:
        """Those that it dropped and that are asked still."""
        listed = self._others()
        return tuple(self._sibling(peer) for peer in self._tasks if peer not in listed)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Mesh addresses of the other coordinators of the manifest."""
        return tuple(peer.address for peer in self._others())

    def changed(self) -> None:
        """Another manifest is enforced."""
        self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with TaskScope() as scope:
            while True:
                self._news.clear()
                self._keep(scope)
                now = asyncio.get_running_loop().time()
                stepped = self._parts.dismissed() is None and await self.look(now)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(STEP_SECONDS if stepped else LOOK_SECONDS):
                        await self._news.wait()

    # ---- who is asked

    def _keep(self, scope: TaskScope) -> None:
        wanted = (*self._others(), *self._dropped())
        for peer in self._tasks.keys() - set(wanted):
            self._tasks.pop(peer).cancel()
            self._made.pop(peer)
        for peer in wanted:
            if peer not in self._tasks:
                self._tasks[peer] = scope.start(f"sibling {peer.peer_id}", self._sibling(peer).run())

    def _sibling(self, peer: CoordinatorPeer) -> Sibling:
        if peer not in self._made:
            self._made[peer] = self._parts.make(peer)
        return self._made[peer]

    def _others(self) -> tuple[CoordinatorPeer, ...]:
        return tuple(it for it in coordinators(self._manifest) if it.peer_id != self._parts.own.peer_id)

    def _dropped(self) -> tuple[CoordinatorPeer, ...]:
        """Those whose server may leave yet."""
        return tuple(peer for peer in self._former() if not self._grace.over(peer.peer_id, GRACE_SECONDS))

    def _former(self) -> tuple[CoordinatorPeer, ...]:
        """Those of former manifests that Raft's configuration has, and the manifest has not."""
        listed = {self._parts.own.address, *self.addresses}
        former: dict[str, CoordinatorPeer] = {}
        for signed in self._parts.chain():
            former |= {peer.address: peer for peer in signed.manifest.coordinators.peers}
        own = self._parts.own
        going = [former[each] for each in self._voters if each in former and each not in listed]
        return tuple(peer for peer in going if own.address != peer.address and own.peer_id != peer.peer_id)

    # ---- who leaves

    async def look(self, now: float) -> bool:
        """One step of what has to be done at `now` (of the loop's clock); whether Raft's configuration takes more."""
        standing = await self._parts.server.standing()
        self._voters = standing.voters
        # First, and by itself: the other steps need the leader, which may be the one that has to go.
        self._put_out(standing.led, now)
        self._unlink_unproven(now)
        if not standing.led:
            return False
        try:
            async with asyncio.timeout(GRACE_SECONDS):
                stepped = await self._step()
                await self._tidy()
        except (ConsulError, TimeoutError, KeyError, TypeError, ValueError) as error:
            log.warning("a dropped coordinator is not out yet", extra={"reason": str(error) or "no answer in time"})
            return False
        return stepped

    async def _step(self) -> bool:
        staying, server = self._staying(), self._parts.server
        if set(self._voters) <= staying.keys():
            return False
        step = voters.next_step(await server.raft(), staying, self._parts.own.address)
        if isinstance(step, voters.Lead):
            log.info("takes the lead from a coordinator that leaves")
            await server.take_lead(step.server.server_id)
        elif isinstance(step, voters.Remove):
            log.info("a dropped coordinator's server leaves Raft", extra={"address": step.server.address})
            await server.remove(step.server.server_id)
        return step is not None

    def _put_out(self, led: bool, now: float) -> None:
        """Ends links and leases of those whose server has left, or has had the time to."""
        staying, parts = self._staying(), self._parts
        gone = {
            peer.peer_id: peer
            for peer in parts.registry.peers()
            if peer.kind == "coordinator" and staying.get(peer.address) != peer.peer_id != parts.own.peer_id
        }
        self._grace.look({*gone, *(peer.peer_id for peer in self._former())}, led, now)
        for name, peer in gone.items():
            if peer.address in self._voters and not self._grace.over(name, GRACE_SECONDS):
                continue
            log.warning("a coordinator is put out: the manifest no longer allows it", extra={"peer_id": name})
            parts.registry.remove(name)
            parts.broker.put_out(name)
            self._listed_still.add(name)

    def _unlink_unproven(self, now: float) -> None:
        """Ends links to those that may be withdrawn and show nothing. What is in Consul's lists stays."""
        parts = self._parts
        others = [it.peer_id for it in parts.registry.peers() if it.kind == "coordinator" and it != parts.own]
        unproven = [name for name in others if not parts.broker.proven_sibling(name)]
        self._unproven = {name: self._unproven.get(name, now) for name in unproven}
        late = [name for name in unproven if now - self._unproven[name] >= UNPROVEN_SECONDS]
        if late and withdrawn(self._manifest, (each.manifest for each in parts.chain())):
            for name in late:
                log.warning("a coordinator that shows no evidence has no link until it does", extra={"peer_id": name})
                parts.registry.remove(name)

    async def _tidy(self) -> None:
        """Takes those that were put out from Consul's lists. ConsulError."""
        staying, parts = self._staying(), self._parts
        for name in tuple(self._listed_still - set(staying.values())):
            await parts.server.client.delete(f"/v1/kv/{PEERS_PREFIX}{name}")
        self._listed_still.clear()
        await parts.server.force_out(staying)

    def _staying(self) -> Mapping[str, str]:
        """Peer IDs by mesh address of the coordinators that the manifest allows."""
        peers = self._manifest.coordinators.peers
        return {peer.address: peer.peer_id for peer in peers if self._parts.broker.allows_sibling(peer.peer_id)}

    @property
    def _manifest(self) -> Manifest:
        """The newest of our own app: who hands the mesh over to another stays with those that it was with."""
        newest, own = self._parts.broker.rules.manifest, self._parts.own.app_id
        of_ours = (each.manifest for each in reversed(self._parts.chain()) if each.manifest.coordinators.app_id == own)
        return newest if own == newest.coordinators.app_id else next(of_ours, newest)
