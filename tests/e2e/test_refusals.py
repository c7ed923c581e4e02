"""CVMs that must not be admitted, in a running mesh: what they see, what the others see.

Each way a quote, a log or a binding can be wrong is in tests/coordinator/test_broker.py and tests/evidence.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import Any

import pytest

from meshctl import bring_up, runs
from meshctl.console import Silent
from tests.e2e.changed_lab import CLAIMED, DOUBLE, TAMPERED
from tests.e2e.user import Mesh, wait_for
from tests.support import ROOT, need_root_or_userns

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

HONEST = ("coordinator-0", "api-0", "api-1")


@pytest.fixture(scope="module")
def changed_mesh() -> Iterator[Mesh]:
    """A starter mesh with three workers, two of which are not what they should be."""
    need_root_or_userns()
    run = runs.run_of(f"refuse-{os.getpid()}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "launch", functools.partial(runs.launch, module="tests.e2e.changed_lab"))
        try:
            starter = ROOT / "clusters" / "starter"
            bring_up.bring_up(run, starter, {"replicas.worker": "3"}, "preserving", Silent(), pin_peers=True)
            yield Mesh(name=run.name, up_output="")
        finally:
            runs.end(run)


def _peers(mesh: Mesh) -> dict[str, Any]:
    return {peer["peer_id"]: peer for peer in mesh.status()["peers"]}


def _settled(mesh: Mesh) -> dict[str, Any]:
    """The peers, once the honest ones are ready, one worker serves, and both refusals are told."""
    peers: dict[str, Any] = {}

    def settled() -> bool:
        peers.update(_peers(mesh) if (runs.run_of(mesh.name).folder / runs.CONTROL_SOCKET).exists() else {})
        return (
            bool(peers)
            and all(peers[name]["ready"] for name in HONEST)
            and peers[CLAIMED]["ready"] != peers[DOUBLE]["ready"]
            and "ADMISSION_REJECTED: compose hash" in _reason(peers[TAMPERED])
            and all(_workers(peers[name]) == [CLAIMED] for name in HONEST[1:])
            and any("SLOT_TAKEN" in _reason(peers[name]) for name in (CLAIMED, DOUBLE))
        )

    try:
        wait_for(settled, "the honest are ready and the others are told why not", 60)
    except AssertionError as error:
        raise AssertionError({name: _reason(peer) for name, peer in peers.items()}) from error
    return peers


def _workers(peer: dict[str, Any]) -> list[str]:
    return next(list(route["endpoints"]) for route in peer["routes"] if route["name"] == "worker")


def _reason(peer: dict[str, Any]) -> str:
    return "; ".join(peer["reasons"])


def test_tampered_compose_file_is_never_admitted(changed_mesh: Mesh) -> None:
    """A CVM with another compose hash is nobody's endpoint, and its status names the reason; the others serve."""
    peers = _settled(changed_mesh)
    assert not peers[TAMPERED]["ready"]
    assert peers[TAMPERED]["address"] is None
    log = changed_mesh.run("logs", "coordinator-0", "-n", "2000").stdout
    assert "compose hash" in log
    assert f"event=admitted peer_id={TAMPERED}" not in log


def test_living_peers_slot_is_not_given_twice(changed_mesh: Mesh) -> None:
    """Of two genuine CVMs that ask for one slot one serves; the other waits and says who is in its way."""
    peers = _settled(changed_mesh)
    refused = CLAIMED if peers[DOUBLE]["ready"] else DOUBLE
    assert f"SLOT_TAKEN: {CLAIMED} is held by another instance" in _reason(peers[refused])
    assert changed_mesh.fetch("api-0", "http://worker:9090/hello").startswith("hello from worker-")
