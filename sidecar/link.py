"""The peer link of this CVM: its device, the `wireguard-go` child where it needs one, the peers it is given."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from admission.protocol import MeshPeer
from peer.driver import PeerLink
from peer.link import Contact, LinkStatus
from peer.spec import INTERFACE, InterfaceSpec, LinkError, Peer, RendezvousPeer
from peer.wireguard import (
    USERSPACE_ENV,
    Device,
    KernelDevice,
    UserspaceDevice,
    kernel_supported,
    userspace_argv,
)
from runtime.children import Child, ChildSpec
from runtime.secret import Secret
from runtime.tasks import TaskScope
from topology.manifest import Manifest

log = logging.getLogger(__name__)

HANG_SECONDS = 6.0
STOP_SECONDS = 1.0


async def userspace_child(program: Path) -> Child | None:
    """The `wireguard-go` child to run, or None where the kernel has WireGuard."""
    if await kernel_supported():
        return None
    device = UserspaceDevice(InterfaceSpec(private_key=Secret(""), address="", pool=""))

    async def healthy() -> bool:
        await device.read()
        return True

    return Child(
        ChildSpec(
            name="wireguard",
            argv=userspace_argv(program, INTERFACE),
            env=USERSPACE_ENV,
            log=None,
            healthy=healthy,
            hang_seconds=HANG_SECONDS,
            stop_seconds=STOP_SECONDS,
        )
    )


class Link:
    """The tunnels, from the first admission on."""

    def __init__(
        self,
        *,
        userspace: bool,
        private_key: Secret,
        address: str,
        manifest: Manifest,
        path_mtu: int | None = None,
    ) -> None:
        """`path_mtu` is the MTU of all paths, bytes, where it was set by hand; None: it is measured."""
        spec = InterfaceSpec(private_key=private_key, address=address, pool=manifest.mesh_pool, path_mtu=path_mtu)
        self._device: Device = UserspaceDevice(spec) if userspace else KernelDevice(spec)
        self._link = PeerLink(self._device, rendezvous=rendezvous(manifest))
        self._peers: tuple[MeshPeer, ...] = ()

    async def run(self) -> None:
        """Keeps the tunnels until cancelled. A device of the kernel's goes with them, as that of `wireguard-go` does:
        it would keep its peers, and the packet filter is gone after a clean stop.
        """
        try:
            await self._link.run()
        finally:
            if isinstance(self._device, KernelDevice):
                await self._device.remove()

    def set_peers(self, peers: tuple[MeshPeer, ...]) -> None:
        """Makes these the peers. A list that does not fit is logged, and the last good one stays."""
        if peers == self._peers:
            return
        try:
            self._link.set_peers(to_peers(peers))
        except LinkError as error:
            log.error("peers refused, the last good ones stay", extra={"reason": str(error)})
        else:
            self._peers = peers

    async def up_to_any(self, peers: Iterable[MeshPeer], seconds: float) -> bool:
        """Whether a tunnel to at least one of `peers` is up within `seconds`; true when there are none."""
        keys = [peer.public_key for peer in peers]
        if not keys:
            return True
        async with TaskScope() as scope:
            waits = {scope.start(f"tunnel to {key}", self._link.wait_up([key], seconds)) for key in keys}
            pending, won = waits, False
            while pending and not won:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                won = any(task.result() for task in done)
            for task in pending:
                task.cancel()
        return won

    def on_return(self, call: Callable[[], None]) -> None:
        """Has `call` called when a peer is heard again after a silence or restarts, and when a peer comes or goes."""
        self._link.on_return = call

    def contacts(self) -> tuple[Contact, ...]:
        """When every peer was heard."""
        return self._link.contacts()

    def status(self) -> tuple[LinkStatus, ...]:
        """Every peer's link."""
        return self._link.status()


def rendezvous(manifest: Manifest) -> tuple[RendezvousPeer, ...]:
    """The manifest's rendezvous hosts in the link's words."""
    return tuple(
        RendezvousPeer(public_key=host.public_key, endpoint=host.endpoint, address=host.address)
        for host in manifest.rendezvous
    )


def to_peers(peers: Iterable[MeshPeer]) -> tuple[Peer, ...]:
    """Admitted CVMs in the link's words."""
    return tuple(Peer(public_key=peer.public_key, address=peer.address, peer_id=peer.peer_id) for peer in peers)
