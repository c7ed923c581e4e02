"""A lab daemon with coordinators of a second app, which nobody has started yet. Once it is, their owner gives them the
manifest that hands the mesh over.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lab import host
from lab import plan as plans
from lab.tee import DevTee, make_cvm
from topology.addresses import mesh_address_of
from topology.cluster import Cluster
from topology.envelope import digest, seal
from topology.handover import Handover
from topology.manifest import CoordinatorPeer, Coordinators, Manifest

FORMER, HEIR = "coordinator-0", "coordinator-1"
SECONDS = 100
"""For the handover: longer than CVMs hold what was good before, and no test has to wait long for its end."""


def with_heir(plan: plans.LabPlan, tee: DevTee) -> plans.LabPlan:
    """`plan` and one CVM of another app, which runs what the coordinator runs."""
    former = next(cvm for cvm in plan.cvms if cvm.machine.name == FORMER)
    identity = make_cvm(
        tee,
        app_compose=former.identity.app_compose + " ",
        app_id=None,
        instance_seed=b"heir",
        os_version=former.identity.os_version,
    )
    volumes = former.machine.volumes.with_name(HEIR)
    machine = replace(former.machine, name=HEIR, peer_id=HEIR, volumes=volumes)
    heir = replace(former, identity=identity, machine=machine, instance_seed=b"heir")
    return replace(plan, cvms=(*plan.cvms, heir))


def moved(plan: plans.LabPlan) -> Manifest:
    """The manifest that hands the mesh over, from now on."""
    former = plan.manifest.coordinators
    heir = next(cvm for cvm in plan.cvms if cvm.machine.name == HEIR).identity
    url = f"https://{heir.instance_id}-8787s.{plans.GATEWAY_BASE}"
    own = Coordinators(
        app_id=heir.app_id,
        compose_hashes=(heir.compose_hash,),
        peers=(CoordinatorPeer(peer_id=HEIR, address=mesh_address_of(HEIR), url=url),),
        handover=Handover(
            from_app_id=former.app_id,
            until=int(time.time()) + SECONDS,
            urls=tuple(peer.url for peer in former.peers),
        ),
    )
    return replace(plan.manifest, epoch=2, previous=digest(plan.manifest), coordinators=own)


class Host(host.Host):
    """The lab, whose second app is started by hand."""

    owner: Ed25519PrivateKey
    asked = False

    async def boot(self, name: str) -> None:
        """As ever; the new coordinator boots when somebody starts it, and has another manifest to begin with."""
        if name != HEIR:
            await super().boot(name)
            return
        if not self.asked:
            self.asked = True
            return
        assert self._plan is not None
        first, self._envelope = self._envelope, seal(moved(self._plan), self.owner)
        await super().boot(name)
        self._envelope = first


def main() -> None:
    """As `lab.host`."""
    genuine_plan = plans.make_plan

    def make_plan(cluster: Cluster, tee: DevTee, owner: Ed25519PrivateKey, site: plans.Site) -> plans.LabPlan:
        Host.owner = owner
        return with_heir(genuine_plan(cluster, tee, owner, site), tee)

    plans.make_plan = make_plan
    host.Host = Host  # type: ignore[misc]
    asyncio.run(host.run(host.Request.load(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
