"""What PostgreSQL's control file says it is doing. IO: reads that file.

A hint: cheap, but without the checksum that `pg_controldata` looks at.
"""

from __future__ import annotations

import struct
from pathlib import Path

_STATE = struct.Struct("@16xi")
"""`ControlFileData.state` follows system identifier and two version numbers, in every version since 8.2."""
SHUT_DOWN = 1
"""`DB_SHUTDOWNED` in catalog/pg_control.h."""
IN_RECOVERY = 5
"""`DB_IN_ARCHIVE_RECOVERY`: a standby, until it is promoted."""


def state(data: Path) -> int | None:
    """The state of the database in the directory `data`; None where the file cannot be read."""
    try:
        with (data / "global" / "pg_control").open("rb") as file:
            return int(_STATE.unpack(file.read(_STATE.size))[0])
    except (OSError, struct.error):
        return None
