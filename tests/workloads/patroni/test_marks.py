"""Marks of work on a data directory that is under way."""

from __future__ import annotations

from pathlib import Path

import pytest

from workloads.patroni.marks import BEHIND, MAKING, REWIND, Mark


@pytest.mark.parametrize("mark", [MAKING, REWIND, BEHIND], ids=lambda mark: mark.suffix)
def test_a_mark_lies_beside_the_data_directory_until_it_is_cleared(mark: Mark, tmp_path: Path) -> None:
    """initdb wants an empty folder; clearing a mark that is not there is no error."""
    data = tmp_path / "data"
    data.mkdir()
    assert not mark.is_set(data)
    mark.set(data)
    assert [other.is_set(data) for other in (MAKING, REWIND, BEHIND)] == [
        other is mark for other in (MAKING, REWIND, BEHIND)
    ]
    assert not list(data.iterdir())
    for _ in range(2):
        mark.clear(data)
        assert not mark.is_set(data)
