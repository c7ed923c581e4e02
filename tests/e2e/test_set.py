"""An owner sets manifests on a mesh that runs, under load: routes, an egress, callers and an eviction, and nothing
restarts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from meshctl import runs
from meshctl import status as statuses
from tests.e2e.test_generations import CALLS
from tests.e2e.user import FETCH, Mesh, running, wait_for
from tests.support import ROOT, popen

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

ADDED = "127.10.77.7"
"""VIP of the route that is added."""
DOOR = "127.137.0.1:8081"
"""Where the egress that is added listens."""
SECONDS = 20.0
"""For a change to be everywhere: 2 s would do on a machine with nothing else to do."""


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    """A starter mesh."""
    with running("set", "up", "clusters/starter") as found:
        yield found


def calls(mesh: Mesh, peer: str, url: str) -> subprocess.Popen[str]:
    """Calls from `peer` until `enough`."""
    argv = [str(ROOT / "mesh"), "exec", "--name", mesh.name, peer, "--", "python3", "-c", CALLS, url]
    return popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def enough(mesh: Mesh, peer: str, load: subprocess.Popen[str]) -> None:
    """Ends the calls from `peer`: many were answered, and none was lost."""
    assert mesh.run("exec", peer, "--", "touch", "/tmp/enough").returncode == 0
    out, err = load.communicate(timeout=60)
    good, *bad = out.splitlines()
    assert not bad, f"{peer}: {bad} {err}"
    assert int(good) > 50, f"{peer} has called too little: {good} {err}"


def processes(mesh: Mesh) -> dict[str, Any]:
    """Every process that must go on: containers' first ones and sidecars' children, with their restarts."""
    found: dict[str, Any] = {}
    for machine in statuses.collect(runs.run_of(mesh.name))["machines"]:
        for container in machine["containers"]:
            found[f"{machine['machine']}.{container['name']}"] = (container["host_pid"], container["restarts"])
        for name, child in (machine["sidecar"] or {}).get("children", {}).items():
            found[f"{machine['machine']} {name}"] = (child["pid"], child["restarts"])
    return found


def change(mesh: Mesh, folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """A person takes the manifest in force, edits it, and sets it."""
    draft = folder / "draft.json"
    assert mesh.run("set", "--draft", str(draft), timeout=120).returncode == 0
    tree = json.loads(draft.read_text())
    edit(tree)
    draft.write_text(json.dumps(tree))
    done = mesh.run("set", "--manifest", str(draft), "--yes", timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"set: epoch {tree['epoch']}, digest " in done.stdout


def add_route(tree: dict[str, Any]) -> None:
    """`added` leads to the workers."""
    worker = next(route for route in tree["routes"] if route["name"] == "worker")
    tree["routes"].append({**worker, "name": "added", "vip": ADDED})


def add_egress(tree: dict[str, Any]) -> None:
    """Programs of api dial the workers at a further address."""
    tree["groups"]["api"]["egress"] = [{"name": "work", "listen": DOOR, "remote": "worker:9090"}]


def revoke_api(tree: dict[str, Any]) -> None:
    """The workers are called by each other alone; an egress to where one may not call would be refused."""
    tree["groups"]["api"]["egress"] = []
    tree["groups"]["worker"]["backends"]["worker"]["callers"] = ["worker"]


def replace_workers(tree: dict[str, Any]) -> None:
    """Workers have to measure something else."""
    tree["groups"]["worker"]["compose_hashes"] = ["77" * 32]


def test_manifests_are_set_under_load(mesh: Mesh, tmp_path: Path) -> None:
    """What does not change loses no request, and no process restarts."""
    before = processes(mesh)
    apis, workers = (calls(mesh, "api-0", "http://api:8080/hello"), calls(mesh, "worker-0", "http://worker:9090/hello"))

    def answers(peer: str, url: str) -> bool:
        return mesh.run("exec", peer, "--", "python3", "-c", FETCH, url).returncode == 0

    change(mesh, tmp_path, add_route)
    wait_for(lambda: answers("api-1", "http://added:9090/hello"), "the new name leads to the workers", SECONDS)
    for peer in ("api-0", "worker-1"):
        wait_for(lambda: answers(peer, "http://added:9090/hello"), f"it does in {peer}", SECONDS)  # noqa: B023
        assert f"{ADDED} added" in mesh.run("exec", peer, "--", "cat", "/run/mesh/hosts").stdout

    change(mesh, tmp_path, add_egress)
    for peer in ("api-0", "api-1"):
        wait_for(lambda: answers(peer, f"http://{DOOR}/hello"), f"the egress leads there in {peer}", SECONDS)  # noqa: B023
    assert not answers("worker-1", f"http://{DOOR}/hello"), "it is in the CVMs of its group alone"

    change(mesh, tmp_path, revoke_api)
    wait_for(lambda: not answers("api-1", "http://worker:9090/hello"), "api may not call any more", SECONDS)
    assert answers("worker-1", "http://added:9090/hello")
    assert not answers("api-1", f"http://{DOOR}/hello")
    enough(mesh, "worker-0", workers)

    change(mesh, tmp_path, replace_workers)

    def evicted() -> bool:
        peers = mesh.status()["peers"]
        routes = [
            route for peer in peers if peer["group"] == "api" for route in peer["routes"] if route["name"] != "api"
        ]
        refused = [peer["ready"] is False for peer in peers if peer["group"] == "worker"]
        return all(refused) and bool(refused) and all(route["endpoints"] == [] for route in routes)

    wait_for(evicted, "the workers are out, and say so", 60)
    enough(mesh, "api-0", apis)
    assert processes(mesh) == before
