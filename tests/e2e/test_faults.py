"""Faults that a person makes by command: one process killed, a CVM cut off one way or both."""

from __future__ import annotations

import pytest

from tests.e2e.user import Mesh, wait_for
from tests.support import process_runs

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_killing_one_process_is_answered_with_what_runs_when_there_is_none(mesh: Mesh) -> None:
    """`kill --process` ends that program only; a wrong name is one message with the right ones."""
    before = mesh.wait_whole()
    old = next(peer for peer in before["peers"] if peer["peer_id"] == "worker-1")["children"]["envoy"]["pid"]
    assert mesh.run("kill", "worker-1", "--process", "envoy").returncode == 0
    wait_for(lambda: mesh.peer("worker-1")["children"]["envoy"]["pid"] not in (None, old), "Envoy was replaced", 60)
    assert not process_runs(old)
    mesh.wait_whole()
    done = mesh.run("kill", "worker-1", "--process", "envoi")
    assert done.returncode == 2
    assert "no process 'envoi' runs in worker-1; there is" in done.stderr
    assert "did you mean envoy?" in done.stderr


@pytest.mark.parametrize("direction", ["in", "out", "both"])
def test_a_cvm_that_is_cut_off_is_no_endpoint_until_it_is_healed(mesh: Mesh, direction: str) -> None:
    """Gossip gives up a CVM that hears nothing or is heard by nobody; healed, it serves again, without a restart."""
    before = mesh.wait_whole()
    children = next(peer for peer in before["peers"] if peer["peer_id"] == "worker-1")["children"]
    assert mesh.run("cut", "worker-1", "--direction", direction).returncode == 0
    assert mesh.peer("worker-1")["cut"] == direction

    def gone() -> bool:
        peers = [peer for peer in mesh.status()["peers"] if peer["peer_id"] in ("api-0", "api-1", "worker-0")]
        return all(r["endpoints"] == ["worker-0"] for p in peers for r in p["routes"] if r["name"] == "worker")

    try:
        wait_for(gone, "worker-1 is nobody's endpoint", 60)
    finally:
        assert mesh.run("heal", "worker-1").returncode == 0
    assert mesh.peer("worker-1")["cut"] is None
    mesh.wait_whole(120)
    assert mesh.peer("worker-1")["children"]["consul"]["pid"] == children["consul"]["pid"]
