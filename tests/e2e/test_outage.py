"""All coordinators gone: what keeps working, what waits, and what heals by itself."""

from __future__ import annotations

import pytest

from tests.e2e.user import Mesh, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

OUTAGE = 60.0
"""Seconds without any coordinator."""
CALLER = f"""
import time, urllib.request as r
end, good, bad = time.monotonic() + {OUTAGE}, 0, []
while time.monotonic() < end:
    try:
        r.urlopen("http://api:8080/hello", timeout=5).read()
        good += 1
    except OSError as error:
        bad.append(repr(error))
    time.sleep(0.1)
print(good, len(bad), bad[:3])
"""


def envoys(mesh: Mesh) -> dict[str, int]:
    """The Envoys' PIDs of the CVMs that were never touched."""
    peers = mesh.status()["peers"]
    return {
        p["peer_id"]: p["children"]["envoy"]["pid"] for p in peers if p["peer_id"] in ("api-0", "api-1", "worker-0")
    }


def test_mesh_serves_without_coordinators_and_heals_when_they_are_back(mesh: Mesh) -> None:
    """A minute without coordinators fails no call; a rebooted CVM waits and says why; then all is whole again."""
    mesh.wait_whole()
    before = envoys(mesh)
    try:
        assert mesh.run("kill", "coordinator-0", "worker-1").returncode == 0
        assert mesh.run("start", "worker-1").returncode == 0
        wait_for(lambda: "coordinator" in " ".join(mesh.peer("worker-1")["reasons"]), "worker-1 says what it waits for")
        done = mesh.run("exec", "api-0", "--", "python3", "-c", CALLER, timeout=OUTAGE + 60)
        good, bad = done.stdout.split()[:2]
        assert int(good) > OUTAGE
        assert bad == "0", done.stdout
        assert not mesh.peer("worker-1")["ready"]
    finally:
        # Other tests go on with this mesh.
        assert mesh.run("start", "coordinator-0").returncode == 0
    mesh.wait_whole(120)
    assert mesh.fetch("worker-1", "http://api:8080/hello").startswith("hello from api-")
    assert envoys(mesh) == before
