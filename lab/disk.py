"""A CVM's disk of a limited size: an ext4 file system in a file, mounted where the CVM's named volumes are. IO.

A lab keeps named volumes in folders of its own, which are as large as the machine's disk. A disk that may run full
without harm to the machine needs a size of its own. Loop devices are the kernel's: only root in the machine's own user
namespace may mount one. The mount ends with the lab's mount namespace, and the loop device with the mount.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from pathlib import Path

FILLER = "chaos-filler"
"""Name of the file that takes the free space. No named volume is called so."""
_STEPS = (64 << 20, 1 << 20, 4 << 10)
"""Bytes that the filler grows by at a time: large steps first, then what they leave. The last one is ext4's block."""
_TOOL_SECONDS = 60.0


class DiskError(RuntimeError):
    """A disk could not be made or filled. The message says what is missing and what to try."""


def make(image: Path, place: Path, mebibytes: int) -> None:
    """Makes the file `image` with a file system of that size and mounts it at `place`."""
    image.parent.mkdir(parents=True, exist_ok=True)
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    with image.open("wb") as file:
        file.truncate(mebibytes << 20)
    # No blocks kept back for root: a full disk is to be full for everybody.
    _tool("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
    _tool("mount", "-o", "loop", str(image), str(place))


def fill(place: Path) -> None:
    """Takes all the space that is left on the disk at `place`. DiskError where the disk has no size of its own."""
    if not place.is_mount():
        raise DiskError(
            "the disks of this mesh have no size of their own, so that filling one would fill this machine's disk; "
            "bring the mesh up with --disk 2048 (MiB), as root"
        )
    descriptor = os.open(place / FILLER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        for step in _STEPS:
            with contextlib.suppress(_FullError):
                while True:
                    _grow(descriptor, size, step)
                    size += step
    finally:
        os.close(descriptor)


def free(place: Path) -> None:
    """Gives back what `fill` took. Safe to repeat."""
    (place / FILLER).unlink(missing_ok=True)


class _FullError(Exception):
    """The disk has not that much left."""


def _grow(descriptor: int, size: int, step: int) -> None:
    try:
        # Reserves blocks without writing them: a disk of gigabytes is full within milliseconds.
        os.posix_fallocate(descriptor, size, step)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _FullError from error
        raise


def _tool(*argv: str) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TOOL_SECONDS, check=False)
    except FileNotFoundError as error:
        raise DiskError(f"{argv[0]} is not installed; install e2fsprogs and util-linux, or leave out --disk") from error
    if done.returncode != 0:
        raise DiskError(
            f"{argv[0]} failed: {done.stderr.strip()[-300:]}; a disk of a size of its own needs root and loop devices"
        )
