"""How an owner's mesh is asked. In a lab: tests/e2e/test_set.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshctl import owner_access, runs, status
from meshctl.asking import Answer
from meshctl.errors import UserError
from meshctl.owner_access import Lab, Mesh, deployed
from tests.coordinator.world import OWNERS
from tests.meshctl.test_set_command import FIRST, NEXT, URL, Coordinator, lab
from topology.envelope import open_envelope

__all__ = ["lab"]


def test_a_coordinators_refusal_has_its_reason() -> None:
    """Another owner was faster."""
    late = Answer(tree={"head": {}}, code="MANIFEST_STALE", reason="epoch 2 (x) was set before")
    with pytest.raises(UserError, match=r"MANIFEST_STALE: epoch 2 \(x\) was set before") as caught:
        Coordinator(refusal=late).mesh.put(NEXT.envelope)
    assert caught.value.exit_code == 1


def test_an_answer_that_is_no_manifest_is_refused() -> None:
    """An attested coordinator may be out of order."""
    odd = Mesh(name="m", url=URL, ask=lambda _: Answer(tree={"envelope": 5}))
    with pytest.raises(UserError, match="cannot be read"):
        odd.head(NEXT.envelope)


def test_a_labs_owner_signs_what_follows(lab: Coordinator, tmp_path: Path) -> None:
    """The draft is what is in force, one epoch later; the key is the lab's."""
    here = Lab(mesh=lab.mesh, folder=tmp_path)
    draft = here.draft()
    assert (draft.epoch, draft.previous) == (2, FIRST.digest)
    assert open_envelope(here.sign(draft), OWNERS).manifest == draft


def test_a_deployed_mesh_is_asked_by_https_only() -> None:
    """The coordinator's evidence is in its certificate."""
    with pytest.raises(UserError, match="https only"):
        deployed("http://c.example:8787", "https://pccs.example", None)


def test_the_only_coordinator_of_a_lab_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever evicts it hears that, and not that none is ready."""
    machines = [{"peer_id": "coordinator-0", "group": "coordinator", "sidecar": {"ready": True}}]
    monkeypatch.setattr(runs, "find", lambda _: runs.Run("demo", tmp_path))
    monkeypatch.setattr(status, "collect", lambda _: {"machines": machines})
    with pytest.raises(UserError, match="coordinator-0 is the only coordinator"):
        owner_access.lab(None, but="coordinator-0")
    machines[0]["sidecar"] = {}
    with pytest.raises(UserError, match="no coordinator of 'demo' is ready"):
        owner_access.lab(None, but="worker-0")
