"""pg_rewind, with a mark beside data on which one did not succeed: `MeshRewind`, a subclass of Patroni's. IO.

pg_rewind copies the leader's blocks and files in place, and the control file last. When the leader or this member ends
meanwhile, the data are of two histories: of the member's own control file and, perhaps, of the leader's record of
terms. Patroni would start PostgreSQL on them, unless it sees that the leader still answers (patroni/patroni#3652).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patroni.postgresql.rewind import Rewind

from workloads.patroni import marks


class MeshRewind(Rewind):  # type: ignore[misc]
    """See the module's docstring. Patroni calls `pg_rewind` in a thread of its own, and no two at once."""

    _spoilt = False
    """A pg_rewind of this process has changed the data, and did not succeed."""

    @property
    def failed(self) -> bool:
        """Whether the data are not to be used: as Patroni has it, and whether or not the leader answers."""
        return self._spoilt or bool(super().failed)

    def pg_rewind(self, conn_kwargs: dict[str, Any]) -> bool:
        """Whether pg_rewind succeeded. It is not begun where the mark cannot be set (OSError)."""
        data = Path(self._postgresql.data_dir)
        marks.REWIND.set(data)
        done = False
        try:
            done = bool(super().pg_rewind(conn_kwargs))
        finally:
            if done or _is_untouched(data):
                marks.REWIND.clear(data)
            else:
                self._spoilt = True
        return done


def _is_untouched(data: Path) -> bool:
    """Whether nothing in the data directory has changed since the mark was set: the leader could not be reached.

    The kernel's clock for files has ticks of up to 10 ms; pg_rewind has to connect before it changes anything.
    """
    since = marks.REWIND.path(data).stat().st_ctime_ns
    if any((data / "pg_tblspc").glob("*")):
        # Links to data elsewhere.
        return False
    return all(path.lstat().st_ctime_ns <= since for path in data.rglob("*"))
