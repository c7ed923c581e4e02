"""What follows from an admission: the tunnels, the Consul agent, the registrations, the watches, and their repair.

Started by the first admission; a later one (the lease was lost) renews tokens and keys in place and tears nothing down.
Tasks and progress are the supervisor's, through `Host`.

Long because all of it follows from one thing, the newest admission, and is begun, renewed and repaired in one order.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

from admission.broker import Admitted, Renewed
from admission.client import CoordinatorError, RefusedError
from admission.offers import Ask, successors
from admission.protocol import WORKLOAD_TOKEN
from runtime.children import Child
from runtime.consul import ConsulClient, ConsulError, api_socket
from runtime.keyring import KeyringError
from runtime.secret import Secret
from runtime.tasks import TaskScope
from sidecar import sources
from sidecar.agent import Agent
from sidecar.certificate import Certificate, wrong_time
from sidecar.certificate_reading import Given
from sidecar.config import Config
from sidecar.desired import World
from sidecar.identity import Keys, keep_slot
from sidecar.link import Link
from sidecar.listed import Listed
from sidecar.registrar import Registrar
from sidecar.watches import Apply, Watches
from topology.manifest import BackendEntry
from topology.succession import SuccessionError
from topology.trees import ManifestError

if TYPE_CHECKING:
    from sidecar.workload_api import WorkloadApi
    from sidecar.workload_rights import Rights

log = logging.getLogger(__name__)

TUNNEL_SECONDS = 5.0
"""How long one wait for a tunnel to a coordinator lasts before status says so; the wait itself goes on."""
AGE_SECONDS = 60.0
"""Between two looks at the certificate's end at least: the clock may be set, and timers stand still with the CVM."""
LEAD_ON_SECONDS = 5.0
"""For the history of a coordinator, between two renewals. A lease of 15 s outlasts it and the pause of 5 s before the
next one. What came in time is kept, and the next renewal goes on from there."""
REJOIN_SECONDS = 1.0
"""Between attempts to join the servers again after all were lost."""
HOLD_SECONDS = 45.0
"""After servers came back knowing nothing. Within this, every other CVM has renewed its lease (5 s), attested and
registered, and every agent has noticed that its stream was of a server that is gone (gRPC keep-alive: 30 + 10 s)."""


