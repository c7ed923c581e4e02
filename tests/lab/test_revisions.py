"""A CVM that is deployed anew: the same instance, another compose hash."""

from __future__ import annotations

import pytest

from lab.revisions import revised
from lab.tee import DevTee
from tests.lab.test_plan import plan
from topology.owners import Owners
from topology.render import owners_of

TEE = DevTee(b"seed" * 8)
CVM = next(cvm for cvm in plan().cvms if cvm.machine.name == "worker-cvm1")
TEXT = CVM.compose.path.read_text()


def owners() -> Owners:
    """Whose key the plan has put into the file."""
    found = owners_of(CVM.compose.text)
    assert found is not None
    return found


def test_it_is_the_same_instance_and_measures_what_the_file_says_now() -> None:
    """What it runs stays, wherever in the file it stands; the same text is the same hash."""
    after = revised(CVM, f"# changed\n{TEXT}", owners(), plan().cluster, TEE)
    assert after.identity.compose_hash != CVM.identity.compose_hash
    assert (after.identity.app_id, after.identity.instance_id) == (CVM.identity.app_id, CVM.identity.instance_id)
    assert "# changed" in after.identity.app_compose
    assert after.machine == CVM.machine
    assert revised(after, TEXT, owners(), plan().cluster, TEE).identity.compose_hash == CVM.identity.compose_hash


def test_what_would_run_something_else_is_refused() -> None:
    """A lab that measures what it does not run would show what cannot be."""
    with pytest.raises(ValueError, match="other services than when this lab began"):
        revised(CVM, TEXT.replace("/app/worker", "/app/api"), owners(), plan().cluster, TEE)
    with pytest.raises(ValueError, match=r"worker\.yaml"):
        revised(CVM, "services: [", owners(), plan().cluster, TEE)
