"""Which names of routes a boot remembers."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar import former


def test_names_are_kept_within_a_boot(tmp_path: Path) -> None:
    """What was written is read again, by whoever starts next in the same folder."""
    assert former.read(tmp_path) == ()
    former.keep(tmp_path, ("a", "b"))
    assert former.read(tmp_path) == ("a", "b")


@pytest.mark.parametrize("text", ["", "{}", "[" * 100000, '["a", 1, "a.b", null, "-", ""]', "\xff", "NaN"])
def test_nonsense_is_no_names(tmp_path: Path, text: str) -> None:
    """A file that a full disk or somebody's hand has broken stops nothing."""
    (tmp_path / former.FILE).write_text(text, encoding="latin-1")
    assert former.read(tmp_path) in ((), ("a",))


def test_names_in_force_are_the_last_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were in force longest ago give way."""
    monkeypatch.setattr(former, "MAX_NAMES", 3)
    assert former.added((), ["b", "a"]) == ("a", "b")
    assert former.added(("a", "b"), ["c"]) == ("a", "b", "c")
    assert former.added(("a", "b", "c"), ["a", "d"]) == ("c", "a", "d")
