"""The owner's walk as a person sees it: `./mesh demo trust`, then generate, sign and set on the mesh that runs on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.e2e.user import Mesh, run_mesh, running

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

LOST = re.compile(r"calls of (\S+) that were lost, of (\d+) +(\d+)")


def test_nothing_is_lost_on_the_walk_and_the_mesh_goes_on() -> None:
    """Each step is shown; no call of an unchanged CVM is lost, and no process of it restarts."""
    with running("trust", "demo", "trust", timeout=1000) as mesh:
        out = mesh.up_output
        for step in ("route is added", "caller is revoked", "file changes", "is evicted", "Verified from", "rollback"):
            assert step in out
        table = out[out.rindex("measured") :]
        assert "FAILED" not in table
        lost = {peer: (int(calls), int(number)) for peer, calls, number in LOST.findall(table)}
        assert set(lost) == {"api-0", "api-1", "worker-0"}
        assert all(number == 0 and calls > 100 for calls, number in lost.values()), lost
        assert re.search(r"processes of unchanged CVMs that restarted +0 +0", table)
        assert "exit code 16: not verified (digest)" in out
        assert "kept, as edited by hand: " in out, "the revoked caller, when the hash changes"
        found = re.search(r"its files are in (\S+)", out)
        assert found
        generates_signs_and_sets(mesh, Path(found[1]))
    assert not Path(found[1]).exists(), "its files go with the mesh"


def generates_signs_and_sets(mesh: Mesh, folder: Path) -> None:
    """The same by hand: what generate wrote is kept, edited, signed with the lab's key, and set; then CI is content."""

    def run(command: str, *options: str) -> str:
        done = run_mesh(command, str(folder), "--name", mesh.name, *options, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    draft = folder / "manifest.json"
    tree = json.loads(draft.read_text())
    assert [peer["peer_id"] for peer in tree["groups"]["worker"]["peers"]] == ["worker-0"], "evict edits it, too"
    draft.write_text(json.dumps(tree | {"leaf_hours": 9}))
    assert "kept, as edited by hand: ~ leaf_hours: 8 → 9" in run("generate")
    assert "manifest.lab.signed" in run("sign")
    done = mesh.run("set", "--manifest", str(folder / "manifest.lab.signed"), "--yes", timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is what a run would write" in run("generate", "--check")
    assert "in force already" in run("sign")
