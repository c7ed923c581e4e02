"""A first manifest that lacks a route and a slot: setting the next one restarts nobody, and lets the late CVM in."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from meshctl import bring_up, runs
from meshctl.console import Silent
from tests.e2e.older_lab import LATE_PEER, LATE_ROUTE
from tests.e2e.test_set import change, processes
from tests.e2e.user import Mesh, wait_for
from tests.support import ROOT, need_root_or_userns
from topology import render
from topology.cluster import load

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def older_mesh() -> Iterator[Mesh]:
    """A starter mesh whose first manifest lacks a route and a slot."""
    need_root_or_userns()
    run = runs.run_of(f"older-{os.getpid()}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "launch", functools.partial(runs.launch, module="tests.e2e.older_lab"))
        try:
            bring_up.bring_up(run, ROOT / "clusters" / "starter", {}, "preserving", Silent())
            made = Mesh(name=run.name, up_output="")
            wait_for(lambda: made.run("status", "--json").returncode == 0, "the lab answers", 60)
            yield made
        finally:
            runs.end(run)


def add(tree: dict[str, Any]) -> None:
    """What the first manifest lacks."""
    cluster = load(ROOT / "clusters" / "starter")
    (route,) = (each for each in render.routes(cluster) if each.name == LATE_ROUTE)
    tree["routes"].append(asdict(route))
    tree["groups"]["worker"]["peers"].append({"peer_id": LATE_PEER, "address": cluster.mesh_addresses()[LATE_PEER]})


def test_what_was_forgotten_comes_with_the_next_manifest(older_mesh: Mesh, tmp_path: Path) -> None:
    """Until then the CVM without a slot waits, and says why; afterwards it has one, and all have the route."""

    def workloads() -> list[dict[str, Any]]:
        return [peer for peer in older_mesh.status()["peers"] if peer["kind"] == "workload"]

    def waits() -> bool:
        late = [peer for peer in workloads() if not peer["ready"]]
        return len(workloads()) == 4 and len(late) == 1 and "slots of worker are held" in str(late[0]["reasons"])

    wait_for(waits, "one CVM finds no slot", 60)
    before = processes(older_mesh)
    change(older_mesh, tmp_path, add)
    bring_up.wait_ready(runs.run_of(older_mesh.name), Silent())
    everywhere = {LATE_ROUTE: ["api-0", "api-1"], "worker": ["worker-0", LATE_PEER]}

    def whole() -> bool:
        return all({r["name"]: sorted(r["endpoints"]) for r in peer["routes"]} == everywhere for peer in workloads())

    wait_for(whole, "every CVM has both routes, each with both endpoints", 60)
    ran = {name: found for name, found in before.items() if found[0] is not None}
    after = processes(older_mesh)
    assert {name: after[name] for name in ran} == ran, "nobody restarts"
