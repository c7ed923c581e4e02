"""How `./mesh test` passes its arguments on."""

from __future__ import annotations

import sys
from pathlib import Path

from meshctl.testing import absolute, wait, workers
from tests.support import popen


def test_paths_are_made_absolute(tmp_path: Path) -> None:
    """What names a file in the caller's folder is made absolute, its node part kept; everything else is left alone."""
    (tmp_path / "test_x.py").touch()
    given = ["test_x.py::test_a[x]", "-k", "test_x", "--maxfail=1", "", "tests/nowhere"]
    expected = [f"{tmp_path}/test_x.py::test_a[x]", *given[1:]]
    assert absolute(given, tmp_path) == expected


def test_exit_codes_pass_through() -> None:
    """Pytest's exit code is the command's; death by a signal is 128 and the signal, as in a shell."""
    for code, expected in (("raise SystemExit(5)", 5), ("import os; os.kill(os.getpid(), 9)", 137)):
        with popen([sys.executable, "-c", code]) as process:
            assert wait(process) == expected


def test_the_whole_suite_runs_in_several_processes() -> None:
    """Tests that are named run in one process, and who says how many has them."""
    several = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    for arguments in ([], ["--durations=5"], ["-k", "truncation"], ["-m", "not e2e"]):
        assert workers(arguments, 1) == workers(arguments, 2) == several
    assert workers([], 64)[1] == "4"
    for arguments in (["/x/tests/dns"], ["-n0"], ["--numprocesses", "8"], ["-s"], ["--pdb"]):
        assert workers(arguments, 2) == []
