"""Takes the data of a fork out of the way of a fresh copy, and loses nothing by it. IO: the disk of the data directory.

The data directory becomes `data.fork` beside itself; where that is there already, `data.fork.2` and so on. That is one
rename, which needs no room. The fresh copy needs it. Where the copy would not fit, or where a rename would not take all
of the data along, everything stays as it is, and a person decides what goes.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

SUFFIX = ".fork"
"""Of the folders in which the data of forks are kept."""
MIB = 1 << 20


class StaysError(Exception):
    """The data stay where they are; the text says why, and what to try."""


def set_aside(data: Path) -> Path:
    """Renames the data directory `data`, on which no PostgreSQL runs; returns where it is now. StaysError where a fresh
    copy would not fit beside it, or the disk refuses.
    """
    try:
        if outside := tablespaces(data):
            raise StaysError(
                f"it has tablespaces outside of {data}, and a copy of the leader would want their places: "
                f"{', '.join(map(str, outside))}; move these folders away, then {data}"
            )
        size, free = measure(data), shutil.disk_usage(data.parent).free
        if not fits(size, free):
            raise StaysError(_lacks(data, size, free))
        place = next(path for path in _places(data) if not os.path.lexists(path))
        data.rename(place)
    except OSError as error:
        raise StaysError(f"{data} cannot be moved: {error}") from error
    return place


def fits(size: int, free: int) -> bool:
    """Whether a fresh copy of `size` bytes has room on a disk with `free` bytes left. Pure.

    A fresh copy has about the size of what it replaces, and the log grows meanwhile: half as much again is left for it.
    """
    return free > _needed(size)


def _needed(size: int) -> int:
    return size + size // 2


def _lacks(data: Path, size: int, free: int) -> str:
    kept = list(itertools.takewhile(os.path.lexists, _places(data)))
    remedies = ["enlarge the disk"]
    if kept:
        remedies.append("remove what nobody needs of " + ", ".join(f"{p} ({measure(p) // MIB} MiB)" for p in kept))
    remedies.append(f"or remove {data} itself ({size // MIB} MiB), to give up what only this member has")
    return (
        f"a fresh copy needs {_needed(size) // MIB} MiB beside it, and {free // MIB} MiB are free in {data.parent}: "
        f"{', '.join(remedies)}"
    )


def _places(data: Path) -> Iterator[Path]:
    """Names for what is kept, in order."""
    yield data.with_name(data.name + SUFFIX)
    for number in itertools.count(2):
        yield data.with_name(f"{data.name}{SUFFIX}.{number}")


def tablespaces(data: Path) -> list[Path]:
    """The folders of tablespaces that lie outside of the data directory, by the links in `pg_tblspc`."""
    try:
        entries = sorted((data / "pg_tblspc").iterdir())
    except FileNotFoundError:
        return []
    return [path.readlink() for path in entries if path.is_symlink()]


def measure(data: Path) -> int:
    """Bytes of all files in `data`. A log that a link leads to counts: the fresh copy has it inside."""
    linked = data / "pg_wal"
    folders = [data, linked.resolve()] if linked.is_symlink() else [data]
    return sum(path.lstat().st_size for folder in folders for path in folder.rglob("*"))
