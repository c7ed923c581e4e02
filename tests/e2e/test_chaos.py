"""Chaos as a person makes it: every fault once, nothing acknowledged is lost, and all is whole again.

Times are not asserted: what they are on a given machine is what `./mesh chaos` and `./mesh bench failover` tell.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshctl import runs
from meshctl.chaos_figures import FAULTS, STAYS
from tests.e2e.user import Mesh, running, wait_for
from tests.support import ROOT, popen, tool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1700)]


@pytest.fixture(scope="module")
def database() -> Iterator[Mesh]:
    """A running patroni-demo mesh; tests leave it whole."""
    tool("postgres")
    with running("chaos", "up", "clusters/patroni-demo") as mesh:
        yield mesh


def chaos(mesh: Mesh, folder: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """`./mesh chaos patroni ARGUMENTS` that ends well; its figures by fault."""
    out = folder / "chaos.json"
    done = mesh.run("chaos", "patroni", "--json", str(out), *arguments, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    return {each["fault"]: each for each in json.loads(out.read_text(encoding="utf-8"))["faults"]}


LEFT_OUT = {
    "coordinators-restart": "tests/e2e/test_coordinators.py restarts them under calls",
    "rolling-update": "three boots, each until all is whole again: a minute and more",
    "disk-full": "needs a mesh with disks of a limited size",
}
"""Faults that CI does not make in a whole mesh, and why; `./mesh chaos patroni --fault NAME` makes each."""


def test_no_fault_loses_an_acknowledged_write(database: Mesh, tmp_path: Path) -> None:
    """Each fault once: writes go on, held connections were closed where the leader moved and held on to where it did
    not, every acknowledged row is on every member.
    """
    made = tuple(fault for fault in FAULTS if fault not in LEFT_OUT)
    figures = chaos(database, tmp_path, *(word for fault in made for word in ("--fault", fault)))
    assert tuple(figures) == made
    for fault, each in figures.items():
        assert each["rounds"] == 1
        assert each["writes_lost"] == 0
        assert each["members_forked"] == 0
        assert each["writes_acknowledged"] > 0
        assert each["rto_s"]["median"] is not None, fault
        assert (each["old_connection_closed_s"]["max"] is None) == (fault in STAYS), fault
    assert {peer["cut"] for peer in database.status()["peers"]} == {None}


def test_asynchronous_mode_is_for_the_run_only(database: Mesh, tmp_path: Path) -> None:
    """`--async` counts what is lost, recovers, and leaves the cluster in its own mode."""
    figures = chaos(database, tmp_path, "--async", "--fault", "crash-postgres")
    assert figures["crash-postgres"]["rto_s"]["median"] is not None
    # A synchronous run waits for a synchronous standby before it breaks anything.
    assert chaos(database, tmp_path, "--fault", "switchover")["switchover"]["writes_lost"] == 0


def test_an_interrupt_heals_what_was_cut(database: Mesh) -> None:
    """Ctrl-C while the leader is cut off: the cut is ended, the exit code says so, and the cluster becomes whole."""
    argv = [str(ROOT / "mesh"), "chaos", "patroni", "--name", database.name, "--fault", "partition-both"]
    with popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT) as process:
        try:
            # The lab itself is asked: a command takes too long where the cut may last for two seconds only.
            lab = runs.find(database.name)
            wait_for(
                lambda: any(m["cut"] for m in lab.call("GET", "/status")["machines"]), "the leader is cut off", 240
            )
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130, out
    assert {peer["cut"] for peer in database.status()["peers"]} == {None}

    def whole() -> bool:
        routes = [r for p in database.status()["peers"] for r in p["routes"] if r["role"]]
        return all(len(r["endpoints"]) == (1 if r["role"] == "master" else 2) for r in routes)

    wait_for(whole, "one leader and two replicas are seen by everyone", 180)
