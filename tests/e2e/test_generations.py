"""A new manifest in a running mesh under load: every CVM comes to serve under its authority, and no call is lost."""

from __future__ import annotations

import functools
import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from meshctl import bring_up, runs
from meshctl.console import Silent
from tests.e2e.renewed_lab import LEAF_HOURS
from tests.e2e.smaller_lab import COORDINATOR
from tests.e2e.user import Mesh, wait_for
from tests.support import ROOT, need_root_or_userns, popen

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

CALLS = """
import os, sys, time, urllib.request as r
good, bad = 0, []
while not os.path.exists("/tmp/enough"):
    try:
        assert r.urlopen(sys.argv[1], timeout=5).read()
        good += 1
    except Exception as error:
        bad.append(f"{time.time():.3f} {error!r}")
    time.sleep(0.01)
print(good, *bad, sep="\\n")
"""
"""Calls on connections of their own until told otherwise; prints how many were answered, and each that was not."""


@pytest.fixture
def renewed_mesh() -> Iterator[Mesh]:
    """A starter mesh whose coordinator comes back with a newer manifest."""
    need_root_or_userns()
    run = runs.run_of(f"renewed-{os.getpid()}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "launch", functools.partial(runs.launch, module="tests.e2e.renewed_lab"))
        try:
            bring_up.bring_up(run, ROOT / "clusters" / "starter", {}, "preserving", Silent())
            bring_up.wait_ready(run, Silent())
            yield Mesh(name=run.name, up_output="")
        finally:
            runs.end(run)


def _calls(mesh: Mesh, peer: str, url: str) -> subprocess.Popen[str]:
    argv = [str(ROOT / "mesh"), "exec", "--name", mesh.name, peer, "--", "python3", "-c", CALLS, url]
    return popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def test_every_cvm_serves_under_the_new_authority_and_no_call_is_lost(renewed_mesh: Mesh) -> None:
    """The only coordinator restarts with the manifest; CVMs hear of it one after the other."""
    mesh = renewed_mesh
    before = mesh.peer("api-0")["certificate"]["manifest_digest"]
    load = {"api-0": _calls(mesh, "api-0", "http://worker:9090/hello")}
    load["worker-1"] = _calls(mesh, "worker-1", "http://api:8080/hello")
    assert mesh.run("kill", COORDINATOR).returncode == 0
    assert mesh.run("start", COORDINATOR).returncode == 0

    def changed() -> bool:
        peers = mesh.status()["peers"]
        newest = next(peer["manifest"]["digest"] for peer in peers if peer["kind"] == "coordinator")
        shown = [peer["certificate"] for peer in peers if peer["kind"] == "workload"]
        return newest != before and all(
            each["manifest_digest"] == newest and each["authorities"] == [newest, before] for each in shown
        )

    wait_for(changed, "every CVM shows the new certificate, and trusts the old ones for a while", 120)
    ends = mesh.peer("api-0")["certificate"]["expires_at"]
    assert LEAF_HOURS * 3600 - 300 < ends - time.time() <= LEAF_HOURS * 3600 + 300
    for peer, calls in load.items():
        assert mesh.run("exec", peer, "--", "touch", "/tmp/enough").returncode == 0
        out, err = calls.communicate(timeout=60)
        good, *bad = out.splitlines()
        assert not bad, f"{peer}: {bad} {err}"
        assert int(good) > 50, f"{peer} has called too little: {good} {err}"
