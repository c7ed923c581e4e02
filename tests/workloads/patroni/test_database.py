"""Questions to a database that is not there; tests/workloads/patroni/test_supervisor.py asks a real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.secret import Secret
from workloads.patroni.database import Database, DatabaseDownError


async def test_absent_database_is_down(tmp_path: Path) -> None:
    """No socket is an answer, at once, without the password in it."""
    database = Database(tmp_path, 5432, Secret("not-to-be-seen"))
    with pytest.raises(DatabaseDownError) as caught:
        await database.in_recovery()
    assert "not-to-be-seen" not in str(caught.value)
    with pytest.raises(DatabaseDownError):
        await database.another().ensure_user("app", Secret("x"))
