"""The clusters of `cases`: good ones are taken, and of a broken one every problem is said with file and line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.topology import cases
from tests.topology.support import problems
from topology import cluster

GOOD = cases.GOOD | dict(cases.random_clusters(20, seed=7))
NO_LINE = ("the compose file does not exist",)
"""What is said of a file that has no lines."""


@pytest.mark.parametrize("name", sorted(GOOD))
def test_good_clusters_are_taken(tmp_path: Path, name: str) -> None:
    """Nothing in them is a mistake."""
    GOOD[name](tmp_path)
    assert cluster.load(tmp_path).groups


@pytest.mark.parametrize("name", sorted(cases.BROKEN))
def test_broken_clusters_are_refused_by_file_and_line(tmp_path: Path, name: str) -> None:
    """`./mesh plan`, `up` and `generate` all read a cluster by `load`, so that each of them refuses these."""
    cases.BROKEN[name](tmp_path)
    for text in problems(tmp_path):
        assert re.match(r"\S+\.(tf|yaml):[0-9]+: ", text) or any(words in text for words in NO_LINE), text
