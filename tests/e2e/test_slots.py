"""Who has which slot when coordinators forget, CVMs boot and replicas are taken away. No CVM is told its peer ID."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from meshctl import bring_up, runs
from meshctl.console import Silent
from tests.e2e.smaller_lab import COORDINATOR, REPLICAS
from tests.e2e.user import Mesh, running, wait_for
from tests.support import ROOT, need_root_or_userns

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

GROUPS = ("api", "worker")
CALLER = """
import sys, urllib.request as r
for _ in range(20):
    print(r.urlopen(sys.argv[1], timeout=5).read().decode().split()[2])
"""


def _workloads(mesh: Mesh) -> dict[str, dict[str, Any]]:
    return {peer["peer_id"]: peer for peer in mesh.status()["peers"] if peer["kind"] == "workload"}


def test_a_booting_cvm_takes_no_running_ones_slot() -> None:
    """The coordinator, which loses its disk, and one CVM of each group restart together, and those that boot are the
    first to ask: they wait for those that run. Then both CVMs of each group serve, those that ran in the slots that
    they had.
    """
    with running("boots", "up", "clusters/starter") as mesh:
        before = {name: peer["address"] for name, peer in _workloads(mesh).items()}
        assert sorted(before) == ["api-0", "api-1", "worker-0", "worker-1"]
        names = runs.run_of(mesh.name).names()
        booting = [f"{group}-1" for group in GROUPS]
        assert mesh.run("kill", COORDINATOR, *booting).returncode == 0
        for group in GROUPS:
            mesh.signal(f"{group}-0", signal.SIGSTOP)
        # Records that are there would say who runs.
        runs.run_of(mesh.name).call("POST", f"/machines/{COORDINATOR}/wipe")
        assert mesh.run("start", COORDINATOR, *booting).returncode == 0

        def wait() -> bool:
            now = _workloads(mesh)
            return all("come first" in " ".join(now[name]["reasons"]) for name in booting)

        wait_for(wait, "those that boot wait, and say for what", 60)
        for group in GROUPS:
            mesh.signal(f"{group}-0", signal.SIGCONT)
        mesh.wait_whole(120)
        after = _workloads(mesh)
        assert {name: peer["address"] for name, peer in after.items()} == before
        assert runs.run_of(mesh.name).names() == names, "each CVM is the peer that it was"
        assert mesh.fetch("worker-1", "http://api:8080/hello").startswith("hello from api-")


@pytest.fixture
def three_workers() -> Iterator[Mesh]:
    """A starter mesh with three workers, whose coordinator finds a manifest that has two on its disk."""
    need_root_or_userns()
    run = runs.run_of(f"smaller-{os.getpid()}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "launch", functools.partial(runs.launch, module="tests.e2e.smaller_lab"))
        try:
            starter = ROOT / "clusters" / "starter"
            bring_up.bring_up(run, starter, {"replicas.worker": str(REPLICAS + 1)}, "preserving", Silent())
            bring_up.wait_ready(run, Silent())
            yield Mesh(name=run.name, up_output="")
        finally:
            runs.end(run)


def test_from_three_to_two_replicas_both_that_stay_serve(three_workers: Mesh) -> None:
    """The CVM of a slot that stays is gone for good; the one in the slot that went starts anew as that one, and the
    third is not touched.
    """
    mesh, gone, moves, stays = three_workers, "worker-0", "worker-2", "worker-1"
    machines = {called: machine for machine, called in runs.run_of(mesh.name).names().items()}
    pid = mesh.peer(stays)["children"]["envoy"]["pid"]
    assert mesh.run("kill", COORDINATOR, gone).returncode == 0
    assert mesh.run("start", COORDINATOR).returncode == 0

    def served() -> bool:
        called = runs.run_of(mesh.name).names()
        peers = _workloads(mesh)
        return (
            called[machines[moves]] == gone
            and all(peers[name]["ready"] for name in (gone, stays, "api-0", "api-1"))
            and all(
                sorted(route["endpoints"]) == [gone, stays]
                for name in (gone, stays, "api-0", "api-1")
                for route in peers[name]["routes"]
                if route["name"] == "worker"
            )
        )

    wait_for(served, f"both workers serve: {mesh.status()['peers']}", 180)
    assert mesh.peer(stays)["children"]["envoy"]["pid"] == pid
    done = mesh.run("exec", "api-0", "--", "python3", "-c", CALLER, "http://worker:9090/hello")
    assert set(done.stdout.split()) == {gone, stays}, done.stderr
    log = mesh.run("logs", gone, "-n", "1000").stdout
    assert f"admitted as {gone} after {moves}" in log
    assert "Traceback" not in log, log[max(0, log.index("Traceback") - 500) :][:8000]
