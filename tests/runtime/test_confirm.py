"""A question to the person at the terminal."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import ROOT


@pytest.mark.parametrize(
    ("typed", "said"), [("y\n", True), (" YES \n", True), ("n\n", False), ("\n", False), ("yess\n", False), ("", False)]
)
def test_only_yes_is_yes(typed: str, said: bool) -> None:
    """Everything else, and the end of the input, is no."""
    code = "from runtime.confirm import confirm; print(confirm('Sure?'))"
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=ROOT, input=typed, capture_output=True, text=True, check=True)
    assert done.stdout == f"Sure? [y/N] {said}\n"
