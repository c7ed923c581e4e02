"""Run folders and the labs in them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from meshctl import runs
from meshctl.errors import UserError
from tests.support import need_root_or_userns


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "base_folder", lambda: tmp_path / "runs")


def test_bad_name_is_refused_with_the_rule() -> None:
    """A name that cannot be a folder and a host name is refused."""
    with pytest.raises(UserError, match="no name for a mesh"):
        runs.run_of("My Mesh")


def test_no_mesh_says_how_to_start_one() -> None:
    """Without a mesh the error says which command makes one."""
    with pytest.raises(UserError) as error:
        runs.find(None)
    assert "./mesh demo" in error.value.remedy


def test_run_folder_is_private_and_replaces_a_crashed_one() -> None:
    """The folder is for its owner alone, and what a dead mesh left is cleared."""
    run = runs.run_of("one")
    runs.create_folder(run)
    (run.folder / "left").touch()
    runs.create_folder(run)
    assert run.folder.stat().st_mode & 0o077 == 0
    assert not (run.folder / "left").exists()


def start(name: str, script: str) -> runs.Run:
    """A lab whose daemon is a shell script."""
    need_root_or_userns()
    run = runs.run_of(name)
    runs.create_folder(run)
    command = [sys.executable, "-S", "-m", "lab.init", str(run.folder), "/bin/sh", "-c", script]
    import subprocess

    environment = {**os.environ, "PYTHONPATH": str(runs.CHECKOUT)}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, timeout=20)
    return run


def test_two_meshes_run_side_by_side_and_must_be_named() -> None:
    """With two meshes a command asks which; each is found by its name and ended alone."""
    first, second = start("one", "exec sleep 300"), start("two", "exec sleep 300")
    try:
        with pytest.raises(UserError, match="several meshes"):
            runs.find(None)
        assert runs.find("two") == second
        with pytest.raises(UserError, match="running already"):
            runs.create_folder(first)
    finally:
        runs.end(first)
        assert runs.find(None) == second
        runs.end(second)
    assert not runs.base_folder().exists()


def test_a_daemon_that_ignores_the_request_to_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL after the grace: nothing stays."""
    monkeypatch.setattr(runs, "_END_SECONDS", 0.2)
    run = start("one", "trap '' TERM; while :; do sleep 0.1; done")
    record = run.record()
    assert record is not None
    runs.end(run)
    assert not Path(f"/proc/{record['pid']}").exists() or not run.alive
    assert not run.folder.exists()


def test_a_silent_lab_is_reported_with_the_remedy() -> None:
    """A lab without a control socket: one error that names it."""
    run = runs.run_of("one")
    runs.create_folder(run)
    with pytest.raises(UserError, match="does not answer"):
        run.call("GET", "/status")


def test_nearest_name_comes_first() -> None:
    """A typo is answered with what was meant, where that can be told, and with all there are."""
    known = ("worker-1", "api-0", "worker-0")
    assert runs.nearest("wroker-1", known) == "did you mean worker-1? this mesh has api-0, worker-0, worker-1"
    assert runs.nearest("x", known) == "this mesh has api-0, worker-0, worker-1"
