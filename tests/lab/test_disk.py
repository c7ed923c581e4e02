"""A disk of a limited size runs full, and is given back."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import disk


def _mounts() -> bool:
    if os.geteuid() != 0:
        return False
    # Root of a user namespace may not mount a loop device.
    text = Path("/proc/self/uid_map").read_text(encoding="ascii").split()
    return text[:2] == ["0", "0"] and text[2] == "4294967295" and Path("/dev/loop-control").exists()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A mounted disk of 16 MiB."""
    if not _mounts():
        pytest.skip("a loop device needs root in the machine's own user namespace")
    place = tmp_path / "disk"
    disk.make(tmp_path / "disk.ext4", place, 16)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_refuses_and_a_freed_one_takes(place: Path) -> None:
    """No byte more fits while it is full; what was there stays."""
    (place / "before").write_bytes(b"x" * 4096)
    disk.fill(place)
    descriptor = os.open(place / "more", os.O_WRONLY | os.O_CREAT)
    try:
        with pytest.raises(OSError, match="No space") as refused:
            os.write(descriptor, b"x" * 65536)
    finally:
        os.close(descriptor)
    assert refused.value.errno == errno.ENOSPC
    disk.free(place)
    disk.free(place)
    (place / "more").write_bytes(b"x" * 65536)
    assert (place / "before").read_bytes() == b"x" * 4096


def test_a_folder_of_the_machines_disk_is_not_filled(tmp_path: Path) -> None:
    """Without a size of its own, the machine's disk would run full: refused, with what to do."""
    with pytest.raises(disk.DiskError, match="--disk"):
        disk.fill(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_tool_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says which, and the way without it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(disk.DiskError, match=r"mkfs\.ext4 is not installed.*--disk"):
        disk.make(tmp_path / "disk.ext4", tmp_path / "disk", 16)
