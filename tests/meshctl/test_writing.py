"""Files that are replaced whole or not at all."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest

from meshctl.errors import UserError
from meshctl.writing import write


def test_what_is_written_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    """With the rights that the file had; a new one has those of the umask. Nothing lies beside it."""
    path = tmp_path / "manifest.json"
    before = os.umask(0o027)
    try:
        write(path, "one\n")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o600)
    write(path, b"two\n")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("two\n", 0o600)
    assert [each.name for each in tmp_path.iterdir()] == ["manifest.json"]


def test_a_disk_without_room_takes_nothing_away(tmp_path: Path) -> None:
    """What was there stays, and the reason is said. A limit of the process stands in for the disk's end."""
    path = tmp_path / "manifest.json"
    write(path, "edited by hand\n")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
        with pytest.raises(UserError, match=r"manifest\.json cannot be written"):
            write(path, "x" * 4096)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text() == "edited by hand\n"
    assert [each.name for each in tmp_path.iterdir()] == ["manifest.json"]


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    """By the file's name."""
    with pytest.raises(UserError, match="none/x cannot be written"):
        write(tmp_path / "none" / "x", "")
