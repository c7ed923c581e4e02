"""What PostgreSQL's control file says: the state of the data directory, its last checkpoint and its timeline.

IO: reads that file. A hint: cheap, but without the checksum that `pg_controldata` verifies.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

_HEAD = struct.Struct("@QIIiqQQI")
"""The first members of `ControlFileData` (catalog/pg_control.h): system identifier, two version numbers, state, time,
checkpoint; then of its `checkPointCopy`: redo, timeline. The same in every version since 11, where a member between
checkpoint and its copy went."""
SHUT_DOWN = 1
"""`DB_SHUTDOWNED` in catalog/pg_control.h: a primary wrote its shutdown checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A part of the control file."""

    state: int
    """A `DBState`."""
    checkpoint: int
    """LSN of the last checkpoint record."""
    timeline: int
    """Of that checkpoint."""


def read(data: Path) -> Control | None:
    """The control file of the data directory `data`; None where it cannot be read."""
    try:
        with (data / "global" / "pg_control").open("rb") as file:
            _, _, _, state, _, checkpoint, _, timeline = _HEAD.unpack(file.read(_HEAD.size))
    except (OSError, struct.error):
        return None
    return Control(state=state, checkpoint=checkpoint, timeline=timeline)


def is_shut_down(data: Path) -> bool:
    """Whether the primary in `data` wrote its shutdown checkpoint: nobody can be told of a commit any more."""
    found = read(data)
    return found is not None and found.state == SHUT_DOWN
