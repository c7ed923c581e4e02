"""What a control file says; test_handover.py and test_supervisor.py have what follows from it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from workloads.patroni import control


@pytest.mark.parametrize(
    ("content", "state"),
    [
        (None, None),
        (b"", None),
        (struct.pack("@QIIi", 7, 1300, 202209061, 6), 6),
        (struct.pack("@QIIi", 7, 1800, 202506291, control.SHUT_DOWN) + bytes(400), control.SHUT_DOWN),
    ],
    ids=["none", "empty", "running", "shut down"],
)
def test_state_is_read_where_it_can_be(tmp_path: Path, content: bytes | None, state: int | None) -> None:
    """A file that cannot be read says nothing."""
    (tmp_path / "global").mkdir()
    if content is not None:
        (tmp_path / "global" / "pg_control").write_bytes(content)
    assert control.state(tmp_path) == state
