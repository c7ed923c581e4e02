"""Where `./mesh generate` learns what runs. What a lab answers: test_deployment.py, tests/e2e/test_trust.py."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lab.init import start_time
from meshctl import generate_sources, runs
from meshctl.errors import UserError


@pytest.fixture
def labs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two labs of one cluster run, and one of another."""
    monkeypatch.setattr(runs, "base_folder", lambda: tmp_path)
    for name, cluster in (("one", "mine"), ("two", "mine"), ("other", "theirs")):
        folder = runs.run_of(name).folder
        folder.mkdir()
        (folder / "lab.json").write_text(json.dumps({"pid": os.getpid(), "start_time": start_time(os.getpid())}))
        (folder / "request.json").write_text(json.dumps({"cluster": str(tmp_path / cluster)}))
    return tmp_path


def test_the_lab_of_a_cluster_is_found_by_its_folder(labs: Path) -> None:
    """Not just any that runs; several have to be told apart."""
    found = generate_sources.lab_of(labs / "theirs", None)
    assert found is not None
    assert found.name == "other"
    assert generate_sources.lab_of(labs / "nobodys", None) is None
    with pytest.raises(UserError, match=r"several labs of .*mine run: one, two"):
        generate_sources.lab_of(labs / "mine", None)
    named = generate_sources.lab_of(labs / "mine", "two")
    assert named is not None
    assert named.name == "two"
    with pytest.raises(UserError, match=r"'other' is of .*theirs, not of .*mine"):
        generate_sources.lab_of(labs / "mine", "other")


def test_a_lab_of_another_cluster_is_named(labs: Path) -> None:
    """Where none runs of this one; without any lab nothing is said."""
    told = generate_sources.other_labs(labs / "nobodys")
    assert "the lab 'other' is of" in told
    assert told.endswith("and none runs of " + str(labs / "nobodys") + ". For a deployment of it ")
    for lab in labs.rglob("lab.json"):
        lab.unlink()
    assert generate_sources.other_labs(labs / "nobodys") == ""


def test_what_was_generated_lies_beside_and_says_from_what(tmp_path: Path) -> None:
    """Without it a manifest counts as a deployment's."""
    draft = tmp_path / "manifest.json"
    assert generate_sources.beside(draft) == tmp_path / "manifest.generated.json"
    assert generate_sources.source_of(draft) == "outputs"
    generate_sources.beside(draft).write_text('{"from": "lab", "manifest": {}}')
    assert generate_sources.source_of(draft) == "lab"
    generate_sources.beside(draft).write_text('{"from": ["x"]}')
    assert generate_sources.source_of(draft) == "outputs"
