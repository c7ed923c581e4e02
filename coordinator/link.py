"""The coordinator's own peer link: `peer`'s device and driver behind what `coordinator.app` asks of a link, and the
packet filter that lets in by it what calls Consul.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket

from admission.protocol import MeshPeer
from coordinator.config import Config
from peer.driver import PeerLink
from peer.spec import INTERFACE, InterfaceSpec, LinkError, Peer, RendezvousPeer
from peer.wireguard import USERSPACE_ENV, KernelDevice, UserspaceDevice, choose, public_key, userspace_argv
from runtime.children import Child, ChildSpec
from runtime.consul_config import SERF_PORT, SERVER_PORT
from runtime.secret import Secret
from runtime.tasks import TaskScope
from vip.filter import Filter
from vip.nftables import RefusalError, RefusalTable
from vip.table import Wanted

log = logging.getLogger(__name__)

HANG_SECONDS = 5.0
STOP_SECONDS = 2.0


class MeshLink:
    """The device `mesh0`, its userspace process where one is needed, and the tunnels."""

    def __init__(self, device: KernelDevice | UserspaceDevice, public_key: str, config: Config) -> None:
        self.public_key = public_key
        self.problem: str | None = None
        """Why every port of this CVM answers the whole mesh; None: only Consul's do."""
        self._device = device
        self._table = RefusalTable()
        self._driver = PeerLink(
            device,
            rendezvous=[
                RendezvousPeer(public_key=host.public_key, endpoint=host.endpoint, address=host.address)
                for host in config.manifest.rendezvous
            ],
        )
        self._child: Child | None = None
        if isinstance(device, UserspaceDevice):
            self._child = Child(
                ChildSpec(
                    name="wireguard",
                    argv=userspace_argv(config.wireguard_go, INTERFACE),
                    env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), **USERSPACE_ENV},
                    log=None,
                    healthy=self._answers,
                    hang_seconds=HANG_SECONDS,
                    stop_seconds=STOP_SECONDS,
                )
            )

    def set_peers(self, peers: tuple[MeshPeer, ...]) -> None:
        """Makes these, and no others, the peers of the device. A set that cannot be is logged and left out."""
        try:
            if len({peer.public_key for peer in peers}) != len(peers):
                raise LinkError("two peers have one public key")
            self._driver.set_peers(
                [Peer(public_key=peer.public_key, address=peer.address, peer_id=peer.peer_id) for peer in peers]
            )
        except LinkError as error:
            # Admission refuses such peers; this guards against a record that was written by hand.
            log.error("peers not applied", extra={"reason": str(error)})

    async def up(self) -> None:
        """Returns when the mesh address can be bound, which is what Consul needs."""
        while not _bindable(self._device.spec.address):  # noqa: ASYNC110 - netlink's news would come in no simpler
            await asyncio.sleep(0.01)

    async def meet(self, public_keys: tuple[str, ...], seconds: float) -> tuple[str, ...]:
        """Those of `public_keys` to which a tunnel is up after `seconds`, or as soon as all are."""
        await self._driver.wait_up(public_keys, seconds)
        return tuple([key for key in public_keys if await self._driver.wait_up((key,), 0)])

    async def run(self) -> None:
        """Keeps filter, device and tunnels until cancelled."""
        try:
            await self._keep_out()
            async with TaskScope() as scope:
                if self._child is not None:
                    scope.start("wireguard", self._child.run())
                scope.start("tunnels", self._driver.run())
        finally:
            if isinstance(self._device, KernelDevice):
                await self._device.remove()
            with contextlib.suppress(RefusalError):
                await asyncio.to_thread(self._table.remove)

    async def _keep_out(self) -> None:
        """Before there is a device. The broker is called at its public address, and so is not among the ports."""
        spec = self._device.spec
        tcp, udp = frozenset({SERVER_PORT, SERF_PORT}), frozenset({SERF_PORT})
        wanted = Wanted(filter=Filter(pool=spec.pool, interface=spec.name, tcp=tcp, udp=udp))
        try:
            await asyncio.to_thread(self._table.apply, wanted)
        except RefusalError as error:
            self.problem = str(error)
            log.warning("connections are not kept out", extra={"reason": self.problem})

    def status(self) -> list[dict[str, object]]:
        """`links` of the status document."""
        return [
            {"peer_id": row.peer_id, "path": row.path, "handshake_age_s": row.handshake_age_s, "mtu": row.mtu}
            for row in self._driver.status()
        ]

    def child(self) -> Child | None:
        """The wireguard-go child, where the kernel has no WireGuard."""
        return self._child

    async def _answers(self) -> bool:
        await self._device.read()
        return True


async def make_link(config: Config, private_key: Secret, address: str) -> MeshLink:
    """The link of the coordinator at `address`; not yet running. `private_key` is base64."""
    pool = config.manifest.mesh_pool
    spec = InterfaceSpec(private_key=private_key, address=address, pool=pool, path_mtu=config.path_mtu)
    return MeshLink(await choose(spec), public_key(private_key), config)


def _bindable(address: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
