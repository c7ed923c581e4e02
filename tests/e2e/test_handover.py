"""The mesh moves to another coordinators' app under load."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from meshctl import bring_up, runs
from meshctl.console import Silent
from meshctl.errors import UserError
from tests.e2e.heir_lab import FORMER, HEIR, SECONDS
from tests.e2e.test_coordinators import consul
from tests.e2e.test_generations import CALLS
from tests.e2e.test_patroni import database
from tests.e2e.user import Mesh, wait_for
from tests.support import ROOT, need_root_or_userns, popen

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

WORKLOADS = ("api-0", "api-1", "worker-0", "worker-1")


@contextmanager
def beside_heirs(label: str, cluster: str, overrides: dict[str, str]) -> Iterator[Mesh]:
    """A mesh of `cluster` with coordinators of a second app, which wait to be started."""
    need_root_or_userns()
    run = runs.run_of(f"{label}-{os.getpid()}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "launch", functools.partial(runs.launch, module="tests.e2e.heir_lab"))
        try:
            bring_up.bring_up(run, ROOT / "clusters" / cluster, overrides, "preserving", Silent())
            yield Mesh(name=run.name, up_output="")
        finally:
            runs.end(run)


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    """A starter mesh."""
    with beside_heirs("handover", "starter", {}) as found:
        wait_for(lambda: whole(found), "the mesh is there", 240)
        yield found


def workloads(mesh: Mesh) -> dict[str, dict[str, Any]]:
    """What each workload's sidecar says."""
    return {peer["peer_id"]: peer for peer in mesh.status()["peers"] if peer["peer_id"] in WORKLOADS}


def slots(mesh: Mesh) -> dict[str, str]:
    """The machine of each peer."""
    called: dict[str, str] = runs.run_of(mesh.name).call("GET", "/names")
    return {peer: machine for machine, peer in called.items()}


def whole(mesh: Mesh) -> bool:
    """Whether every workload is ready, and every route has both its endpoints everywhere."""
    try:
        found = workloads(mesh)
    except UserError:
        # The lab has not begun to answer.
        return False
    return len(found) == len(WORKLOADS) and all(
        peer["ready"] and all(len(route["endpoints"]) == 2 for route in peer["routes"]) for peer in found.values()
    )


def take_over(mesh: Mesh) -> None:
    """Has the new coordinator take the mesh, and waits until every workload has changed over."""
    assert mesh.run("start", HEIR).returncode == 0
    wait_for(lambda: bool(mesh.peer(HEIR)["ready"]), f"{HEIR} is ready", 120)

    def changed() -> bool:
        peers = mesh.status()["peers"]
        newest = next(peer["manifest"]["digest"] for peer in peers if peer["peer_id"] == HEIR)
        shown = [peer["certificate"] for peer in peers if peer["kind"] == "workload"]
        return all(
            each["manifest_digest"] == newest and each["authorities"][:1] == [newest] and len(each["authorities"]) == 2
            for each in shown
        )

    wait_for(changed, "every CVM shows the new certificate, and trusts both authorities", 120)


def calls(mesh: Mesh, peer: str, url: str) -> subprocess.Popen[str]:
    """Calls from `peer` until `enough`."""
    argv = [str(ROOT / "mesh"), "exec", "--name", mesh.name, peer, "--", "python3", "-c", CALLS, url]
    return popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def enough(mesh: Mesh, load: dict[str, subprocess.Popen[str]]) -> None:
    """Ends the calls: many were answered, and none was lost."""
    for peer in load:
        assert mesh.run("exec", peer, "--", "touch", "/tmp/enough").returncode == 0
    for peer, caller in load.items():
        out, err = caller.communicate(timeout=60)
        good, *bad = out.splitlines()
        assert not bad, f"{peer}: {bad[:5]} {err}"
        assert int(good) > 50, f"{peer} has called too little: {good} {err}"


def test_the_mesh_moves_to_another_coordinators_app_under_load(mesh: Mesh) -> None:
    """One owner's word, given to the new coordinator. No call is lost, slots and keys are as they were, every CVM shows
    a certificate of the new authority, and the former coordinator may end. Afterwards only the new authority counts.
    """
    assert consul(mesh, "PUT", "/v1/kv/service/kept", "the same") == "true"
    before = workloads(mesh)
    held = {peer: machine for peer, machine in slots(mesh).items() if peer in WORKLOADS}
    load = {"api-0": calls(mesh, "api-0", "http://worker:9090/hello")}
    load["worker-1"] = calls(mesh, "worker-1", "http://api:8080/hello")
    take_over(mesh)
    assert not mesh.peer(FORMER)["ready"]
    assert "handed the mesh over" in " ".join(mesh.peer(FORMER)["reasons"])
    assert mesh.run("kill", FORMER).returncode == 0
    alone = lambda: all(len(p["certificate"]["authorities"]) == 1 for p in workloads(mesh).values())  # noqa: E731
    wait_for(alone, "only the new authority counts", SECONDS + 60)
    wait_for(lambda: whole(mesh), "by the new coordinator's Consul alone", 60)
    enough(mesh, load)
    found = workloads(mesh)
    assert {name: peer["address"] for name, peer in found.items()} == {n: p["address"] for n, p in before.items()}
    assert {peer: machine for peer, machine in slots(mesh).items() if peer in WORKLOADS} == held
    for name, peer in found.items():
        children = before[name]["children"]
        assert peer["children"]["envoy"] == children["envoy"]
        assert peer["children"]["consul"]["restarts"] == children["consul"]["restarts"] + 1
    assert consul(mesh, "GET", "/v1/kv/service/kept?raw", coordinator=HEIR) == "the same"


def secret(mesh: Mesh, peer: str) -> str:
    """The database's password as `peer` has it."""
    done = mesh.run("exec", peer, "--", "cat", "/run/mesh/secrets/db-webdemo")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_database_keeps_its_leader_its_rows_and_its_passwords() -> None:
    """Its members ask each other in the new Consul, which knows none of them: the primary goes on, and nobody else is
    promoted. Reads and writes work by the new coordinators alone.
    """
    with beside_heirs("handed-db", "patroni-demo", {"replicas.webdemo": "1", "replicas.postgres": "2"}) as mesh:
        seen: dict[str, Any] = {}

        def both() -> bool:
            seen.clear()
            seen.update(database(mesh).get("routes", {}))
            found = {name: seen.get(f"postgres-{name}", {}).get("role") for name in ("master", "replica")}
            return found == {"master": "master", "replica": "replica"}

        wait_for(both, "the database has a leader and a replica", 400)
        leader, rows = seen["postgres-master"]["peer"], seen["postgres-master"]["rows"]
        password = secret(mesh, "webdemo-0")
        take_over(mesh)
        assert mesh.run("kill", FORMER).returncode == 0
        wait_for(both, "it is whole by the new coordinators", 120)
        assert seen["postgres-master"]["peer"] == leader
        assert seen["postgres-master"]["rows"] > rows
        assert {secret(mesh, peer) for peer in ("webdemo-0", "postgres-0", "postgres-1")} == {password}
