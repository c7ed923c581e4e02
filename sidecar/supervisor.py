"""The one place that starts tasks: phases in their order, sources → desired → effects, and the clean stop.

What can overlap does: Envoy and `wireguard-go` start at once, heavy modules load in a thread, the guest agent is asked
while the VIPs are set. Nothing here parses, formats or compares.

Long because start, progress and stop of all parts are in one place: their order is what this module is for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from admission.broker import Broker
from admission.client import CoordinatorError
from runtime import output, premises
from runtime.backoff import Backoff
from runtime.children import Child
from runtime.guest import GuestAgent, GuestError, GuestInfo
from runtime.init import Init
from runtime.log import lines_unsaid
from runtime.secret import Secret
from runtime.status import StatusServer
from runtime.tasks import TaskScope
from sidecar import backends, hints, listeners, memory, modules, report, sources
from sidecar import kept as manifest_file
from sidecar.admission import Admission, Claim
from sidecar.brokers import Brokers
from sidecar.config import Config
from sidecar.desired import World, beforehand, desired
from sidecar.effects import Effects
from sidecar.envoy import Envoy, machines_roots
from sidecar.files import Identity
from sidecar.identity import Keys, held_slot, load_or_make
from sidecar.losing import Losing
from sidecar.phases import Progress, Report
from sidecar.slot import Wish
from topology.allowed import coordinators
from topology.envelope import Signed
from topology.manifest import Manifest
from topology.succession import SuccessionError

if TYPE_CHECKING:
    from sidecar.link import Link
    from sidecar.membership import Membership

log = logging.getLogger(__name__)

RETRY = Backoff(base=0.1, cap=5.0)
ACK_SECONDS = 2.0
"""Envoy acknowledges within milliseconds; after this, what it rejected is offered again."""


class StartError(Exception):
    """This machine cannot run the sidecar as configured. The message says what to change; exit code 2."""


class Supervisor:
    """One sidecar process."""

    def __init__(self, config: Config, init: Init) -> None:
        self._config = config
        self._init = init
        self._rng = Random()
        self._progress = Progress()
        self._shown: Report | None = None
        self._was_ready = False
        self._world: World | None = None
        """None before there is a manifest."""
        self._floor: Signed | None = None
        """The newest manifest that this boot has taken, while it cannot be carried out: older ones do not count."""
        self._dirty = asyncio.Event()
        self._published = asyncio.Event()
        self._restart = asyncio.Event()
        self._failure: StartError | None = None
        """Why a restart alone would not help."""
        self._effects = Effects(config)
        self._effects.on_publish = self._published.set
        self._losing = Losing(lambda: self.world, self._effects.refusing)
        self._guest = GuestAgent(config.guest_agent)
        self._envoy = Envoy(config.envoy, config.state_dir, config.peer_id or config.group, config.cluster)
        self._children: dict[str, Child] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._admission: Admission | None = None
        self._member: Membership | None = None
        self._status = StatusServer(config.state_dir / "status.sock", self.document, self.backends)

    async def serve(self) -> bool:
        """Starts everything, serves until the first signal, stops in order; whether it stopped to be started anew.
        StartError when it cannot start.
        """
        config = self._config
        try:
            config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            config.state_dir.chmod(0o700)
        except OSError as error:
            raise StartError(
                f"MESH_STATE_DIR: {str(config.state_dir)!r} cannot be used ({error.strerror}); expected a folder that "
                "this process may make and write, best on tmpfs"
            ) from error
        _check_premises({"MESH_ENVOY": config.envoy, "MESH_CONSUL": config.consul})
        for warning in config.insecure:
            log.warning("insecure configuration", extra={"what": warning})
        await self._status.start()
        try:
            async with TaskScope() as self._scope:
                main = self._scope.start("main", self._main())
                ends = [
                    self._scope.start("signal", self._init.drain.wait()),
                    self._scope.start("restart", self._restart.wait()),
                ]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                for task in (main, *ends):
                    task.cancel()
                await self._stop()
        finally:
            # Also after a start that failed halfway: what was set is taken back.
            await self._effects.stop()
            await self._guest.close()
            if self._member is not None:
                await self._member.close()
            await self._status.stop()
        if self._failure is not None:
            raise self._failure
        return self._restart.is_set()

    # ---- start

    async def _main(self) -> None:
        self.supervise(Child(self._envoy.spec(), self._envoy_started))
        # Lets Envoy start: what comes next keeps this loop busy for as long as Envoy takes to be there.
        await asyncio.sleep(0)
        modules.lean_aiohttp()
        names = self._scope.start("names", self._start_names())
        wireguard = self._scope.start("wireguard", self._start_wireguard())
        info, keys = await self._identify()
        await names
        userspace = await wireguard
        self._start_admission(info, keys, userspace)
        # Loads half of all modules, in a thread, while coordinators and agents are waited for. Begun sooner, it would
        # take turns with what the admission needs, and that is later for it.
        self.run("xds", self._start_xds())
        self.run("reconcile", self._reconcile())

    async def _start_names(self) -> None:
        self._progress.wait("names", "addresses, DNS and files are being set")
        config = self._config
        self._floor = kept = manifest_file.read(config.state_dir, config.cluster)
        try:
            await self._effects.start(beforehand(config.routes or ()))
        except OSError as error:
            raise StartError(str(error)) from error
        self.wait("names", "no coordinator has shown the mesh's manifest yet")
        if kept is None:
            return
        if (reason := self._misfit(kept.manifest)) is not None:
            self.wait("names", f"the newest manifest that this CVM has seen, {kept.name}, is not for it: {reason}")
            return
        # What ends this process in the middle of it does not end the next one, which asks a coordinator.
        if manifest_file.try_once(config.state_dir, kept):
            with contextlib.suppress(CoordinatorError):
                await self._begin(kept)

    async def _begin(self, signed: Signed) -> None:
        """Carries out the first manifest: names, addresses, and what comes in by the mesh, before there is a tunnel.
        Where this machine cannot, the process ends; CoordinatorError for whoever has brought it.
        """
        group = self._config.group
        own = signed.manifest.groups[group]
        world = World(signed=signed, own=own, group=group, roots_file=machines_roots())
        try:
            await self._effects.begin(desired(world), signed.manifest.vip_pool)
        except OSError as error:
            self._failure = StartError(str(error))
            self.restart(f"{signed.name} cannot be carried out: {error}")
            raise CoordinatorError(str(error)) from error
        self._world = world
        self._manifest_taken()
        self.done("names")
        self._dirty.set()

    async def take(self, signed: Signed) -> None:
        """Takes `signed`, by which a coordinator was verified: the first manifest, or where it is newer than ours."""
        if self._world is None:
            if (reason := self._misfit(signed.manifest)) is not None:
                self._floor = signed
                self._keep(signed)
                raise CoordinatorError(f"enforces a manifest that is not for this CVM: {reason}")
            await self._begin(signed)
            return
        try:
            self.see(sources.adopt(self._world, signed))
        except SuccessionError as error:
            raise CoordinatorError(f"enforces a manifest that cannot be taken: {error}") from error

    async def _identify(self) -> tuple[GuestInfo, Keys]:
        attempt = 0
        while True:
            try:
                info = await self._guest.info()
                break
            except GuestError as error:
                self.wait("identity", str(error))
                await asyncio.sleep(RETRY.delay(attempt, self._rng))
                attempt += 1
        keys = load_or_make(self._config.state_dir)
        # What the manifest has to name for this CVM to be admitted, for a person to compare.
        told = {"app_id": info.app_id, "instance_id": info.instance_id, "compose_hash": info.compose_hash}
        log.info("identified", extra={**told, "os_image_hash": info.os_image_hash or None})
        self.done("identity")
        return info, keys

    async def _start_wireguard(self) -> bool:
        """Starts `wireguard-go` where the kernel has no WireGuard; whether it did."""
        from sidecar.link import userspace_child

        child = await userspace_child(self._config.wireguard_go)
        if child is not None:
            _check_premises({"MESH_WIREGUARD_GO": self._config.wireguard_go})
            self.supervise(child)
        return child is not None

    async def _start_xds(self) -> None:
        await asyncio.to_thread(modules.load_heavy)
        from xds.server import XdsServer

        server = XdsServer(self._envoy.xds_socket)
        # A new Envoy may start before the old one's stream is seen to end; that one's ACK must not pass for its own.
        server.on_stream = self._published.set
        await server.start()
        self._scope.start("warm", asyncio.to_thread(modules.warm))
        self._effects.xds = server
        self._dirty.set()
        await self._follow_envoy(server)

    def _start_admission(self, info: GuestInfo, keys: Keys, userspace: bool) -> None:
        from admission.offers import Offers
        from admission.trust import coordinator_check
        from sidecar.membership import Membership

        config = self._config
        self._member = Membership(config, keys, self, self._scope, userspace=userspace)
        self._member.on_link = self._has_link
        # Judged by the newest manifest that is known: coordinators are upgraded too.
        offers = Offers(config.owners, lambda: self._newest, self._misfit)
        verify = coordinator_check(offers.judge, self.take, config.pccs_url, config.dev_root, time.time)
        self._admission = Admission(
            Brokers(
                config.coordinators,
                lambda: (*self._named(), *offers.elsewhere),
                lambda url: Broker(url, verify, self._envelope),
            ),
            self._guest,
            Claim(
                cluster=config.cluster,
                group=config.group,
                wish=Wish(pinned=config.peer_id, held=held_slot(config.state_dir, keys)),
                identities=self._identities,
                info=info,
                keys=keys,
            ),
            self._member,
        )
        self.wait("admission", "asks the coordinators")
        self.run("admission", self._admission.run())

    def _misfit(self, manifest: Manifest) -> str | None:
        """Why a manifest that is to be carried out first is not about this CVM; None when it is."""
        config = self._config
        if manifest.cluster != config.cluster:
            return f"it is of cluster {manifest.cluster!r}, and MESH_CLUSTER is {config.cluster!r}"
        if config.group not in manifest.groups:
            return f"MESH_GROUP is {config.group!r}, and its groups are {', '.join(sorted(manifest.groups))}"
        return None

    def _named(self) -> tuple[str, ...]:
        """Where coordinators are, by the newest manifest."""
        newest = self._newest
        return tuple(peer.url for peer in coordinators(newest.manifest)) if newest else ()

    def _envelope(self) -> str:
        return self._newest.envelope if self._newest else ""

    @property
    def _newest(self) -> Signed | None:
        """The newest manifest that this boot has taken, carried out or not."""
        return self._world.signed if self._world else self._floor

    def _identities(self) -> tuple[str, ...]:
        """What this CVM is admitted as, by the newest manifest."""
        manifest = self.world.manifest
        return manifest.identities(self.world.group) if self.world.group in manifest.groups else ()

    def run(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """See `membership.Host`."""
        self._running[name] = self._scope.start(name, work)

    def supervise(self, child: Child) -> None:
        """See `membership.Host`."""
        self._children[child.spec.name] = child
        self.run(child.spec.name, child.run())

    # ---- sources → desired → effects

    @property
    def world(self) -> World:
        """See `membership.Host`."""
        assert self._world is not None, "nobody asks before there is a manifest"
        return self._world

    def see(self, world: World) -> None:
        """See `membership.Host`."""
        if world is self._world:
            return
        before, self._world = self.world, world
        if world.signed is not before.signed:
            self._manifest_taken()
            if self._member is not None:
                self._member.watch()
            if world.certificate is not None and world.certificate.digest != world.signed.digest:
                self.hurry()
        self._dirty.set()

    def _manifest_taken(self) -> None:
        world = self.world
        log.info("manifest taken", extra={"epoch": world.manifest.epoch, "digest": world.signed.digest})
        # At once, not with the next wish: `ready`, for which programs wait, must never come first.
        self._effects.keep_environment(world.manifest.groups.get(world.group, world.own).env)
        self._keep(world.signed)

    def _keep(self, signed: Signed) -> None:
        try:
            manifest_file.keep(self._config.state_dir, signed)
        except OSError as error:
            log.warning("manifest not noted, a restart of this process asks for it", extra={"reason": str(error)})

    def keep_secrets(self, secrets: Mapping[str, Secret]) -> bool:
        """See `membership.Host`."""
        return self._effects.keep_secrets(secrets)

    def hurry(self) -> None:
        """See `membership.Host`."""
        if self._admission is not None:
            self._admission.hurry()

    def _has_link(self, link: Link) -> None:
        self._effects.link = link
        self.run("lost", self._losing.run(link))
        self._dirty.set()

    async def _reconcile(self) -> None:
        """Each wake-up handles everything that is known by then: what was queued is coalesced, nothing waits."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if self._world is not None:
                await self._effects.apply(desired(self._world), self._identity())

    async def _follow_envoy(self, server: Any) -> None:
        """Keeps asking whether Envoy has the newest snapshot; offers again what it rejected."""
        self.wait("envoy", "waits for the certificate of the admission")
        while True:
            await self._published.wait()
            self._published.clear()
            attempt = 0
            while (snapshot := self._effects.snapshot) is not None:
                try:
                    await server.wait_acked(snapshot.version, ACK_SECONDS)
                except TimeoutError as error:
                    # It may refuse another part of it; what it has took long enough to be there.
                    await self._effects.refusing.envoy_has(snapshot.version)
                    nacks = server.status().nacks
                    refused = [f"Envoy refused {', '.join(n.names)}: {n.message.strip()}" for n in nacks]
                    self.wait("envoy", "; ".join(refused) or str(error))
                    if nacks:
                        server.retry()
                    await asyncio.sleep(RETRY.delay(attempt, self._rng))
                    attempt += 1
                else:
                    await self._effects.refusing.envoy_has(snapshot.version)
                    if self._member is not None and self._effects.snapshot is snapshot:
                        self._member.envoy_trusts(self._effects.trusted_pem)
                    break
            if self._effects.snapshot is not None:
                self.done("envoy")
                if self._member is not None:
                    self._member.serving.set()

    async def _envoy_started(self) -> None:
        if self._effects.snapshot is not None:
            self.wait("envoy", "Envoy has just started and has no snapshot yet")
            self._published.set()

    # ---- progress

    def wait(self, phase: str, reason: str) -> None:
        """See `membership.Host`."""
        self._progress.wait(phase, reason)
        self._show()

    def done(self, phase: str) -> None:
        """See `membership.Host`."""
        self._progress.done(phase)
        self._show()

    def lost(self, phase: str, reason: str) -> None:
        """See `membership.Host`."""
        self._progress.lost(phase, reason)
        self._show()

    def restart(self, reason: str) -> None:
        """See `membership.Host`."""
        log.warning("starting anew", extra={"reason": reason})
        self.lost("admission", f"starting anew: {reason}")
        self._restart.set()

    def _show(self) -> None:
        """Tells `/run/mesh` and the log when the report changed."""
        now = self._progress.report()
        if now == self._shown:
            return
        before, self._shown = self._shown, now
        if before is None or before.phase != now.phase:
            log.info("phase", extra={"phase": now.phase})
        if now.ready:
            own = self._identity()
            self._effects.files.mark_ready(f"{own.peer_id if own else self._config.group} is ready")
            if not self._was_ready:
                self._was_ready = True
                log.info("ready", extra={"seconds": round(_age(), 2), "cpu_seconds": round(time.process_time(), 2)})
                asyncio.get_running_loop().call_later(memory.SETTLE_SECONDS, memory.settle)
        elif before is not None and before.ready:
            self._effects.files.mark_not_ready(now.reasons)

    def _identity(self) -> Identity | None:
        admitted = self._member.admission if self._member is not None else None
        if admitted is None:
            return None
        config = self._config
        return Identity(cluster=config.cluster, group=config.group, peer_id=admitted.peer_id, address=admitted.address)

    def document(self) -> dict[str, Any]:
        """The status document."""
        effects, own = self._effects, self._identity()
        xds = effects.xds.status() if effects.xds is not None else None
        stale = self._member.stale() if self._member is not None else ()
        return report.document(
            report.Facts(
                peer_id=own.peer_id if own else self._config.peer_id,
                group=self._config.group,
                address=own.address if own else None,
                report=self._progress.report(),
                insecure=self._config.insecure,
                signed=self._world.signed if self._world else None,
                certificate=self._world.certificate if self._world else None,
                gossip_ring=self._member.gossip_ring() if self._member else "",
                agent_expires_at=self._admission.agent_expires_at if self._admission else None,
                endpoints=effects.endpoints,
                conflicts=effects.conflicts,
                children={name: child.status() for name, child in self._children.items()},
                admission=self._admission.status if self._admission else None,
                links=effects.link.status() if effects.link else (),
                lost=self._losing.keys,
                xds_version=xds.version if xds else None,
                nacks=xds.nacks if xds else (),
                lines_lost=output.lines_lost(),
                lines_unsaid=lines_unsaid(),
                problems=(
                    *(f"{name}: {reason}" for name, reason in sorted(effects.problems.items())),
                    *([f"refusals: {refusals}"] if (refusals := effects.refusing.problem) is not None else []),
                    *(f"MESH_ROUTES_JSON: {text}" for text in self._differences()),
                    *([f"manifest: {refused}"] if (refused := self._refused_manifest()) else []),
                    *([f"workload: {reason}"] if (reason := self._workload_problem()) else []),
                    *([f"certificate: {ending}"] if (ending := self._certificate_problem()) else []),
                    *([f"clock: {off}"] if (off := self._clock_problem()) else []),
                    *(f"watch: {path} has no current answer" for path in stale),
                ),
            )
        )

    def _differences(self) -> tuple[str, ...]:
        return hints.differences(self._world.manifest, self._config.routes) if self._world else ()

    def _refused_manifest(self) -> str:
        return self._member.refused_manifest if self._member is not None else ""

    def _clock_problem(self) -> str:
        skew = self._admission.status.skew if self._admission is not None else None
        return skew.problem if skew is not None else ""

    def _certificate_problem(self) -> str:
        # The member is there before the first manifest, which coordinators bring.
        if self._member is None or self._world is None:
            return ""
        return self._member.certificate_problem()

    def _workload_problem(self) -> str | None:
        workload = self._member.workload if self._member is not None else None
        return workload.problem if workload is not None else None

    def backends(self) -> dict[str, Any]:
        """What `/status` says of this group's servers, looked up now."""
        if self._world is None:
            return {"backends": []}
        return {"backends": backends.document(self._world.manifest, self._config.group, listeners.read())}

    # ---- stop

    async def _stop(self) -> None:
        """In the order in which nobody is left hanging; the second signal ends every wait."""
        work = self._scope.start("stop", self._stop_in_order())
        abort = self._scope.start("abort", self._init.abort.wait())
        await asyncio.wait({work, abort}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            # Once: SIGTERM. Again: SIGKILL.
            for _ in range(2):
                await asyncio.sleep(0)
                for task in self._running.values():
                    task.cancel()
        abort.cancel()

    async def _stop_in_order(self) -> None:
        log.info("stopping")
        await self._cancel("registrar", "admission", "mesh", "rejoin", "certificate", "listed")
        if self._member is not None:
            await self._member.leave()
        # Who is another peer now has lost its address: nothing reaches it there, so there is nothing to wait for.
        left = await self._envoy.drain(0.0 if self._restart.is_set() else self._config.drain_seconds)
        if left:
            log.warning("connections cut at the drain deadline", extra={"connections": left})
        if self._admission is not None:
            await (self._admission.close() if self._restart.is_set() else self._admission.release())
        await self._cancel("workload", "consul")
        if self._member is not None and self._restart.is_set():
            self._member.forget()
        await self._cancel("reconcile", "xds", "envoy")
        await self._cancel("lost", "link")
        await self._cancel("wireguard")
        # Whoever is not named above must not keep the process.
        await self._cancel(*self._running)

    async def _cancel(self, *names: str) -> None:
        tasks = [self._running[name] for name in names if name in self._running]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def _age() -> float:
    """Seconds since this process was started, its interpreter's own start included (10 ms steps)."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _check_premises(programs: dict[str, Path]) -> None:
    missing = premises.problems(programs)
    if missing:
        raise StartError("\n".join(str(problem) for problem in missing))
