"""An operator's word: what it says first, and how long it holds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from coordinator import word


@pytest.mark.parametrize("text", ["", "[1]", "{}", "[[[[", "\udcff"])
def test_a_word_that_cannot_be_read_gives_up_nobody(tmp_path: Path, text: str) -> None:
    """Nothing is given up by a file that says nothing clear."""
    (tmp_path / word.FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert word.given_up(tmp_path) == frozenset()


def test_a_word_ends_by_its_age_or_its_use(tmp_path: Path) -> None:
    """It names whom it gives up; one that nobody used does not settle a later loss."""
    assert word.given_up(tmp_path) == frozenset()
    word.give(tmp_path, ("100.96.0.2", "100.96.0.3"))
    assert word.given_up(tmp_path) == {"100.96.0.2", "100.96.0.3"}
    file = tmp_path / word.FILE
    before = file.stat().st_mtime - word.HOLDS_SECONDS - 1
    os.utime(file, (before, before))
    assert word.given_up(tmp_path) == frozenset()
    word.give(tmp_path, ("100.96.0.2",))
    word.use_up(tmp_path)
    assert word.given_up(tmp_path) == frozenset()


def test_without_a_coordinator_nothing_is_given_up(tmp_path: Path) -> None:
    """The command says that nobody answers."""
    done, lines = word.recover(tmp_path, accept_loss=True, confirm=lambda _: True)
    assert not done
    assert str(tmp_path) in lines[0]
    assert not (tmp_path / word.FILE).exists()
