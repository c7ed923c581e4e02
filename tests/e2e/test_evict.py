"""A CVM is evicted while the others call each other: the gossip key that it knows is replaced, and nothing is lost."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshctl import runs
from meshctl import status as statuses
from tests.e2e.test_set import calls, enough, processes
from tests.e2e.user import Mesh, running, wait_for
from tests.support import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(500)]

ASK = """
import asyncio, sys
from runtime.keyring import Member
from runtime.secret import Secret
name, address, *keys = sys.argv[1:]
known = tuple(map(Secret, keys))
print(*[asyncio.run(Member(name, address).ask(key, known)).opens for key in known])
"""
"""Whether a member opens what is sealed with each of the keys."""


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    """A starter mesh."""
    with running("evict", "up", "clusters/starter") as found:
        yield found


def sidecars(mesh: Mesh) -> dict[str, Any]:
    """What each sidecar and coordinator says of itself, by peer ID."""
    found = (machine["sidecar"] for machine in statuses.collect(runs.run_of(mesh.name))["machines"])
    return {each["peer_id"]: each for each in found if each}


def key_of(sidecar: Any) -> str:
    """The gossip key that a CVM's agent starts with, out of its memory."""
    folder = Path(f"/proc/{sidecar['children']['consul']['pid']}/root/run/mesh-private/consul/config")
    return str(json.loads((folder / "agent.json").read_text())["encrypt"])


def opens(sidecar: Any, *keys: str) -> list[str]:
    """Whether the agent opens what is sealed with each of `keys`, asked in its own network."""
    pid = str(sidecar["children"]["consul"]["pid"])
    argv = ["nsenter", "-t", pid, "-n", sys.executable, "-c", ASK, sidecar["peer_id"], sidecar["address"], *keys]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_key_that_an_evicted_cvm_knows_opens_nothing_any_more(mesh: Mesh) -> None:
    """No call of the others is lost, no process restarts, no endpoint but its own leaves a route."""
    before, known = processes(mesh), sidecars(mesh)
    old = key_of(known["worker-1"])
    assert len(base64.b64decode(old)) == 32
    assert opens(known["api-0"], old) == ["True"]
    load = {
        "api-0": calls(mesh, "api-0", "http://api:8080/hello"),
        "worker-0": calls(mesh, "worker-0", "http://api:8080/hello"),
    }
    done = mesh.run("evict", "worker-1", "--yes", timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a new gossip key takes the place of the old one" in done.stdout
    began = time.monotonic()
    seen: set[tuple[str, ...]] = set()

    def replaced() -> bool:
        now = sidecars(mesh)
        for peer in ("api-0", "api-1", "worker-0"):
            routes = {route["name"]: tuple(sorted(route["endpoints"])) for route in now[peer]["routes"]}
            seen.update({routes["api"], tuple(name for name in routes["worker"] if name != "worker-1")})
        return {now[peer]["gossip_ring"] for peer in ("api-0", "api-1", "worker-0", "coordinator-0")} == {"1"}

    wait_for(replaced, "all others have the new key alone", 120)
    print(f"replaced {time.monotonic() - began:.1f} s after it was set")
    assert seen == {("api-0", "api-1"), ("worker-0",)}
    now = sidecars(mesh)
    new = key_of(now["api-0"])
    assert new != old
    for peer in ("api-0", "api-1", "worker-0"):
        assert opens(now[peer], old, new) == ["False", "True"]
    assert key_of(now["worker-1"]) == old, "who is evicted is told nothing"
    assert opens(now["worker-1"], old, new) == ["True", "False"]
    for peer, each in load.items():
        enough(mesh, peer, each)
    gone = {name: entry for name, entry in processes(mesh).items() if before[name] != entry}
    assert {name for name in gone if not name.startswith("worker-1")} == set()
    told = "EVICTED: the manifest in force has no slot worker-1 any more"
    wait_for(lambda: told in "".join(mesh.peer("worker-1")["reasons"]), "its own status says so", 60)
