"""What the docs say about the programs is what the programs do."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from coordinator.config import parse as read_coordinator
from peer.rendezvous import read_config as read_rendezvous
from runtime.env import ConfigError, EnvReader
from tests.support import ROOT


@pytest.mark.parametrize(
    ("heading", "read"), [("python -m coordinator", read_coordinator), ("python -m peer.rendezvous", read_rendezvous)]
)
def test_every_variable_is_documented(
    heading: str, read: Callable[[Mapping[str, str]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table of a program names exactly the variables that it reads."""
    asked: set[str] = set()
    original = EnvReader.finish

    def finish(self: EnvReader) -> None:
        asked.update(self._known)
        original(self)

    monkeypatch.setattr(EnvReader, "finish", finish)
    with pytest.raises(ConfigError):
        read({})
    text = (ROOT / "docs" / "configuration-coordinator.md").read_text(encoding="utf-8")
    section = text.split(f"## `{heading}`")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(MESH_\w+)`", section, re.MULTILINE)) == asked


def test_links_between_documents_lead_somewhere() -> None:
    """Every relative link in a document names a file that exists."""
    broken = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("clusters/*/*.md")]
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
        if not (path.parent / target).exists()
    ]
    assert broken == []
