"""Which container's process holds a socket. Standard library only. IO: /proc."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Set
from pathlib import Path

from lab import processes

_PREFIX, _SUFFIX = "socket:[", "]"


def holders(first: Mapping[str, int], inodes: Set[int], proc: Path = processes.PROC) -> dict[int, tuple[str, str]]:
    """Socket inode to (container, name of the process) for those of `inodes` that a container's process has open.

    `first` has the PID of each container's first process. Looks through the open files of the containers' processes.
    """
    found: dict[int, tuple[str, str]] = {}
    if not inodes:
        return found
    running = processes.snapshot(proc)
    for container, pid in first.items():
        # From the first process down, so that a server is named and not the children that inherited its socket.
        for member in sorted(processes.below(pid, running)):
            with contextlib.suppress(OSError):
                for entry in (proc / str(member) / "fd").iterdir():
                    inode = _inode(entry)
                    if inode in inodes and inode not in found:
                        found[inode] = (container, display(running[member]))
    return found


def _inode(entry: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        target = str(entry.readlink())
        if target.startswith(_PREFIX):
            return int(target.removeprefix(_PREFIX).removesuffix(_SUFFIX))
    return -1


def display(process: processes.Process) -> str:
    """The name that tells most: the module or script of a Python program rather than `python3`. Pure."""
    told = sorted(name for name in process.names if name and not name.startswith("python"))
    return told[0] if told else min(process.names, default="?")
