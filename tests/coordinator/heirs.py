"""Coordinators of another app beside those of a cluster, and the manifest by which they take the mesh over."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator

from tests.coordinator.world import OWNER, Cluster, cvm
from tests.topology.support import after, opened
from topology.envelope import Signed
from topology.handover import Handover
from topology.manifest import CoordinatorPeer, Coordinators

HEIR_COMPOSE = '{"manifest_version":2,"name":"coordinator","docker_compose_file":"services: {new: {}}"}'
APP = "77" * 20
LONG = 3600
"""Seconds for a handover that nobody waits for."""


def moved(mesh: Cluster, heirs: Cluster, head: Signed, seconds: float = LONG) -> Signed:
    """The manifest after `head` that hands the mesh over to `heirs`, for so long from now."""
    former = head.manifest.coordinators
    network = former.peers[0].address.rpartition(".")[0]
    own = Coordinators(
        app_id=APP,
        compose_hashes=(cvm(HEIR_COMPOSE, "", app_id=APP).compose_hash,),
        peers=tuple(
            CoordinatorPeer(peer_id=f"{heirs.name}-{n}", address=f"{network}.{60 + n}", url=f"https://127.0.0.1:{port}")
            for n, port in enumerate(heirs.ports)
        ),
        handover=Handover(
            from_app_id=former.app_id,
            until=int(time.time() + seconds),
            urls=tuple(f"https://127.0.0.1:{port}" for port in mesh.ports),
        ),
    )
    return opened(after(head, coordinators=own), OWNER)


@contextlib.asynccontextmanager
async def beside(mesh: Cluster, coordinators: int = 1) -> AsyncIterator[Cluster]:
    """Coordinators of APP, not started yet."""
    root = mesh.root / "heirs"
    root.mkdir()
    made = Cluster(mesh.scope, root, coordinators, "heir")
    await made.prepare()
    own = dataclasses.replace(made.manifest.coordinators, app_id=APP)
    made.manifest = dataclasses.replace(made.manifest, coordinators=own)
    try:
        yield made
    finally:
        await made.close()
