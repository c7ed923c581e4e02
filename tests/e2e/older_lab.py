"""A lab daemon whose workers start with an older manifest than the coordinators have: one route and one slot fewer."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lab import host
from lab import plan as plans
from lab.machine import MachinePlan
from lab.tee import DevTee
from topology.cluster import Cluster
from topology.envelope import digest, seal
from topology.manifest import Manifest

LATE_ROUTE, LATE_PEER = "api", "worker-1"


def older(manifest: Manifest) -> Manifest:
    """The manifest as it was before the route and the slot were added."""
    workers = manifest.groups["worker"]
    peers = tuple(peer for peer in workers.peers if peer.peer_id != LATE_PEER)
    routes = tuple(route for route in manifest.routes if route.name != LATE_ROUTE)
    groups = {**manifest.groups, "worker": replace(workers, peers=peers)}
    return replace(manifest, routes=routes, groups=groups)


def changed(plan: plans.LabPlan, owner: Ed25519PrivateKey) -> plans.LabPlan:
    """`plan` with workers that know the older manifest only; everyone else has the one that follows it."""
    known = older(plan.manifest)
    newest = seal(replace(plan.manifest, epoch=known.epoch + 1, previous=digest(known)), owner)
    fields = ("name", "vip", "port", "role", "backend", "service")
    told = {
        "MESH_MANIFEST": seal(known, owner),
        "MESH_ROUTES_JSON": json.dumps([{field: getattr(route, field) for field in fields} for route in known.routes]),
    }
    cvms = []
    for cvm in plan.cvms:
        own = told if cvm.machine.group == "worker" else {"MESH_MANIFEST": newest}
        cvms.append(replace(cvm, machine=with_environment(cvm.machine, "sidecar", own)))
    rendezvous = with_environment(plan.rendezvous, plans.RENDEZVOUS, {"MESH_MANIFEST": newest})
    return replace(plan, cvms=tuple(cvms), rendezvous=rendezvous)


def with_environment(machine: MachinePlan, service: str, more: dict[str, str]) -> MachinePlan:
    """`machine` whose `service` is told `more`."""
    environment = machine.environment
    return replace(machine, environment={**environment, service: {**environment[service], **more}})


def main() -> None:
    """As `lab.host`."""
    genuine_plan = plans.make_plan

    def make_plan(cluster: Cluster, tee: DevTee, owner: Ed25519PrivateKey, site: plans.Site) -> plans.LabPlan:
        return changed(genuine_plan(cluster, tee, owner, site), owner)

    plans.make_plan = make_plan
    asyncio.run(host.run(host.Request.load(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
