"""Marks of work on a data directory that is under way: empty files beside it. IO: these files.

A mark is set before the work begins, and cleared when it has come to its end. A process that finds one at its start
knows that an earlier one did not get that far, and what the data are then is said below. A mark is not in the data
directory: initdb wants that empty, and pg_rewind deletes what its source does not have.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workloads.patroni import record


@dataclass(frozen=True, slots=True)
class Mark:
    """One kind of work."""

    suffix: str
    """Of the file's name, after the data directory's."""

    def set(self, data: Path) -> None:
        """Sets it beside the data directory `data`; it is on the disk when this returns. OSError where that refuses."""
        self.path(data).touch(mode=0o600)
        record.sync(data.parent)

    def clear(self, data: Path) -> None:
        """Takes it away, if it is there. OSError where the disk refuses."""
        if self.is_set(data):
            self.path(data).unlink()
            record.sync(data.parent)

    def is_set(self, data: Path) -> bool:
        """Whether it is there."""
        return self.path(data).exists()

    def path(self, data: Path) -> Path:
        """The file."""
        return data.with_name(data.name + self.suffix)


MAKING = Mark(".making")
"""A new cluster, from the claim of the bootstrap to the moment at which the member has won the leader key. What lies in
the data directory before that is half a database, and nobody has written to it."""
REWIND = Mark(".rewind")
"""A pg_rewind, until it has succeeded. Before that the data may be of two histories."""
BEHIND = Mark(".behind")
"""The replacement of data that lack what the leader has removed from its log. They are whole, and merely old."""
