"""How a member stands, as a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from workloads.patroni.standing import FILE, Standing, State, read, write


def test_standing_is_read_back(tmp_path: Path) -> None:
    """What Patroni's process writes is what the supervisor reads, and nothing else is left."""
    for standing in (Standing(), Standing(state=State.FORK, reason="why"), Standing(state=State.WAITING, reason="é")):
        write(tmp_path, standing)
        assert read(tmp_path) == standing
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"state":"king","reason":""}'])
def test_no_file_is_a_whole_member(tmp_path: Path, text: str | None) -> None:
    """Before Patroni has started there is nothing to say."""
    if text is not None:
        (tmp_path / FILE).write_text(text)
    assert read(tmp_path) == Standing()
