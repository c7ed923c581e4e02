"""The manifest that a sidecar finds when its container starts again."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.kept import FILE, keep, read, try_once
from tests.sidecar.world import OWNER, manifest
from tests.topology.support import after, opened

FIRST = opened(manifest(), OWNER)


def test_the_newest_is_found_again(tmp_path: Path) -> None:
    """For its owner's eyes only, as all in that folder."""
    assert read(tmp_path, "demo") is None
    newest = opened(after(FIRST), OWNER)
    for signed in (FIRST, newest):
        keep(tmp_path, signed)
        assert read(tmp_path, "demo") == signed
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "garbage", FIRST.envelope[:-300], "\xff"])
def test_what_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    """Then it is asked for."""
    (tmp_path / FILE).write_text(text, encoding="latin-1")
    assert read(tmp_path, "demo") is None


def test_it_has_to_be_of_this_cluster(tmp_path: Path) -> None:
    """Whose environment names another one by now. A manifest without this CVM's group is kept, for older ones."""
    keep(tmp_path, FIRST)
    assert read(tmp_path, "other") is None
    assert read(tmp_path, "demo") == FIRST


def test_what_a_start_ended_over_is_kept_and_not_tried_again(tmp_path: Path) -> None:
    """Until it was carried out after all, or there is another."""
    keep(tmp_path, FIRST)
    assert try_once(tmp_path, FIRST)
    assert not try_once(tmp_path, FIRST)
    assert read(tmp_path, "demo") == FIRST
    assert try_once(tmp_path, opened(after(FIRST), OWNER))
    keep(tmp_path, FIRST)
    assert try_once(tmp_path, FIRST)


def test_where_it_cannot_be_noted_it_is_tried(tmp_path: Path) -> None:
    """A disk that takes nothing does not keep a CVM from its routes."""
    (tmp_path / "file").touch()
    assert try_once(tmp_path / "file", FIRST)
