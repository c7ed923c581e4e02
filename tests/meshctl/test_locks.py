"""The lock between processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from meshctl.locks import exclusive
from tests.support import ROOT, popen

_HOLDER = """
import sys
from pathlib import Path
from meshctl.locks import exclusive
with exclusive(Path(sys.argv[1]), lambda seconds: None):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_second_process_waits_until_the_first_dies(tmp_path: Path) -> None:
    """The lock is had by one process at a time, and its holder's death frees it, even by SIGKILL."""
    path = tmp_path / "deep" / "lock"
    with popen(
        [sys.executable, "-c", _HOLDER, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        waits: list[float] = []

        def waiting(seconds: float) -> None:
            waits.append(seconds)
            holder.kill()

        with exclusive(path, waiting):
            assert waits != []


def test_lock_is_free_after_an_error(tmp_path: Path) -> None:
    """An exception inside the block frees the lock."""

    def never(seconds: float) -> None:
        pytest.fail("the lock is still held")

    with pytest.raises(ValueError, match="inside"), exclusive(tmp_path / "lock", never):
        raise ValueError("inside")
    with exclusive(tmp_path / "lock", never):
        pass
