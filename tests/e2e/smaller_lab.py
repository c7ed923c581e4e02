"""A lab daemon whose coordinator, once it was killed, finds a newer manifest on its disk: one worker fewer."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.disk import MANIFESTS
from coordinator.history import name_of
from lab import host
from lab import plan as plans
from lab.tee import DevTee
from topology.cluster import Cluster
from topology.envelope import digest, open_envelope, seal
from topology.manifest import Manifest

COORDINATOR = "coordinator-0"
REPLICAS = 2


def smaller(manifest: Manifest) -> Manifest:
    """The manifest after the owner has taken a replica away."""
    workers = manifest.groups["worker"]
    groups = {**manifest.groups, "worker": replace(workers, peers=workers.peers[:REPLICAS])}
    return replace(manifest, epoch=manifest.epoch + 1, previous=digest(manifest), groups=groups)


class Host(host.Host):
    """The lab, with an owner who signs once more, and a coordinator that was killed before it enforced that."""

    owner: Ed25519PrivateKey
    successor: Callable[[Manifest], Manifest]

    async def boot(self, name: str) -> None:
        """As ever; at the coordinator's second boot its disk has the newer manifest."""
        machine = self.machines[name]
        if name == COORDINATOR and machine.state == "killed" and self._plan is not None:
            signed = open_envelope(seal(type(self).successor(self._plan.manifest), self.owner), None)
            (folder,) = machine.plan.volumes.glob(f"*/{MANIFESTS}")
            (folder / name_of(signed)).write_text(signed.envelope, encoding="ascii")
        await super().boot(name)


def main(successor: Callable[[Manifest], Manifest] = smaller) -> None:
    """As `lab.host`; `successor` gives the newer manifest."""
    genuine_plan = plans.make_plan

    def make_plan(cluster: Cluster, tee: DevTee, owner: Ed25519PrivateKey, site: plans.Site) -> plans.LabPlan:
        Host.owner, Host.successor = owner, staticmethod(successor)
        return genuine_plan(cluster, tee, owner, site)

    plans.make_plan = make_plan
    host.Host = Host  # type: ignore[misc]
    asyncio.run(host.run(host.Request.load(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
