"""The mark of a new cluster that is being made."""

from __future__ import annotations

from pathlib import Path

from workloads.patroni import making


def test_the_mark_lies_beside_the_data_directory_until_it_is_taken_away(tmp_path: Path) -> None:
    """initdb wants an empty folder; taking away a mark that is not there is no error."""
    data = tmp_path / "data"
    data.mkdir()
    assert not making.is_under_way(data)
    making.begin(data)
    assert making.is_under_way(data)
    assert not list(data.iterdir())
    for _ in range(2):
        making.end(data)
        assert not making.is_under_way(data)
