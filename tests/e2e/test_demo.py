"""`./mesh demo` and `./mesh up` with their options, each on a mesh of its own."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from meshctl import runs
from tests.e2e.user import Mesh, run_mesh, running, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def namespace_of(mesh: Mesh) -> str:
    """The process namespace that all of a mesh lives in."""
    record = runs.run_of(mesh.name).record()
    assert record is not None
    return str(Path(f"/proc/{record['pid']}/ns/pid").readlink())


def processes_in(namespace: str) -> list[int]:
    """PIDs of the living processes in a process namespace, those below it left out."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if entry.name.isdigit() and not zombie and str((entry / "ns" / "pid").readlink()) == namespace:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_demo_shows_real_answers_and_down_leaves_nothing() -> None:
    """The tour prints an answer to every call and the table; after `down` no process, mount or file is left."""
    before = Path("/proc/mounts").read_text()
    with running("demo", "demo") as mesh:
        out = mesh.up_output
        for call in ("http://api:8080/hello", "http://api:8080/worker", "http://api:8080/all"):
            assert f"GET {call}" in out
        assert out.count("public entry: GET http://127.0.0.1:") == 3
        assert "hello from worker-" in out
        assert "coordinator-0" in out
        assert "./mesh exec" in out
        namespace, folder = namespace_of(mesh), runs.run_of(mesh.name).folder
        assert processes_in(namespace)
    assert processes_in(namespace) == []
    assert not folder.exists()
    assert Path("/proc/mounts").read_text() == before


def test_lab_that_is_killed_takes_everything_along() -> None:
    """SIGKILL of the lab's first process: nothing of it runs on, and `down` clears the folder."""
    with running("crash", "up", "clusters/starter", "--replicas", "api=1", "--replicas", "worker=1") as mesh:
        namespace, run = namespace_of(mesh), runs.run_of(mesh.name)
        record = run.record()
        assert record is not None
        os.kill(record["pid"], signal.SIGKILL)
        wait_for(lambda: processes_in(namespace) == [], "every process of the lab is gone", 10)
        assert mesh.run("status").returncode == 2
        assert run_mesh("down", "--name", mesh.name).returncode == 0
        assert not run.folder.exists()


def test_calls_are_relayed_behind_nats_that_randomise_ports() -> None:
    """With port-randomising NATs CVMs reach each other through the rendezvous, and calls work."""
    with running("relay", "up", "clusters/starter", "--nat", "random", "--replicas", "api=1") as mesh:
        assert mesh.fetch("api-0", "http://worker:9090/hello").startswith("hello from worker-")
        links = {link["peer_id"]: link["path"] for link in mesh.peer("api-0")["links"]}
        assert links["worker-0"] == links["worker-1"] == "relay"


def test_three_coordinators_survive_the_loss_of_one() -> None:
    """A quorum of three admits and serves with one coordinator gone."""
    options = ("--coordinators", "3", "--replicas", "api=1", "--replicas", "worker=3")
    with running("quorum", "up", "clusters/starter", *options) as mesh:
        peers = {peer["peer_id"]: peer for peer in mesh.status()["peers"]}
        assert [p for p in peers if p.startswith("coordinator")] == ["coordinator-0", "coordinator-1", "coordinator-2"]
        assert [p for p in peers if p.startswith("worker")] == ["worker-0", "worker-1", "worker-2"]
        assert mesh.run("kill", "coordinator-0", "worker-2").returncode == 0
        assert mesh.run("start", "worker-2").returncode == 0
        wait_for(lambda: bool(mesh.peer("worker-2")["ready"]), "worker-2 is admitted by the other two", 90)
        end = time.monotonic() + 30
        while "hello from worker-2" not in mesh.fetch("api-0", "http://worker:9090/hello"):
            assert time.monotonic() < end, "worker-2 never answered"
        assert mesh.run("start", "coordinator-0").returncode == 0
        wait_for(lambda: bool(mesh.peer("coordinator-0")["ready"]), "coordinator-0 is back", 90)
