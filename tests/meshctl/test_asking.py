"""A coordinator is asked once its evidence holds, from here or out of a lab."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any

import pytest

from admission.client import CoordinatorError
from meshctl.asking import Question, Trust, _ask, main
from tests.coordinator.world import OWNER, TEE, Running, cluster
from tests.topology.support import after
from topology.envelope import seal


def question(lead: Running, envelope: str = "", **changes: Any) -> Question:
    """Which manifest is in force?"""
    asked = Question(
        url=lead.url, references=envelope or lead.coordinator.head.signed.envelope, method="GET", path="/v1/manifest"
    )
    return dataclasses.replace(asked, **changes)


async def test_a_coordinator_is_asked_that_is_what_the_manifest_demands() -> None:
    """And one that is not, or whose quote nobody vouches for, is sent nothing."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        trust = Trust(pccs_url=mesh.pccs_url, dev_root=TEE.root_der)
        head = lead.coordinator.head.signed
        answer = await _ask(question(lead), trust)
        assert (answer.code, answer.tree["digest"]) == ("", head.digest)
        newer = seal(after(head, leaf_hours=9), OWNER)
        set_it = {"method": "POST", "body": {"envelope": newer}}
        assert (await _ask(question(lead, **set_it), trust)).tree["epoch"] == 2
        refused = await _ask(question(lead, **{**set_it, "body": {"envelope": "garbage"}}), trust)
        assert (refused.code, refused.tree["code"]) == ("BAD_REQUEST", "BAD_REQUEST")

        other = dataclasses.replace(head.manifest.coordinators, compose_hashes=("22" * 32,))
        foreign = seal(after(lead.coordinator.head.signed, coordinators=other), OWNER)
        for asked, trusted in (
            (question(lead, foreign, method="POST", body={"envelope": foreign}), trust),
            (question(lead), dataclasses.replace(trust, dev_root=None)),
        ):
            with pytest.raises(CoordinatorError, match="evidence is refused"):
                await _ask(asked, trusted)


def test_out_of_a_lab_an_answer_and_an_error_are_json() -> None:
    """Nobody listens there: the error is one for a person."""
    asked = dataclasses.asdict(
        Question(url="https://127.0.0.1:1", references=seal(_manifest(), OWNER), method="GET", path="/v1/manifest")
    )
    root = base64.b64encode(TEE.root_der).decode()
    found = json.loads(main(json.dumps(asked), {"MESH_INSECURE_DEV_ROOT": root, "MESH_PCCS_URL": "http://127.0.0.1:1"}))
    assert "cannot be reached" in found["error"]


def _manifest() -> Any:
    from tests.coordinator.world import make_manifest

    return make_manifest()
