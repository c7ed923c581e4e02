"""How `./mesh test` passes its arguments on."""

from __future__ import annotations

import sys
from pathlib import Path

from meshctl.testing import absolute, wait
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
