"""The coordinator's process: its phases, its tasks, its status. Decisions are elsewhere; this puts the parts together.

identity → manifest → keys → link → disk → Consul server → records and rights → ready. The broker answers as soon as
there is a manifest, so that siblings can join before there is a quorum; workloads are told what they wait for.

Long because each part of a coordinator is made and wired here, once, in the order of its phases.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from random import Random
from typing import Protocol

from admission.protocol import BootKeys, MeshPeer
from coordinator import contents, identity, waiting
from coordinator.attest import Attester
from coordinator.broker import Broker, Clocks, Rules
from coordinator.chronicle import Chronicle
from coordinator.circle import Circle, Parts
from coordinator.config import Config, begun, own_peer_id
from coordinator.disk import Disk, manifests
from coordinator.disk_probe import DiskProbe
from coordinator.documents import Documents
from coordinator.estate import Estate
from coordinator.feed import Feed
from coordinator.formation import Formation
from coordinator.head import Head
from coordinator.heir import Heir
from coordinator.history import Mesh, arrange
from coordinator.identity import Identity, Machine
from coordinator.keys import ClusterKeys, derive, wireguard_key
from coordinator.ledger import Ledger
from coordinator.marker import Owner
from coordinator.proposal import ROOM_BESIDE
from coordinator.records import Records
from coordinator.registry import Registry
from coordinator.rotator import Rotator
from coordinator.server import LIMITS, application
from coordinator.server_process import ServerProcess, ServerSettings
from coordinator.sessions import SessionEnder
from coordinator.siblings import Own, Sibling
from evidence.collateral import CollateralSource, HttpCollateral
from evidence.verify import Verifier
from runtime import output
from runtime.children import Child
from runtime.consul import SERVER_PORT, ConsulClient
from runtime.env import ConfigError
from runtime.guest import GuestAgent
from runtime.http_server import Server
from runtime.log import lines_unsaid
from runtime.secret import Secret
from runtime.status import StatusServer
from runtime.tasks import TaskScope
from topology.envelope import SHOWN_DIGITS, Signed
from topology.manifest import COORDINATORS, CoordinatorPeer, Manifest

log = logging.getLogger(__name__)


class Link(Protocol):
    """What the coordinator asks of the peer link."""

    public_key: str
    """WireGuard public key, base64."""
    problem: str | None
    """Why what listens in this CVM answers the whole mesh."""

    def set_peers(self, peers: tuple[MeshPeer, ...]) -> None:
        """Makes these, and no others, the peers of the device."""

    async def up(self) -> None:
        """Returns when the device has our mesh address."""

    async def meet(self, public_keys: tuple[str, ...], seconds: float) -> tuple[str, ...]:
        """Those of `public_keys` to which a tunnel is up after `seconds`, or as soon as all are."""
        ...

    async def run(self) -> None:
        """Keeps the link until cancelled."""

    def status(self) -> list[dict[str, object]]:
        """`links` of the status document."""
        ...

    def child(self) -> Child | None:
        """The wireguard-go child, where the kernel has no WireGuard."""
        ...


LinkFactory = Callable[[Config, Secret, str], Awaitable[Link]]
"""(configuration, WireGuard private key, own mesh address) -> the link, not yet running."""


class Coordinator:
    """One coordinator process. `run` returns when it was told to stop."""

    def __init__(self, config: Config, link_factory: LinkFactory) -> None:
        self._config = config
        self._link_factory = link_factory
        self._collateral: CollateralSource = HttpCollateral(config.pccs_url)
        self._verifier = Verifier(collateral=self._collateral, root_ca_der=config.dev_root)
        self._phase = "identity"
        self._identity: Identity | None = None
        self._waiting: waiting.Waiting | None = None
        self._head: Head | None = None
        self._chronicle: Chronicle | None = None
        self._consul: ServerProcess | None = None
        self._link: Link | None = None
        self._broker: Broker | None = None
        self._ledger: Ledger | None = None
        self._formation: Formation | None = None
        self._circle: Circle | None = None
        self._rotation: Rotator | None = None
        self._heir: Heir | None = None
        self._feed: Feed | None = None
        self._port = 0

    @property
    def port(self) -> int:
        """Where the broker listens, or what waits for a manifest; 0 before."""
        return self._port or (self._waiting.port if self._waiting else 0)

    @property
    def broker(self) -> Broker:
        """The broker, once the identity is known."""
        assert self._broker is not None
        return self._broker

    @property
    def head(self) -> Head:
        """What is enforced, once the identity is known."""
        assert self._head is not None
        return self._head

    @property
    def ledger(self) -> Ledger:
        """The records, once the identity is known."""
        assert self._ledger is not None
        return self._ledger

    @property
    def consul(self) -> ConsulClient:
        """The client with the management token, once the identity is known."""
        assert self._consul is not None
        return self._consul.client

    async def run(self, stop: asyncio.Event) -> None:
        """All phases, then serves until `stop` is set. OSError names a taken address; ConfigError what is missing."""
        config = self._config
        config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        config.state_dir.chmod(0o700)
        for warning in config.insecure:
            log.warning("insecure configuration", extra={"what": warning})
        status = StatusServer(config.state_dir / "status.sock", self.document)
        await status.start()
        try:
            async with GuestAgent(config.guest_agent) as guest:
                machine = await identity.find(guest, config.cluster, stop, self._say)
                if machine is not None and (who := await self._begin(machine, stop)) is not None:
                    self._identity = who
                    await self._serve(guest, who, stop)
        finally:
            self._phase = "stopped"
            await status.stop()

    async def _begin(self, machine: Machine, stop: asyncio.Event) -> Identity | None:
        """Who this coordinator is, once there is a manifest: the disk's newest, or the first that is set. None when
        told to stop. ConfigError.
        """
        config = self._config
        history = arrange(manifests(config.data_dir), self._mesh(machine))
        newest = history.newest
        if newest is None:
            self._say(waiting.PHASE)
            self._waiting = waiting.Waiting(config, machine)
            newest = await self._waiting.wait(stop)
            self._waiting = None
            self._say("keys")
        if newest is None:
            return None
        self._config = replace(config, signed=newest)
        # One that the newest does not list is who it was before: what its server has may be needed until it has left.
        lists = next((it for it in (newest, *reversed(history.chain)) if _lists(config, it, machine)), newest)
        return identity.place(machine, begun(config, lists))

    async def _serve(self, guest: GuestAgent, who: Identity, stop: asyncio.Event) -> None:
        config = self._config
        keys = derive(who.seed, config.cluster)
        link = self._link = await self._link_factory(config, wireguard_key(keys, who.peer_id), who.address)
        # Milliseconds: greater than any version of an earlier process.
        feed = self._feed = Feed(int(time.time() * 1000), time.monotonic)
        registry = Registry(lambda: _publish(registry, link, feed, who.peer_id))
        disk = self._disk(who)
        probe = DiskProbe(disk)
        consul = self._consul = ServerProcess(self._server_settings(who, disk), keys, time.time, probe.hangs)
        own = who.entry(link.public_key)
        ledger = self._ledger = Ledger(consul.client, registry, time.time, time.monotonic)
        chronicle = self._chronicle = Chronicle(disk, consul.client, self._mesh(who))
        head = self._head = self._begin_head(who, own, chronicle)
        documents = Documents(consul.client)
        records = Records(
            consul, ledger, own=own, owners=config.owners, head=head, chronicle=chronicle, documents=documents
        )
        broker = self._broker = Broker(
            rules=Rules(signed=head.signed, adopted_at=0.0),
            verifier=self._verifier,
            keys=keys,
            ledger=ledger,
            registry=registry,
            feed=feed,
            clocks=Clocks(unix=time.time, monotonic=time.monotonic),
            random=os.urandom,
            offered=records.offered,
        )
        rotator = records.rotation = self._rotation = self._make_rotator(keys, own)
        registry.put(own)
        formation = self._formation = records.forming = self._make_formation(disk, probe, own, registry)
        asker = _asker(who, own, consul)
        self._heir = records.heir = self._make_heir(guest, asker)
        asks = self._sibling_maker(guest, asker, broker, registry, records)
        formation.circle = self._make_circle(own, registry, chronicle, asks)
        ledger.kept = disk.remember
        attester = self._attester(guest, who, keys, broker, chronicle, documents, records)
        server = self._server(who, broker, feed, formation, records, attester)
        self._port = await server.start()
        try:
            async with TaskScope() as scope:
                link_task = scope.start("link", link.run())
                others = [
                    scope.start("consul", self._run_consul(link, formation)),
                    scope.start("records", records.run(self._ready)),
                    scope.start("gossip key", rotator.run()),
                    scope.start("sessions", self._session_ender(who, consul).run()),
                    scope.start("attest", attester.run()),
                    scope.start("coordinators", formation.circle.run()),
                ]
                await stop.wait()
                self._phase = broker.not_ready = "stopping"
                await server.stop()
                # The link last: Consul says good-bye over it.
                await _cancel(others)
                await _cancel([link_task])
        finally:
            await server.stop()
            await consul.close()

    def _make_formation(self, disk: Disk, probe: DiskProbe, own: MeshPeer, registry: Registry) -> Formation:
        broker, head, consul, link = self._broker, self._head, self._consul, self._link
        assert broker is not None
        assert head is not None
        assert consul is not None
        assert link is not None
        return Formation(
            disk,
            probe,
            consul,
            link,
            own=own,
            manifest=lambda: broker.rules.manifest,
            # Who hands the mesh over keeps its server: the new coordinators ask for what it has.
            dismissed=lambda: None if head.handed_over else head.dismissed,
            registry=registry,
        )

    def _make_heir(self, guest: GuestAgent, own: Own) -> Heir:
        return Heir(
            self.consul,
            own,
            guest=guest,
            verifier=self._verifier,
            keys=self.broker.keys,
            use=self.broker.inherit,
            unix=time.time,
        )

    def _make_estate(self, who: Identity) -> Estate:
        chronicle, head = self._chronicle, self.head
        assert chronicle is not None

        def before() -> Manifest:
            return (chronicle.history.last_of(who.info.app_id) or head.signed).manifest

        return Estate(self.consul, self.broker, head, before=before, unix=time.time)

    def _make_rotator(self, keys: ClusterKeys, own: MeshPeer) -> Rotator:
        consul = self._consul
        assert consul is not None
        return Rotator(
            consul,
            self.ledger,
            self.broker,
            keys,
            own,
            hindered=lambda: self._hindrance is not None,
            unix=time.time,
            monotonic=time.monotonic,
        )

    def _make_circle(
        self, own: MeshPeer, registry: Registry, chronicle: Chronicle, asks: Callable[[CoordinatorPeer], Sibling]
    ) -> Circle:
        head, consul = self._head, self._consul
        assert head is not None
        assert consul is not None
        parts = Parts(
            own=own,
            broker=self.broker,
            registry=registry,
            server=consul,
            chain=lambda: chronicle.history.chain,
            make=asks,
            dismissed=lambda: head.dismissed,
        )
        self._circle = Circle(parts)
        return self._circle

    def _server(
        self, who: Identity, broker: Broker, feed: Feed, formation: Formation, records: Records, attester: Attester
    ) -> Server:
        app = application(
            broker,
            feed,
            lambda: broker.not_ready,
            lambda request: formation.answer(broker, request),
            records,
            attester.asked,
            estate=self._make_estate(who).answer,
        )
        return Server(app, *self._config.listen, identity.server_tls(who.tls, self._config.state_dir), LIMITS)

    async def _run_consul(self, link: Link, formation: Formation) -> None:
        self._say("link")
        await link.up()
        self._say("consul")
        await formation.run()

    def _attester(
        self,
        guest: GuestAgent,
        who: Identity,
        keys: ClusterKeys,
        broker: Broker,
        chronicle: Chronicle,
        documents: Documents,
        records: Records,
    ) -> Attester:
        own = contents.Own(peer_id=who.peer_id, app_id=who.info.app_id)

        def stated() -> contents.Contents:
            signed = broker.rules.signed
            history = chronicle.history.up_to(signed, contents.RECENT)
            texts = documents.of(signed.manifest)
            return contents.contents(own, keys, signed, history, texts, broker.admitted(), time.time())

        return Attester(
            quote=guest.quote,
            collateral=self._collateral,
            contents=stated,
            not_ready=lambda: broker.not_ready,
            confirm=records.confirm,
            clock=time.time,
        )

    @staticmethod
    def _session_ender(who: Identity, consul: ServerProcess) -> SessionEnder:
        return SessionEnder(consul.client, f"{who.address}:{SERVER_PORT}", time.monotonic)

    def _ready(self) -> None:
        self._say("ready")
        log.info("ready", extra={"port": self._port})

    def _say(self, phase: str) -> None:
        self._phase = phase
        if self._broker is not None:
            waits = None if phase == "ready" else f"phase {phase}"
            if (reason := self._hindrance or waits) is not None:
                reason = f"the coordinator is not ready: {reason}"
            self._broker.not_ready = reason

    @property
    def _hindrance(self) -> str | None:
        return self._head.hindrance if self._head is not None else None

    def _head_changed(self) -> None:
        head, broker = self._head, self.broker
        assert head is not None
        if (head.signed, head.adopted_at) != (broker.rules.signed, broker.rules.adopted_at):
            broker.rules = broker.rules.replaced(head.signed, head.adopted_at)
            if head.handed_over and self._feed is not None:
                # A rendezvous has to know the new coordinators before CVMs have a way to them.
                self._feed.announce()
        if self._circle is not None:
            self._circle.changed()
        if self._formation is not None:
            self._formation.remember()
        self._say(self._phase)

    def _mesh(self, machine: Machine) -> Mesh:
        config = self._config
        apps = config.manifest.coordinators.apps if config.signed is not None else frozenset[str]()
        return Mesh(cluster=config.cluster, app_id=machine.info.app_id, owners=config.owners, apps=apps)

    def _begin_head(self, who: Identity, own: MeshPeer, chronicle: Chronicle) -> Head:
        """What is enforced until the records are heard: what it began with."""
        config = self._config
        assert config.signed is not None
        return Head(
            config.signed,
            who.info,
            own,
            check_signatures=config.owners is not None,
            keep=chronicle.keep,
            changed=self._head_changed,
        )

    def _disk(self, who: Identity) -> Disk:
        owner = Owner(cluster=self._config.cluster, app_id=who.info.app_id, peer_id=who.peer_id)
        return Disk(self._config.data_dir, owner, alone=lambda: not self._circle or not self._circle.addresses)

    def _server_settings(self, who: Identity, disk: Disk) -> ServerSettings:
        return ServerSettings(
            program=self._config.consul,
            state_dir=self._config.state_dir,
            cluster=self._config.cluster,
            peer_id=who.peer_id,
            address=who.address,
            siblings=lambda: self._circle.addresses if self._circle is not None else (),
            gossip=lambda: self.broker.ring.keys[0],
            data_dir=disk.records,
        )

    def _sibling_maker(
        self, guest: GuestAgent, own: Own, broker: Broker, registry: Registry, records: Records
    ) -> Callable[[CoordinatorPeer], Sibling]:
        def admitted(peer: MeshPeer) -> None:
            broker.verified_sibling(peer.peer_id, good=True)
            registry.put(peer)

        formation, chronicle = self._formation, self._chronicle
        assert formation is not None
        assert chronicle is not None
        # Jitter protects nothing.
        rng = Random()
        return lambda peer: Sibling(
            peer,
            own,
            guest=guest,
            handovers=lambda: chronicle.history.handovers(ROOM_BESIDE),
            rules=lambda: broker.rules,
            verifier=self._verifier,
            admitted=admitted,
            refused=lambda peer_id: broker.verified_sibling(peer_id, good=False),
            enforces=records.sibling_enforces,
            ask=formation.ask,
            hurry=formation.hurry,
            clock=time.time,
            rng=rng,
        )

    def document(self) -> dict[str, object]:
        """The status document (docs/architecture.md)."""
        who, broker, ledger = self._identity, self._broker, self._ledger
        hindrance, signed = self._hindrance, broker.rules.signed if broker else self._config.signed
        notes = (*(self._head.notes if self._head else ()), *(self._chronicle.notes if self._chronicle else ()))
        phase_ready = self._phase == "ready"
        ready = phase_ready and hindrance is None
        waits = [it.reason for it in (self._formation, self._heir) if it is not None and it.reason]
        children = {
            "consul": self._consul.child if self._consul else None,
            "wireguard": self._link.child() if self._link else None,
        }
        return {
            "peer_id": who.peer_id if who else self._config.peer_id,
            "group": COORDINATORS,
            "kind": "coordinator",
            "phase": self._phase,
            "ready": ready,
            "reasons": [
                *([hindrance] if hindrance is not None else []),
                *([] if phase_ready else [f"phase {self._phase}"]),
                *waits,
            ],
            "problems": [
                *([f"filter: {self._link.problem}"] if self._link and self._link.problem else []),
                *([f"gossip key: {self._rotation.problem}"] if self._rotation and self._rotation.problem else []),
            ],
            "address": who.address if who else None,
            "insecure": list(self._config.insecure),
            "children": {name: _child(child) for name, child in children.items() if child is not None},
            "admission": {"state": "issuing" if ready else "waiting", "coordinator": None},
            "links": self._link.status() if self._link else [],
            "routes": [],
            "log": {"lines_lost": output.lines_lost(), "lines_unsaid": lines_unsaid()},
            "disk": {
                "folder": str(self._config.data_dir),
                "began_empty": self._formation.empty if self._formation else None,
            },
            "leaderless": self._formation is not None and self._formation.leaderless,
            "siblings": [
                {"peer_id": sibling.peer_id, "state": sibling.state}
                for sibling in (self._circle.siblings if self._circle else ())
            ],
            "admitted": sorted(h.peer_id for h in ledger.slots.values() if not h.released) if ledger else [],
            "gossip_ring": broker.ring.name if broker else "",
            "agent_expires_at": self._consul.certificate_expires_at if self._consul else None,
            "manifest_epoch": signed.manifest.epoch if signed else None,
            "manifest_digest": signed.digest[:SHOWN_DIGITS] if signed else None,
            "manifest_notes": list(notes),
        }


def _lists(config: Config, signed: Signed, machine: Machine) -> bool:
    """Whether the manifest has the coordinator on `machine`."""
    if signed.manifest.coordinators.app_id != machine.info.app_id.lower():
        return False
    try:
        own_peer_id(begun(config, signed), machine.info.instance_id)
    except ConfigError:
        return False
    return True


def _asker(who: Identity, own: MeshPeer, consul: ServerProcess) -> Own:
    """As whom this coordinator attests to others."""
    boot = BootKeys(wireguard=own.public_key, tls=consul.public_key, leaf="")
    return Own(peer_id=who.peer_id, info=who.info, boot=boot)


def _publish(registry: Registry, link: Link, feed: Feed, own: str) -> None:
    peers = registry.peers()
    link.set_peers(tuple(peer for peer in peers if peer.peer_id != own))
    feed.publish(peers)


def _child(child: Child) -> dict[str, object]:
    status = child.status()
    return {"pid": status.pid, "restarts": status.restarts, "state": status.state}


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
