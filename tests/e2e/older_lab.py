"""A lab daemon whose owner has forgotten one route and one slot in the first manifest."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lab import host
from lab import plan as plans
from lab.tee import DevTee
from topology.cluster import Cluster
from topology.manifest import Manifest

LATE_ROUTE, LATE_PEER = "api", "worker-1"


def older(manifest: Manifest) -> Manifest:
    """The manifest without the route and the slot."""
    workers = manifest.groups["worker"]
    peers = tuple(peer for peer in workers.peers if peer.peer_id != LATE_PEER)
    routes = tuple(route for route in manifest.routes if route.name != LATE_ROUTE)
    groups = {**manifest.groups, "worker": replace(workers, peers=peers)}
    return replace(manifest, routes=routes, groups=groups)


def main() -> None:
    """As `lab.host`."""
    genuine_plan = plans.make_plan

    def make_plan(cluster: Cluster, tee: DevTee, owner: Ed25519PrivateKey, site: plans.Site) -> plans.LabPlan:
        plan = genuine_plan(cluster, tee, owner, site)
        return replace(plan, manifest=older(plan.manifest))

    plans.make_plan = make_plan
    asyncio.run(host.run(host.Request.load(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
