"""`./mesh tools`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from meshctl import __main__, tools
from tests.meshctl.test_tools import program


@pytest.fixture
def _tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for tool in tools.TOOLS.values():
        monkeypatch.delenv(tool.variable, raising=False)
        if not tool.optional:
            monkeypatch.setenv(tool.variable, str(program(tmp_path / tool.name, "v9.8.7")))


@pytest.mark.usefixtures("_tools")
def test_json_is_the_documented_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` names every tool with path, source and version."""
    assert __main__.run(["tools", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"kernel_wireguard", "tools"}
    consul = next(row for row in report["tools"] if row["name"] == "consul")
    assert consul == {
        "name": "consul", "path": str(tmp_path / "consul"), "source": "MESH_CONSUL", "version": "9.8.7",
    }  # fmt: skip


@pytest.mark.usefixtures("_tools")
def test_table_is_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table shows whole paths, also into a pipe, and says whether the kernel has WireGuard."""
    assert __main__.run(["tools"]) == 0
    shown = capsys.readouterr().out
    assert str(tmp_path / "wireguard-go") in shown
    assert "kernel WireGuard: " in shown


@pytest.mark.usefixtures("_tools")
def test_check_builds_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`--check` reports a missing tool with exit code 1 and leaves the cache untouched."""
    monkeypatch.delenv("MESH_CONSUL")
    assert __main__.run(["tools", "--check"]) == 1
    assert "missing" in capsys.readouterr().out
    assert not tools.cache_root(os.environ).exists()
