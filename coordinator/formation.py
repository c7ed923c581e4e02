"""The life of a coordinator's Consul server on its disk: claim the disk, decide how to start, watch over it.

`coordinator.forming` decides. What else has to be in order before a server starts is here: a server that leads before
the CVMs' agents are in gossip again takes their nodes out of the catalog (`reconcileReaped` in Consul's
agent/consul/leader.go), and with them their services and sessions, though all of them run. So the peers that were
admitted last are kept on the disk, and the server starts when their tunnels are up.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable
from typing import Protocol

from admission.admitted import admitted_as
from admission.protocol import MeshPeer
from coordinator.broker import Broker
from coordinator.circle import Circle
from coordinator.disk import Disk, DiskError
from coordinator.disk_probe import DiskProbe
from coordinator.forming import UNKNOWN, Action, Decision, Standing, StandingRequest, decide
from coordinator.forming import Sibling as Seen
from coordinator.marker import MEMBER, NEW, STARTED, ForeignDataError
from coordinator.registry import Registry
from coordinator.server_process import ServerProcess, Start
from coordinator.siblings import Sibling
from runtime.consul import ConsulError
from runtime.consul_config import SERVER_PORT
from runtime.tasks import TaskScope
from topology.allowed import why_not_allowed
from topology.manifest import Manifest

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5
"""Between two looks at server, siblings and disk."""
AGAIN_SECONDS = 5.0
"""Between two attempts to claim a disk that cannot be used."""
MEET_SECONDS = 10.0
"""How long a server waits for the tunnels of agents that were there before: WireGuard tries a handshake every 5 s
(REKEY_TIMEOUT, wireguard paper 6.1), so two attempts fit."""
SETTLE_SECONDS = 3.0
"""How long it goes on waiting for the others once one is there: through that one, gossip learns of all."""
RECOVER_SECONDS = 10.0
"""How long a lack of quorum must be seen before the records go on alone: an election takes about 2 s."""
ALONE_SECONDS = 60.0
"""How long a server has no leader until the owners' word is taken though others say that there is one: many elections,
and longer than a server takes to start, or to be asked by whoever leads."""
FAILED_STARTS = 2
"""Ends of the server in a row after which status gives a reason."""


class Meeting(Protocol):
    """What is asked of the peer link."""

    async def meet(self, public_keys: tuple[str, ...], seconds: float) -> tuple[str, ...]:
        """Those of `public_keys` to which a tunnel is up after `seconds`, or as soon as all are."""
        ...


class Formation:
    """The server's life. `reason` says what is wrong or waited for; empty when all is well."""

    def __init__(
        self,
        disk: Disk,
        probe: DiskProbe,
        server: ServerProcess,
        link: Meeting,
        *,
        own: MeshPeer,
        manifest: Callable[[], Manifest],
        dismissed: Callable[[], str | None],
        registry: Registry,
    ) -> None:
        """`dismissed` (`coordinator.head`) says why this coordinator has to leave."""
        self.reason = ""
        self.leaderless = False
        """Its records have no leader: the owners' word on who is lost is waited for."""
        self._word: Manifest | None = None
        """The manifest that the owners set while there was no leader.

        Anybody can set it again, for it is public: the owners' signature decides who is dropped. This keeps a server
        from going on alone by accident, while those that are dropped have not booted yet.
        """
        self.empty = False
        """This coordinator began with an empty disk."""
        self.circle: Circle | None = None
        """Set before `run`."""
        self._dismissed = dismissed
        self._disk, self._probe, self._server, self._link = disk, probe, server, link
        self._own, self._manifest, self._registry = own, manifest, registry
        self._settled = False
        self._before: tuple[MeshPeer, ...] = ()
        """Who was admitted last, by the disk."""

    async def run(self) -> None:
        """Keeps the server until cancelled."""
        start = await self._claimed()
        while True:
            try:
                action = await self._serve(start)
                start = await self._restart(start, action)
            except (DiskError, OSError) as error:
                self._note(f"the Consul server cannot start: {error}", logging.WARNING)
                await asyncio.sleep(AGAIN_SECONDS)

    # ---- what siblings are told, and are asked

    async def standing(self) -> Standing:
        """What this coordinator says of its server now."""
        marker = self._disk.marker
        if marker is None:
            return UNKNOWN
        if marker.stage == NEW:
            return Standing(records=False)
        found = await self._server.standing()
        # A member without records has lost them. It must not pass for one that never had any.
        return UNKNOWN if marker.stage == MEMBER and found.records is False else found

    async def answer(self, broker: Broker, request: StandingRequest) -> Standing:
        """The answer to a sibling; RefusalError for anyone else. An empty one's predecessor leaves the cluster."""
        peer_id = broker.sibling(request.lease)
        found = await self.standing()
        address = next((p.address for p in self._manifest().coordinators.peers if p.peer_id == peer_id), None)
        if not (request.empty and found.led and address) or peer_id == self._own.peer_id:
            return found
        try:
            room = await self._server.make_room(peer_id, address, request.server_id)
        except ConsulError as error:
            log.warning("no room made yet", extra={"peer_id": peer_id, "reason": str(error)})
            room = False
        return dataclasses.replace(found, room=room)

    def take_word(self) -> None:
        """The owners have set the manifest while there was no leader: who it drops is lost."""
        self._word = self._manifest()

    def ask(self) -> dict[str, object]:
        """What a sibling is asked, beside the lease."""
        marker = self._disk.marker
        return {"server_id": marker.server_id if marker else "", "empty": marker is not None and marker.stage == NEW}

    def hurry(self) -> bool:
        """True while answers of siblings are waited for."""
        return not self._settled

    # ---- the start

    async def _claimed(self) -> Start:
        while True:
            try:
                marker = self._disk.claim()
                problem = self._disk.problem()
                if marker.stage == NEW and problem:
                    raise DiskError(problem)
            except (DiskError, ForeignDataError) as error:
                self._note(str(error), logging.WARNING)
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            break
        self.recall()
        self.empty = marker.stage == NEW
        found = False
        if marker.stage == NEW:
            found = await self._permitted()
        elif marker.stage == STARTED and not self._siblings:
            found = True
        met = await self._meet() if marker.stage != NEW else ()
        return Start(server_id=marker.server_id, found=found, met=met)

    async def _permitted(self) -> bool:
        """Waits until an empty server may start; whether it may found a cluster."""
        while True:
            decision = self._decide(Standing(records=False))
            if self._dismissed():
                decision = Decision(action=Action.WAIT)
            if decision.action in (Action.JOIN, Action.FOUND):
                self._note("")
                what = "joins its siblings" if decision.action is Action.JOIN else "founds the cluster, empty"
                log.info("the disk is empty: " + what)
                return decision.action is Action.FOUND
            self._note(decision.reason)
            await asyncio.sleep(TICK_SECONDS)

    def recall(self) -> None:
        """Reads who was admitted last from the disk, and takes them as `remember` does."""
        self._before = self._disk.remembered()
        self.remember()

    def remember(self) -> None:
        """Takes the peers that were admitted last as such, as far as the manifest in force still allows them: until the
        records are heard, which may take until the owners say who is lost. Again with each manifest.
        """
        manifest = self._manifest()
        self._registry.remember(
            {
                p.peer_id: p
                for p in self._before
                if p.kind == "workload" and why_not_allowed(manifest, admitted_as(p)) is None
            }
        )

    async def _meet(self) -> tuple[str, ...]:
        """Mesh addresses of the workloads' agents whose tunnels are up again."""
        peers = {p.public_key: p.address for p in self._registry.peers() if p.kind == "workload"}
        if not peers:
            return ()
        keys = tuple(peers)
        self._note("waits for the tunnels of the CVMs that were there before")
        end = asyncio.get_running_loop().time() + MEET_SECONDS
        met: tuple[str, ...] = ()
        while not met and asyncio.get_running_loop().time() < end:
            met = await self._link.meet(keys, TICK_SECONDS)
        if met:
            met = await self._link.meet(keys, min(SETTLE_SECONDS, max(0.0, end - asyncio.get_running_loop().time())))
        log.info("tunnels are back", extra={"of": len(keys), "up": len(met)})
        self._note("")
        return tuple(peers[key] for key in met)

    # ---- the run

    async def _serve(self, start: Start) -> Action:
        """Runs the server until it has to start another way."""
        self._server.prepare(start)
        self._disk.advance(STARTED)
        async with TaskScope() as scope:
            child = scope.start("consul server", self._server.child.run())
            beside = (
                scope.start("disk probe", self._probe.run()),
                scope.start("rpc certificate", self._server.keep_certificate()),
            )
            action = await self._watch(start)
            if action is Action.LEAVE:
                with contextlib.suppress(ConsulError):
                    await self._server.leave()
            for task in (*beside, child):
                task.cancel()
        return action

    async def _watch(self, start: Start) -> Action:
        answered = self._server.child.status().restarts
        since: float | None = None
        loop = asyncio.get_running_loop()
        led_at = loop.time()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            own = await self._server.standing()
            self._word = None if own.led else self._word
            led_at = loop.time() if own.led else led_at
            out = own.records is True and self._own.address not in own.voters
            if self._dismissed() and (out or loop.time() - led_at > RECOVER_SECONDS):
                return Action.LEAVE
            member = self._is_member(own)
            if own.records is False and member:
                return Action.WAIT
            decision = self._decide(own, long=loop.time() - led_at > ALONE_SECONDS)
            self._settled, self.leaderless = own.led, decision.leaderless
            if own.records is not None:
                answered = self._server.child.status().restarts
            wrong = self._disk.problem() or self._probe.problem or self._failing(answered)
            self._note(wrong or decision.reason, logging.WARNING if wrong else logging.INFO)
            if own.records is False and decision.action is Action.FOUND and not start.found:
                return Action.FOUND
            if decision.action is not Action.RECOVER:
                since = None
                continue
            since = since or loop.time()
            if loop.time() - since > RECOVER_SECONDS:
                return Action.RECOVER

    def _is_member(self, own: Standing) -> bool:
        """Whether the server is, or was, in the cluster's Raft configuration; noted on the disk."""
        if own.led and self._own.address in own.voters:
            try:
                self._disk.advance(MEMBER)
            except DiskError as error:
                # Tried again with the next look; the disk's own problem is in `reason`.
                log.debug("marker not written", extra={"reason": str(error)})
        return self._disk.marker is not None and self._disk.marker.stage == MEMBER

    def _failing(self, answered: int) -> str:
        """Why there is no server, as far as that can be told. `answered`: its restarts when it last answered."""
        status = self._server.child.status()
        if status.restarts - answered < FAILED_STARTS:
            return ""
        return (
            f"Consul does not stay up (last end: {status.last_exit}); its own lines in the log say why. When they name "
            f"raft, wal or snapshot, {self._disk.damaged_records()}"
        )

    async def _restart(self, start: Start, action: Action) -> Start:
        """What the server starts with after `action`."""
        if action is Action.WAIT:
            while True:
                self._note(self._disk.lost_records(), logging.WARNING)
                await asyncio.sleep(AGAIN_SECONDS)
        if action is Action.LEAVE:
            log.warning("the Consul server has left", extra={"reason": self._dismissed()})
            while self._dismissed():
                self._note("its Consul server has left; a manifest that lists this coordinator again starts it")
                await asyncio.sleep(TICK_SECONDS)
        if action is Action.RECOVER:
            log.warning("the records go on alone", extra={"folder": str(self._disk.records)})
            self._disk.make_alone(f"{self._own.address}:{SERVER_PORT}")
            self._word = None
        return dataclasses.replace(start, found=action is Action.FOUND)

    def _decide(self, own: Standing, *, long: bool = False) -> Decision:
        leaving = self.circle.leaving if self.circle is not None else ()
        return decide(
            own,
            self._own.peer_id,
            self._own.address,
            _seen(self._siblings),
            _seen(leaving),
            word=self._word is self._manifest(),
            long=long,
        )

    @property
    def _siblings(self) -> tuple[Sibling, ...]:
        return self.circle.siblings if self.circle is not None else ()

    def _note(self, reason: str, level: int = logging.INFO) -> None:
        if reason and reason != self.reason:
            log.log(level, "the Consul server waits", extra={"reason": reason})
        self.reason = reason


def _seen(siblings: tuple[Sibling, ...]) -> tuple[Seen, ...]:
    return tuple(Seen(peer_id=each.peer_id, address=each.address, standing=each.standing) for each in siblings)
