"""Lint, format and types, as tests: `./mesh test` is the one thing to run."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import ROOT

CHECKS = {
    "lint": ["ruff", "check", "."],
    "format": ["ruff", "format", "--check", "."],
    "types": ["mypy"],
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", CHECKS)
def test_check_is_clean(name: str) -> None:
    """The whole project passes ruff's rules, ruff's format and mypy --strict."""
    result = subprocess.run(
        [sys.executable, "-P", "-m", *CHECKS[name]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{' '.join(CHECKS[name])}\n{result.stdout}{result.stderr}"
