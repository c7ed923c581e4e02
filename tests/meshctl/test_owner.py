"""What an owner does to a lab, as far as no lab is needed. The rest: tests/e2e/test_trust.py and test_emojivoto.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshctl import runs
from meshctl.console import Silent
from meshctl.errors import UserError
from meshctl.owner import Owner, copy_of
from meshctl.runs import run_of


def test_a_copy_has_what_was_shipped_and_nothing_of_a_deployment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of the cluster, in a folder of its name, which is no mesh by itself and goes with the mesh."""
    monkeypatch.setattr(runs, "base_folder", lambda: tmp_path / "base")
    run = run_of("vote")
    for _ in range(2):
        folder = copy_of("emojivoto", run)
        assert folder.name == "emojivoto"
        assert (folder / "cluster.tf").is_file()
        assert (folder / "compose" / "web.yaml").is_file()
        assert not [path for path in folder.rglob("*") if path.name.startswith(("manifest", ".terraform"))]
        (folder / "manifest.json").touch()
    assert runs.all_runs() == []
    runs.end(run)
    assert not folder.exists()
    assert not (tmp_path / "base").exists()


def test_facts_fail_the_walk_and_times_do_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table at the end has both; a fact that is not as it has to be is exit code 1."""
    owner = Owner(run=run_of("nobody"), folder=tmp_path, progress=Silent())
    owner.time("a certificate", 3.0, 2.0)
    owner.fact("a page", "shown", met=True, aim="shown")
    owner.finish()
    table = capsys.readouterr().out
    assert "missed" in table
    assert "FAILED" not in table
    owner.fact("a stranger", "let in", met=False, aim="refused")
    with pytest.raises(UserError, match="not as it has to be: a stranger") as caught:
        owner.finish()
    assert caught.value.exit_code == 1
