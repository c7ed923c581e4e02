"""`./mesh compose` where there is no engine or no mesh; tests/compose has it with an engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshctl import __main__, runs


@pytest.fixture(autouse=True)
def _no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `docker` that finds no engine."""
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon at unix:///x.' >&2\nexit 1\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(runs, "base_folder", lambda: tmp_path / "runs")


@pytest.mark.parametrize("command", [["up"], ["ps"], ["logs"], ["exec", "api-0", "true"], ["down"]])
def test_no_engine_is_said_by_every_command(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """One message with the way to start an engine, exit code 2, nothing made."""
    assert __main__.run(["compose", *command]) == 2
    said = capsys.readouterr().err
    assert "no Docker engine answers" in said
    assert "systemctl start docker" in said


def test_unknown_cluster_is_refused_before_the_engine_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt cluster is answered with the right one."""
    assert __main__.run(["compose", "up", "clusters/startr"]) == 2
    assert "did you mean clusters/starter?" in capsys.readouterr().err


def test_no_mesh_on_the_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With an engine and no mesh, `ps` says how to bring one up and `down` has nothing to end."""
    (tmp_path / "docker").write_text('#!/bin/sh\n[ $1 = version ] && echo \'{"Version": "24.0.1"}\'\nexit 0\n')
    assert __main__.run(["compose", "ps"]) == 2
    assert "./mesh compose up clusters/starter" in capsys.readouterr().err
    assert __main__.run(["compose", "down"]) == 0
    assert "nothing to end" in capsys.readouterr().out
    assert __main__.run(["compose", "ps", "clusters/other"]) == 2
    assert "no mesh called 'other'" in capsys.readouterr().err
