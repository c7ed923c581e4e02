"""`list` and `version`."""

from __future__ import annotations

import json
import tomllib

import pytest

from meshctl import __main__, info, tools
from tests.support import ROOT


def test_version_is_the_projects(capsys: pytest.CaptureFixture[str]) -> None:
    """`version --json` gives the version in pyproject.toml and the tools' pinned versions."""
    assert __main__.run(["version", "--json"]) == 0
    versions = json.loads(capsys.readouterr().out)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert versions["cvm-mesh"] == project["version"]
    assert set(versions) == {"cvm-mesh", *tools.REQUIRED}


def test_list_names_the_starter(capsys: pytest.CaptureFixture[str]) -> None:
    """`list` shows each cluster in the form that `up` takes."""
    assert __main__.run(["list"]) == 0
    assert "clusters/starter" in capsys.readouterr().out.splitlines()


def test_list_says_when_there_is_none(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty list is empty on stdout and explained on stderr."""
    monkeypatch.setattr(info, "ROOT", tmp_path)
    assert __main__.run(["list"]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "no clusters in" in shown.err
