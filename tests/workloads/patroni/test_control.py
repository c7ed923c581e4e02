"""What a control file says; test_supervisor.py has what follows from it."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from tests.support import tool
from tests.workloads.postgres import postgres
from workloads.patroni import control

HEAD = struct.pack("@QIIiqQQI", 7, 1300, 202209061, 6, 1_700_000_000, 4096, 4000, 2)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, None),
        (b"", None),
        (HEAD[:-1], None),
        (HEAD + bytes(400), control.Control(state=6, checkpoint=4096, timeline=2)),
    ],
    ids=["none", "empty", "cut", "running"],
)
def test_file_is_read_where_it_can_be(tmp_path: Path, content: bytes | None, found: control.Control | None) -> None:
    """A file that cannot be read says nothing."""
    (tmp_path / "global").mkdir()
    if content is not None:
        (tmp_path / "global" / "pg_control").write_bytes(content)
    assert control.read(tmp_path) == found
    assert control.is_shut_down(tmp_path) is False


def test_a_real_server_writes_what_is_read(tmp_path: Path) -> None:
    """State, checkpoint and timeline are those that PostgreSQL's own program reads, running and after a fast stop."""
    with postgres(tmp_path) as server:
        data = tmp_path / "data"
        running = control.read(data)
        assert running is not None
        assert running.state != control.SHUT_DOWN
        assert server.process is not None
        server.process.terminate()
        assert server.process.wait(60) == 0
        assert control.is_shut_down(data)
        program = Path(tool("postgres")).parent / "pg_controldata"
        said = subprocess.run([program, "-D", data], capture_output=True, text=True, check=True, env={"LC_ALL": "C"})
        fields = dict(line.split(":", 1) for line in said.stdout.splitlines() if ":" in line)
        high, low = fields["Latest checkpoint location"].strip().split("/")
        stopped = control.read(data)
        assert stopped is not None
        assert stopped.checkpoint == (int(high, 16) << 32) + int(low, 16)
        assert stopped.timeline == int(fields["Latest checkpoint's TimeLineID"])
