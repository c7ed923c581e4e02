from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sidecar.config import reference
from tests.sidecar.world import environment
from tests.support import ROOT


def sidecar(*argv: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sidecar", *argv],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_bad_environment_is_told_whole_and_exits_2() -> None:
    """Every problem on standard error, nothing on standard output, no traceback."""
    result = sidecar(env={"MESH_CLUSTER": "demo", "MESH_GRUOP": "api", "MESH_LOG_LEVEL": "loud"})
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.splitlines()[0] == "the sidecar's configuration has 5 problem(s):"
    for line in (
        "MESH_GROUP: is not set; expected the name of a workload group",
        "MESH_GRUOP: is not a known variable; did you mean MESH_GROUP?",
        "MESH_LOG_LEVEL: is 'loud', expected debug, info, warning or error",
    ):
        assert line in result.stderr.splitlines()


def test_config_reference_is_printed() -> None:
    """`config-reference` prints docs/configuration.md."""
    assert sidecar("config-reference").stdout == reference()


def test_unknown_arguments_exit_2() -> None:
    """A misspelt command is not taken for "run"."""
    result = sidecar("helth")
    assert result.returncode == 2
    assert "expected none, 'health' or 'config-reference'" in result.stderr


def test_missing_program_exits_2_with_its_variable(tmp_path: Path) -> None:
    """A program that is not there is named before anything is started."""
    env = environment(
        MESH_STATE_DIR=str(tmp_path / "state"),
        MESH_RUN_DIR=str(tmp_path / "run"),
        MESH_ENVOY="/does/not/exist",
        MESH_CONSUL="/bin/true",
    )
    result = sidecar(env=env)
    assert result.returncode == 2
    assert "MESH_ENVOY: is '/does/not/exist', expected a program that can be run" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()
