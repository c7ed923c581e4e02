"""What runs the fuzzer: how its output is read, and, in the long tier, each boundary for a minute."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import run
from tests.fuzz.registry import HARNESSES

SAID = """\
INFO: seed corpus: files: 2 min: 1b max: 9b total: 10b rss: 80Mb
#3\tINITED cov: 120 ft: 130 corp: 2/10b exec/s: 0 rss: 80Mb
#90\tNEW    cov: 131 ft: 150 corp: 3/14b lim: 9 exec/s: 0 rss: 80Mb L: 4/9 MS: 1 EraseBytes-
#700\tDONE   cov: 133 ft: 155 corp: 5/20b lim: 9 exec/s: 70 rss: 81Mb
stat::number_of_executed_units: 701
"""


def test_figures_are_read_from_what_the_fuzzer_says() -> None:
    """The first and the last line of figures, and the number of runs."""
    found = run.outcome("dns_query", SAID, 0)
    assert (found.runs, found.first, found.last, found.inputs, found.finding) == (701, 120, 133, 5, "")


def test_an_end_with_an_error_is_a_finding() -> None:
    """Also one before the first figure: a harness that cannot be loaded shows nothing."""
    assert "boom" in run.outcome("dns_query", f"{SAID}boom", 77).finding
    found = run.outcome("dns_query", "ImportError", 1)
    assert (found.runs, found.finding) == (0, "ImportError")


def test_an_unknown_harness_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """By name, before anything runs."""
    with pytest.raises(SystemExit):
        run.main(["no-such"])
    assert "'no-such'" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.timeout(run.SECONDS + run.RUN_SECONDS + run.FINISH_SECONDS + 60)
@pytest.mark.parametrize("name", sorted(HARNESSES))
def test_fuzzing_finds_nothing(name: str, tmp_path: Path) -> None:
    """A minute of each. What it finds is to be mended, and kept in tests/fuzz/corpus."""
    if not run.available():
        pytest.skip("atheris is not installed: it has no build for this Python or machine")
    found = run.fuzz(name, run.SECONDS, tmp_path)
    inputs = {path.name: path.read_bytes().hex() for path in tmp_path.iterdir()}
    assert not found.finding, f"{inputs}\n{found.finding}"
    assert found.runs > 0
