"""CVMs that start with an older manifest than the coordinators have: adding a route or a slot restarts nobody."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import pytest

from meshctl import bring_up, runs
from meshctl.console import Silent
from meshctl.status import collect
from tests.e2e.older_lab import LATE_PEER, LATE_ROUTE
from tests.e2e.user import Mesh, wait_for
from tests.support import ROOT, need_root_or_userns

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def older_mesh() -> Iterator[Mesh]:
    """A starter mesh whose workers were given the manifest from before."""
    need_root_or_userns()
    run = runs.run_of(f"older-{os.getpid()}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "launch", functools.partial(runs.launch, module="tests.e2e.older_lab"))
        try:
            bring_up.bring_up(run, ROOT / "clusters" / "starter", {}, "preserving", Silent())
            yield Mesh(name=run.name, up_output="")
        finally:
            runs.end(run)


def test_they_are_admitted_and_take_over_what_is_newer(older_mesh: Mesh) -> None:
    """Both workers get a slot, also the one that their own manifest lacks, and have the route that it lacks."""
    run = runs.run_of(older_mesh.name)
    bring_up.wait_ready(run, Silent())
    everywhere = {LATE_ROUTE: ["api-0", "api-1"], "worker": ["worker-0", LATE_PEER]}

    def whole() -> bool:
        peers = [peer for peer in older_mesh.status()["peers"] if peer["kind"] == "workload"]
        return all({r["name"]: sorted(r["endpoints"]) for r in peer["routes"]} == everywhere for peer in peers)

    wait_for(whole, "every CVM has both routes, each with both endpoints", 60)
    machines = collect(run)["machines"]
    epochs = {
        m["peer_id"]: m["sidecar"]["manifest_epoch"] for m in machines if m["kind"] in ("coordinator", "workload")
    }
    assert set(epochs.values()) == {epochs["coordinator-0"]}
