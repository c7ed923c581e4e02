"""The mark of a new cluster that this member is making: a file beside the data directory. IO: that one file.

It is there from the claim of the bootstrap to the moment at which the member has won the leader key. A process that
finds it at its start knows that an earlier one did not get that far: initdb failed, or somebody ended it. What lies in
the data directory then is half a database, and nobody has written to it. The mark is not in the data directory, which
initdb wants empty.
"""

from __future__ import annotations

from pathlib import Path

from workloads.patroni import record

SUFFIX = ".making"


def begin(data: Path) -> None:
    """Sets the mark; it is on the disk when this returns. OSError where the disk refuses."""
    _mark(data).touch(mode=0o600)
    record.sync(data.parent)


def end(data: Path) -> None:
    """Takes the mark away, if there is one. OSError where the disk refuses."""
    if is_under_way(data):
        _mark(data).unlink()
        record.sync(data.parent)


def is_under_way(data: Path) -> bool:
    """Whether the mark is there."""
    return _mark(data).exists()


def _mark(data: Path) -> Path:
    return data.with_name(data.name + SUFFIX)
