"""A lab daemon with two CVMs that are not what the manifest says, to see them refused.

`worker-1` boots a compose file with one byte more than the measured one; `worker-2` is genuine and asks for the slot of
`worker-0`.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lab import host
from lab import plan as plans
from lab.tee import CvmIdentity, DevTee, make_cvm
from topology.cluster import Cluster

TAMPERED, DOUBLE, CLAIMED = "worker-1", "worker-2", "worker-0"


def tampered(tee: DevTee, genuine: CvmIdentity) -> CvmIdentity:
    """The same app on the same image, with a compose file that says something else."""
    return make_cvm(
        tee,
        app_compose=genuine.app_compose + " ",
        app_id=genuine.app_id,
        instance_seed=b"tampered",
        os_version=genuine.os_version,
    )


def changed(plan: plans.LabPlan, tee: DevTee) -> plans.LabPlan:
    """`plan` with the two CVMs."""
    cvms = {cvm.machine.name: cvm for cvm in plan.cvms}
    cvms[TAMPERED] = replace(cvms[TAMPERED], identity=tampered(tee, cvms[TAMPERED].identity))
    machine = cvms[DOUBLE].machine
    environment = {
        **machine.environment,
        "sidecar": {**machine.environment["sidecar"], "MESH_PEER_ID": CLAIMED},
    }
    cvms[DOUBLE] = replace(cvms[DOUBLE], machine=replace(machine, environment=environment))
    return replace(plan, cvms=tuple(cvms.values()))


def main() -> None:
    """As `lab.host`."""
    genuine_plan = plans.make_plan

    def make_plan(cluster: Cluster, tee: DevTee, owner: Ed25519PrivateKey, site: plans.Site) -> plans.LabPlan:
        return changed(genuine_plan(cluster, tee, owner, site), tee)

    plans.make_plan = make_plan
    asyncio.run(host.run(host.Request.load(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
