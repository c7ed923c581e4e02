"""Carries out what `desired` wishes: VIPs, DNS, `/run/mesh`, tunnels, Envoy. Decides nothing; safe to repeat.

An effector is called only when its part of the wish changed. A part that is refused keeps its last good state and is
named in `problems`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from dns.server import DnsServer
from dns.zone import ZoneError, build
from runtime.secret import Secret
from sidecar import former
from sidecar.desired import Desired
from sidecar.files import Identity, RunFiles
from sidecar.refusing import Refusing
from sidecar.terms import Term, settle
from topology.addresses import DNS_ADDRESS, DNS_PORT, VIP_POOL
from vip.netlink import VipError, VipTable
from vip.nftables import RefusalTable
from xds.spec import Spec, SpecError

if TYPE_CHECKING:
    from sidecar.config import Config
    from sidecar.link import Link
    from xds.server import XdsServer
    from xds.snapshot import Snapshot

log = logging.getLogger(__name__)

_NO_ROOTS = (
    "there are no public authorities' certificates here, so no server outside can be verified; install ca-certificates "
    "in the sidecar's image, or pin the server's authority with ca"
)
TURNS = 2
"""Of the event loop: the first wakes whoever sends a snapshot to Envoy, in the second it is sent."""


class Effects:
    """The effectors of one CVM. `link` and `xds` are given when they are there; until then their parts wait."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.dns = DnsServer(DNS_ADDRESS, DNS_PORT, resolv_conf=config.resolv_conf)
        self.files = RunFiles(config.run_dir, config.secrets_gid)
        self._vips = VipTable(VIP_POOL)
        self.refusing = Refusing(RefusalTable())
        self.link: Link | None = None
        self.xds: XdsServer | None = None
        self.on_publish: Callable[[], None] = lambda: None
        """Called after each published snapshot, when Envoy's having it ends a refusal, and when other authorities are
        in it."""
        self.problems: dict[str, str] = {}
        """What was refused, by effector."""
        self.snapshot: Snapshot | None = None
        """The newest published one."""
        self._held: Desired | None = None
        self._spec: Spec | None = None
        self._terms: Mapping[str, Term] = {}
        self._environment: Mapping[str, str] = {}
        self._identity: Identity | None = None
        self._serial = 0
        self._seen = self._noted = former.read(config.state_dir)
        """Names of routes that this boot has had, and those of them that the next start will know."""

    async def start(self, wish: Desired) -> None:
        """VIPs on loopback, DNS bound, `/run/mesh` there. OSError (VipError, BindError) when that cannot be."""
        try:
            self.files.prepare()
        except OSError as error:
            folder = str(self._config.run_dir)
            raise OSError(
                f"MESH_RUN_DIR: {folder!r} cannot be used ({error.strerror}); mount a writable folder there, and have "
                f"MESH_SECRETS_GID (it is {self._config.secrets_gid}) name a group that this process is in (group_add)"
            ) from error
        # In a thread, because netlink's module takes a while to load; the loop meanwhile asks for the identity.
        await asyncio.to_thread(self._vips.apply, wish.vips)
        await self.refusing.begin(wish.refused, wish.packets)
        await self.dns.start()
        original = ""
        with contextlib.suppress(OSError):
            original = self._config.resolv_conf.read_text(encoding="utf-8", errors="replace")
        self.files.write_resolv_conf(original, DNS_ADDRESS)
        self._names(wish, None)
        self._tell_barred(wish)
        self._held = wish

    async def begin(self, wish: Desired, vip_pool: str) -> None:
        """Carries out the first wish that a manifest makes, whose VIPs are of `vip_pool`. OSError (VipError) when its
        addresses cannot be set: without them no route can be called.
        """
        if vip_pool != VIP_POOL:
            self._vips = VipTable(vip_pool)
        await asyncio.to_thread(self._vips.apply, wish.vips)
        if self._held is not None:
            self._held = replace(self._held, vips=wish.vips)
        await self.apply(wish, None)

    async def apply(self, wish: Desired, identity: Identity | None) -> None:
        """Makes everything as `wish` has it."""
        held = self._held
        if held is None or held.vips != wish.vips or "vips" in self.problems:
            try:
                await asyncio.to_thread(self._vips.apply, wish.vips)
                self.problems.pop("vips", None)
            except VipError as error:
                self._refused("vips", error)
        await self.refusing.begin(wish.refused, wish.packets)
        if self.link is not None:
            self.link.set_peers(wish.peers)
        # Before the names, which take longer to make than a moved endpoint: connections to the old one wait for it. So
        # whoever sends it to Envoy goes first.
        if self._publish(wish):
            for _ in range(TURNS):
                await asyncio.sleep(0)
        names_changed = held is None or self._identity != identity or _names_of(held) != _names_of(wish)
        if names_changed or "names" in self.problems:
            self._names(wish, identity)
        if "environment" in self.problems:
            self.keep_environment(self._environment)
        if wish.conflicts and (held is None or held.conflicts != wish.conflicts):
            log.warning("an exclusive role is claimed by several", extra={"claims": dict(wish.conflicts)})
        self._tell_barred(wish)
        self._tell_rootless(wish)
        self._held = wish

    def _tell_rootless(self, wish: Desired) -> None:
        """The others work: an image without roots must not take the mesh away."""
        if not wish.rootless:
            self.problems.pop("egress", None)
        elif self._held is None or self._held.rootless != wish.rootless:
            self._refused("egress", LookupError(f"{', '.join(wish.rootless)}: {_NO_ROOTS}"))

    def _tell_barred(self, wish: Desired) -> None:
        """Whoever serves such a route only sees a stranger, and the application a reset."""
        if wish.barred and (self._held is None or self._held.barred != wish.barred):
            log.info(
                "routes that this group may not call, by calls and callers of the manifest: connections are reset",
                extra={"routes": list(wish.barred)},
            )

    def keep_secrets(self, secrets: Mapping[str, Secret]) -> bool:
        """Writes `secrets` for the CVM's programs and takes away all others; False when the files are refused."""
        try:
            self.files.write_secrets(secrets)
        except OSError as error:
            self._refused("secrets", error)
            return False
        self.problems.pop("secrets", None)
        return True

    def keep_environment(self, values: Mapping[str, str]) -> None:
        """Writes what the newest manifest says of the environment of the CVM's programs; what is refused is tried
        again with each wish.
        """
        self._environment = values
        try:
            self.files.write_environment(values)
        except OSError as error:
            self._refused("environment", error)
        else:
            self.problems.pop("environment", None)

    @property
    def conflicts(self) -> dict[str, tuple[str, ...]]:
        """Route name to the peer IDs that all claim its exclusive role, where several do."""
        return dict(self._held.conflicts) if self._held is not None else {}

    @property
    def endpoints(self) -> dict[str, tuple[str, ...]]:
        """Route name to the peer IDs behind it, as last carried out."""
        return dict(self._held.endpoints) if self._held is not None else {}

    @property
    def trusted_pem(self) -> str:
        """The authorities in the newest published snapshot, PEM; empty before there is one."""
        return self._spec.roots_pem if self._spec is not None else ""

    async def stop(self) -> None:
        """Takes names and addresses away. Safe to repeat."""
        await self.dns.stop()
        with contextlib.suppress(OSError):
            self.files.mark_not_ready(("the sidecar has stopped",))
        with contextlib.suppress(VipError):
            await asyncio.to_thread(self._vips.apply, frozenset())
        await self.refusing.stop()
        if self.xds is not None:
            await self.xds.stop()

    def _names(self, wish: Desired, identity: Identity | None) -> None:
        try:
            self._serial += 1
            self._seen = former.added(self._seen, wish.names)
            zone = build(
                wish.names,
                wish.peer_addresses,
                wish.services,
                serial=self._serial,
                former=self._seen,
                pools=wish.pools,
                server=DNS_ADDRESS,
            )
            self.dns.set_zone(zone)
            self.files.write_hosts(wish.names, identity)
            if identity is not None:
                self.files.write_identity(identity)
            # Last: they count all the same, and what cannot be written is only not known after a restart.
            if self._seen != self._noted:
                former.keep(self._config.state_dir, self._seen)
                self._noted = self._seen
        except (ZoneError, OSError) as error:
            self._refused("names", error)
        else:
            self._identity = identity
            self.problems.pop("names", None)

    def _publish(self, wish: Desired) -> bool:
        """Whether there is anything new for Envoy."""
        spec = wish.spec
        if self.xds is None or spec is None:
            return False
        if spec == self._spec and self.snapshot is not None:
            self.problems.pop("envoy", None)
            # A wish in between may have been refused; what it began to refuse ends here.
            if self.refusing.published(self.snapshot.version, wish.refused):
                self.on_publish()
            return False
        from xds.snapshot import build as build_snapshot

        try:
            terms, settled = settle(self._terms, spec)
            snapshot = build_snapshot(settled, self.snapshot)
        except SpecError as error:
            self._refused("envoy", error)
            return False
        self.problems.pop("envoy", None)
        self._tell_moves(spec)
        # A snapshot without routes and ingresses needs no authorities, and is the same with others.
        trusts_more = self.trusted_pem != spec.roots_pem
        self._spec, self._terms = spec, terms
        changed = self.snapshot is None or snapshot.version != self.snapshot.version
        self.snapshot = snapshot
        lifts = self.refusing.published(snapshot.version, wish.refused)
        if changed:
            self.xds.publish(snapshot)
        if changed or lifts or trusts_more:
            self.on_publish()
        return changed

    def _tell_moves(self, spec: Spec) -> None:
        """One line per route whose holder of an exclusive role changes: its connections are cut with this update."""
        before = {route.name: route.generation for route in self._spec.egress} if self._spec is not None else {}
        for route in spec.egress:
            was = before.get(route.name, route.generation)
            if was != route.generation:
                log.info(
                    "role moves", extra={"route": route.name, "was": _peer_of(was), "now": _peer_of(route.generation)}
                )

    def _refused(self, effector: str, error: Exception) -> None:
        self.problems[effector] = str(error)
        log.error("refused, the last good state stays", extra={"effector": effector, "reason": str(error)})


def _names_of(wish: Desired) -> tuple[object, ...]:
    return (wish.names, wish.peer_addresses, wish.services, wish.pools)


def _peer_of(generation: str) -> str:
    return generation.partition("/")[0] or "nobody"
