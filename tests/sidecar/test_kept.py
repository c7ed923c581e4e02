"""The manifest that a sidecar finds when its container starts again."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.kept import FILE, keep, read
from tests.sidecar.world import OWNER, manifest
from tests.topology.support import after, opened

FIRST = opened(manifest(), OWNER)


def test_the_newest_is_found_again(tmp_path: Path) -> None:
    """For its owner's eyes only, as all in that folder."""
    assert read(tmp_path, "demo", "api") is None
    newest = opened(after(FIRST), OWNER)
    for signed in (FIRST, newest):
        keep(tmp_path, signed)
        assert read(tmp_path, "demo", "api") == signed
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "garbage", FIRST.envelope[:-300], "\xff"])
def test_what_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    """Then it is asked for."""
    (tmp_path / FILE).write_text(text, encoding="latin-1")
    assert read(tmp_path, "demo", "api") is None


def test_it_has_to_be_this_cvms(tmp_path: Path) -> None:
    """Whose environment names another cluster or group by now."""
    keep(tmp_path, FIRST)
    assert read(tmp_path, "other", "api") is None
    assert read(tmp_path, "demo", "none") is None
