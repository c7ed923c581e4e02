from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

BLOCKS = """
import sys
from pathlib import Path
from runtime import heap
if sys.argv[1] == "yes":
    if not heap.give_back():
        print("unknown")
        raise SystemExit
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
before = resident()
bytearray(256 << 10)
blocks, small = [], []
for _ in range(400):
    blocks.append(bytearray(256 << 10))
    small.append(bytes(5000))
del blocks
print(resident() - before)
"""


def left(how: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", BLOCKS, how], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_large_blocks_are_given_back_when_they_are_freed() -> None:
    """100 MiB of buffers, among which small things live on, leave next to nothing."""
    if not Path("/proc/self/statm").exists() or (found := left("yes")) == "unknown":
        pytest.skip("the C library has no mallopt")
    assert int(found) < 10 << 20