class Host(Protocol):
    """What the supervisor gives."""

    @property
    def world(self) -> World:
        """What is known. Not asked for before there is a manifest."""
        ...

    def see(self, world: World) -> None:
        """Makes `world` what is known, and has it carried out."""

    def keep_secrets(self, secrets: Mapping[str, Secret]) -> bool:
        """Makes `secrets`, and no others, those that the CVM's programs find; False when that cannot be now."""

    def wait(self, phase: str, reason: str) -> None:
        """`phase` waits for `reason`."""

    def done(self, phase: str) -> None:
        """`phase` is done."""

    def lost(self, phase: str, reason: str) -> None:
        """`phase` is not done, or no longer, because of `reason`."""

    def hurry(self) -> None:
        """Has the lease renewed at once: there is something to say or to ask."""

    def restart(self, reason: str) -> None:
        """Ends this process in order and keeps its slot, for its container to start it anew."""

    def run(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Starts a task that ends with the process."""

    def supervise(self, child: Child) -> None:
        """Starts a child and shows it in status."""


class Membership:
    """This CVM as a member of the mesh. `admission.Listener`."""

    def __init__(
        self,
        config: Config,
        keys: Keys,
        host: Host,
        scope: TaskScope,
        *,
        userspace: bool,
        unix: Callable[[], float] = time.time,
    ) -> None:
        """`userspace`: WireGuard is a child of ours, not the kernel's. `unix` gives Unix seconds."""
        self._unix = unix
        self._config = config
        self._keys = keys
        self._host = host
        self._userspace = userspace
        self._consul = ConsulClient(socket=api_socket(config.state_dir))
        self._agent = Agent(config.consul, config.state_dir, self._consul)
        self._watches = Watches(self._consul, scope, Random(), on_failure=self._watch_failed)
        self._child: Child | None = None
        """The agent's process."""
        self._joined = False
        self._trusts = ""
        self._ring = ""
        """Which gossip keys the agent is known to have."""
        self._unread = False
        """The agent has not read again a certificate that was written for it."""
        self._answered_at = 0.0
        """The loop's time of a coordinator's last answer."""
        self._certified = asyncio.Event()
        self._lost = asyncio.Event()
        self._hold: asyncio.TimerHandle | None = None
        self.admission: Admitted | None = None
        """The newest one."""
        self.workload: WorkloadApi | None = None
        """What the workload finds of Consul, where it keeps a registration itself."""
        self.link: Link | None = None
        self.on_link: Callable[[Link], None] = lambda _: None
        """Called when `link` is there."""
        self.registrar: Registrar | None = None
        self.serving = asyncio.Event()
        """To be set once Envoy serves, which may be before there is an agent to register with."""
        self.refused_manifest = ""
        """Why the manifest of the newest admission was not taken; empty when it was."""

    # ---- admission

    async def admitted(self, admitted: Admitted, given: Given) -> None:
        """See `admission.Listener`."""
        first = self.admission
        self._keep_slot(admitted.peer_id)
        if first is not None and (first.peer_id, first.address) != (admitted.peer_id, admitted.address):
            # Everything here is one peer's: device, agent, registrations, certificates, names.
            self._host.restart(f"admitted as {admitted.peer_id} after {first.peer_id}")
            return
        moved = first is not None and first.ca_pem != admitted.ca_pem
        self.admission = admitted
        self._consul.use_token(admitted.token)
        changed = self._agent.write(admitted, self._keys)
        world = self._host.world
        self._host.see(sources.with_admission(world, admitted.peers, admitted.address))
        self._take_certificate(given)
        self._take_manifest(admitted.envelope)
        self._keep_secrets()
        if first is None:
            self._host.run("certificate", self._age())
            self._host.run("mesh", self._connect(admitted))
            return
        if moved:
            self._move()
        else:
            await self._recover(admitted, changed)

    async def renewed(self, renewed: Renewed, given: Given) -> None:
        """See `admission.Listener`."""
        if self.admission is None:
            return
        self._take_certificate(given)
        if renewed.secrets is not None:
            self.admission = dataclasses.replace(self.admission, secrets=renewed.secrets)
            log.info("secrets taken", extra={"names": sorted(renewed.secrets)})
        if renewed.workload_token is not None:
            self.admission = dataclasses.replace(self.admission, workload_token=renewed.workload_token)
        self._keep_secrets()
        if renewed.gossip is not None:
            self.admission = dataclasses.replace(self.admission, gossip=renewed.gossip)
            self._agent.write(self.admission, self._keys)
            await self._take_ring()
        if renewed.token is None:
            return
        pem = renewed.agent_pem or self.admission.certificate_pem
        self.admission = dataclasses.replace(self.admission, token=renewed.token, certificate_pem=pem)
        changed = self._agent.write(self.admission, self._keys)
        self._consul.use_token(renewed.token)
        await self._give_token(self.admission, reload=changed)
        log.info("token renewed", extra={"agent_certificate": changed})

    def certificate(self) -> tuple[Certificate | None, str]:
        """See `admission.Listener`."""
        return self._host.world.certificate, self._trusts

    def gossip_ring(self) -> str:
        """See `admission.Listener`."""
        return self._ring

    async def _take_ring(self) -> None:
        before, self._ring = self._ring, ""
        try:
            self._ring = await self._agent.take_ring()
        except (ConsulError, KeyringError) as error:
            # Coordinators give the keys again with the next renewal, for it does not say that they are there.
            log.info("the agent has not the gossip keys yet", extra={"reason": str(error)})
        if self._ring and self._ring != before:
            log.info("gossip keys taken", extra={"rotations": self._ring})

    def envoy_trusts(self, roots_pem: str) -> None:
        """Envoy has taken `roots_pem` as those that it trusts. Where a new certificate waits for that, it is said."""
        held = self._host.world.certificate
        if held is None or held.authorities[0].pem not in roots_pem or self._trusts == held.digest:
            return
        self._trusts = held.digest
        if held.following is not None:
            self._host.hurry()

    def _take_certificate(self, given: Given) -> None:
        before = self._host.world.certificate
        now, last = asyncio.get_running_loop().time(), self._answered_at
        keys, world = self._keys, self._host.world
        leaf, public, seconds = (
            keys.leaf_private_pem,
            keys.public_private_pem,
            sources.overlap(world.manifest, self._unix()),
        )
        self._host.see(sources.with_certificate(world, given, leaf, public, now, last, seconds))
        self._answered_at = now
        self._tell_certificate(before)
        self._certified.set()

    def _tell_certificate(self, before: Certificate | None) -> None:
        held = self._host.world.certificate
        if held is None or held == before:
            return
        if before is None or before.leaf != held.leaf:
            log.info("certificate shown", extra={"manifest": held.leaf.digest, "ends": held.leaf.expires_at})
        if before is not None and before.trusted != held.trusted:
            log.info("authorities trusted", extra={"manifests": [each.digest for each in held.trusted]})

    async def _age(self) -> None:
        """Carries out what time alone does to the certificate."""
        loop = asyncio.get_running_loop()
        while True:
            held = self._host.world.certificate
            moments = [loop.time() + AGE_SECONDS]
            if held is not None:
                left = held.newest.expires_at - self._unix()
                moments += [loop.time() + left] if left > 0 else []
                moments += [held.due] if held.due is not None else []
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(moments)):
                    await self._certified.wait()
            self._certified.clear()
            before = self._host.world.certificate
            self._host.see(sources.with_time(self._host.world, loop.time()))
            self._tell_certificate(before)
            self._check_time()

    def _check_time(self) -> None:
        """Whoever's certificate has ended, or not begun, reaches nobody and is reached by nobody."""
        if self._is_out_of_time():
            self._host.lost("admission", self.certificate_problem())

    def _is_out_of_time(self) -> bool:
        held = self._host.world.certificate
        return held is not None and not held.newest.begins_at <= self._unix() < held.newest.expires_at

    def certificate_problem(self) -> str:
        """What is wrong with the time of the certificate; empty while all is well."""
        world = self._host.world
        held = world.certificate
        return wrong_time(held, world.manifest.leaf_hours, self._unix()) if held is not None else ""

    def newest_envelope(self) -> str:
        """See `admission.Listener`."""
        return self._host.world.signed.envelope

    def why_not_enforced(self, epoch: int, digest: str, envelope: str) -> str | None:
        """See `admission.Listener`."""
        check_signatures = self._config.owners is not None
        return sources.why_not_enforced(self._host.world, epoch, digest, envelope, check_signatures=check_signatures)

    async def lead_on(self, epoch: int, ask: Ask) -> None:
        """See `admission.Listener`."""
        if epoch <= self._host.world.manifest.epoch + 1:
            return
        try:
            async with asyncio.timeout(LEAD_ON_SECONDS):
                async for each in successors(ask, self._host.world.signed, self._config.owners):
                    self._host.see(sources.adopt(self._host.world, each))
        except (ManifestError, RefusedError, CoordinatorError, TimeoutError) as error:
            self.refused_manifest = f"the coordinators' history does not lead on: {error}"
            log.warning("manifests in between not taken", extra={"reason": str(error)})
        else:
            self.refused_manifest = ""

    def successors_of(self, epoch: int) -> tuple[str, ...]:
        """See `admission.Listener`."""
        return sources.after(self._host.world, epoch)

    def why_misplaced(self, peer_id: str, address: str, envelope: str) -> str | None:
        """See `admission.Listener`."""
        check_signatures = self._config.owners is not None
        return sources.why_misplaced(self._host.world, peer_id, address, envelope, check_signatures=check_signatures)

    def not_admitted(self, reason: str) -> None:
        """See `admission.Listener`."""
        self._host.lost("admission", reason)

    def _keep_slot(self, peer_id: str) -> None:
        try:
            keep_slot(self._config.state_dir, self._keys, peer_id)
        except OSError as error:
            # A restart of this process would then ask for any slot, and be given this one: the records have it.
            log.warning("slot not noted", extra={"peer_id": peer_id, "reason": str(error)})

    def _keep_secrets(self) -> None:
        """Hands secrets and the workload's token to the programs of this CVM. Nobody may start without what it was
        granted; what could not be written is tried again with each renewal.
        """
        assert self.admission is not None
        secrets = dict(self.admission.secrets)
        if self.admission.workload_token:
            secrets[WORKLOAD_TOKEN] = self.admission.workload_token
            self._serve_workload(self.admission.workload_token)
        if not self._host.keep_secrets(secrets):
            self._host.wait("admission", "the secrets cannot be written; `problems` of the status says why")
        elif self._is_out_of_time():
            self._check_time()
        else:
            self._host.done("admission")

    def _serve_workload(self, token: Secret) -> None:
        if self.workload is None:
            # No other CVM pays for the HTTP server.
            from sidecar.workload_api import WorkloadApi

            self.workload = WorkloadApi(api_socket(self._config.state_dir), self._workload_rights)
            self._host.run("workload", self.workload.run())
        self.workload.use(token)

    def _workload_rights(self) -> Rights | None:
        from sidecar.workload_rights import rights

        entry = self._host.world.manifest.groups.get(self._config.group)
        return rights(self.admission.peer_id, entry) if self.admission is not None and entry is not None else None

    async def _recover(self, admitted: Admitted, certificate_changed: bool) -> None:
        """After a lease was lost: the servers may have come back knowing nobody and nothing (`sources.hold`)."""
        self._hold_on()
        await self._give_token(admitted, reload=certificate_changed)
        if self._joined:
            await self._take_ring()
        self._lost.set()
        if self._joined:
            # Asked anew, not only for the new token: a query that waits on a server that is gone would wait on.
            self._watches.keep({})
            self.watch()

    def _hold_on(self) -> None:
        self._host.see(sources.hold(self._host.world))
        if self._hold is not None:
            self._hold.cancel()
        self._hold = asyncio.get_running_loop().call_later(HOLD_SECONDS, self._let_go)

    def _move(self) -> None:
        """After coordinators of another app have admitted this CVM: their Consul is another cluster, whose authority
        and gossip key the agent knows from its start, with data of its own. What was good until now is held.
        """
        log.warning("the Consul agent changes over to other coordinators")
        self._ring = ""
        self._hold_on()
        if self._child is not None:
            self._child.end()
        if self._joined:
            # Asked anew: what a query that waits would say is of the other cluster.
            self._watches.keep({})
            self.watch()

    def _let_go(self) -> None:
        self._host.see(sources.let_go(self._host.world))

    async def _give_token(self, admitted: Admitted, *, reload: bool = False) -> None:
        self._unread = self._unread or reload
        try:
            await self._agent.use_token(admitted.token, reload=self._unread)
            self._unread = False
        except ConsulError as error:
            # An agent that is down reads both from its files when it starts again; one that hangs with the next token.
            log.warning("agent did not take the token", extra={"reason": str(error)})
        # The agent syncs each service with the token that registered it, so all have to be registered again.
        if self.registrar is not None:
            self.registrar.restarted()

    # ---- connection

    async def _connect(self, admitted: Admitted) -> None:
        self._host.wait("link", "waits for a tunnel to a coordinator")
        manifest = self._host.world.manifest
        key = self._keys.wireguard_private
        link = Link(
            userspace=self._userspace,
            private_key=key,
            address=admitted.address,
            manifest=manifest,
            path_mtu=self._config.path_mtu,
        )
        link.set_peers(tuple(peer for peer in self._host.world.peers if peer.address != admitted.address))
        self.link = link
        self.on_link(link)
        self._host.run("link", link.run())
        # The newest admission's: a coordinator that boots meanwhile has another key.
        while not await link.up_to_any(self._coordinators(), TUNNEL_SECONDS):
            self._host.wait("link", "no tunnel to a coordinator yet; is the rendezvous reachable by UDP?")
        self._host.done("link")
        await self._join(admitted)

    def _coordinators(self) -> tuple[Any, ...]:
        peers = self.admission.peers if self.admission is not None else ()
        return tuple(peer for peer in peers if peer.kind == "coordinator")

    async def _join(self, admitted: Admitted) -> None:
        self._host.wait("consul", "the agent has not joined")
        self._host.wait("registration", "waits for the agent")
        self.registrar = Registrar(self._consul, self._backends(), admitted.peer_id, admitted.address, self.serving)
        self.registrar.on_change = self._registration_changed
        self._child = Child(self._agent.spec(), self._agent_started)
        self._host.supervise(self._child)
        await self._agent.joined()
        self._host.done("consul")
        self._joined = True
        self.watch()
        self._host.run("rejoin", self._rejoin())
        self._host.run("registrar", self.registrar.run())
        listed = Listed(self._consul, admitted.peer_id, admitted.address, self._join_servers, self.registrar.restarted)
        self._host.run("listed", listed.run())

    async def _join_servers(self) -> None:
        if self.admission is not None:
            await self._agent.rejoin(self.admission.servers)

    def _backends(self) -> tuple[BackendEntry, ...]:
        """What this CVM serves, by the newest manifest."""
        world = self._host.world
        return tuple(world.manifest.groups.get(world.group, world.own).backends.values())

    async def _agent_started(self) -> None:
        await self._agent.up()
        await self._take_ring()
        if self.registrar is not None:
            self.registrar.restarted()

    def _registration_changed(self) -> None:
        if self.registrar is not None and self.registrar.complete:
            self._host.done("registration")

    # ---- watches

    def watch(self) -> None:
        """Makes watches and registrations those of the world as it is. Without effect before the agent has joined."""
        if self.registrar is not None:
            self.registrar.use(self._backends())
        if self._joined:
            wanted = sources.queries(self._host.world, check_signatures=self._config.owners is not None)
            self._watches.keep({query: self._taker(change) for query, change in wanted.items()})

    def stale(self) -> tuple[str, ...]:
        """Paths of Consul that have no current answer."""
        return self._watches.stale()

    def _taker(self, change: sources.Change) -> Apply:
        def take(tree: Any, index: int) -> None:
            self._host.see(change(self._host.world, tree, index))

        return take

    def _take_manifest(self, envelope: str) -> None:
        if not envelope:
            return
        try:
            self._host.see(sources.take(self._host.world, envelope, check_signatures=self._config.owners is not None))
            self.refused_manifest = ""
        except SuccessionError as error:
            self.refused_manifest = f"the coordinators' is refused: {error}"
            log.warning("manifest refused", extra={"reason": str(error)})

    def _watch_failed(self, error: Exception) -> None:
        if isinstance(error, sources.BehindError):
            # A coordinator's history has them, and is asked for with the next renewal.
            self._host.hurry()
        # 500: the agent answers, but has no server to ask.
        if isinstance(error, ConsulError) and error.status >= 500:
            self._lost.set()

    async def _rejoin(self) -> None:
        """Joins the servers again when the agent has lost them all: they may have come back knowing nobody."""
        while True:
            await self._lost.wait()
            self._lost.clear()
            await self._join_servers()
            await asyncio.sleep(REJOIN_SECONDS)

    # ---- stop

    async def leave(self) -> None:
        """Takes the registrations away and ends the watches. The agent's own good-bye is its child's end."""
        if self.registrar is not None:
            await self.registrar.deregister()
        self._watches.keep({})

    def forget(self) -> None:
        """Removes what the agent keeps of this peer, once it has ended: another peer's agent must not find it."""
        self._agent.forget()

    async def close(self) -> None:
        """Closes connections and timers. Safe to repeat."""
        if self._hold is not None:
            self._hold.cancel()
        await self._consul.close()
        await self._agent.close()
