"""Which versions of Patroni are started."""

from __future__ import annotations

import importlib.metadata
import tomllib

import pytest

from tests.support import ROOT
from workloads.patroni import versions


@pytest.mark.parametrize(
    ("version", "refused"), [("4.1.5", False), ("4.1.99", False), ("4.2.0", True), ("4.10.0", True), ("5", True)]
)
def test_only_tried_minor_versions_are_started(version: str, refused: bool) -> None:
    """A patch release of a tried minor is started; anything else is refused, and the versions that were tried named."""
    said = versions.refusal(version)
    assert (said is not None) is refused
    if said is not None:
        assert version in said
        assert "4.1.x" in said


def test_pip_resolves_what_is_started() -> None:
    """The range in pyproject.toml spans the tried minors and no other, and the pinned version is one of them."""
    first, last = versions.TRIED[0], versions.TRIED[-1]
    major, minor = last.split(".")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [item for item in project["optional-dependencies"]["patroni"] if item.startswith("patroni")]
    assert wanted == [f"patroni[consul]>={first},<{major}.{int(minor) + 1}"]
    assert versions.refusal(importlib.metadata.version("patroni")) is None
