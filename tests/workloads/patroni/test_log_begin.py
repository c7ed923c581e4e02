"""Where a leader's log begins, asked of a real PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg

from tests.workloads.postgres import postgres
from workloads.patroni import log_begin


def test_the_log_begins_with_its_oldest_segment(tmp_path: Path) -> None:
    """After segments were removed the answer is later, and never later than what was written."""
    with postgres(tmp_path) as server:
        place = {"host": "127.0.0.1", "port": server.port, "user": "postgres"}
        leader = SimpleNamespace(conn_kwargs=lambda credentials: place | credentials)
        ours = SimpleNamespace(database="postgres", config=SimpleNamespace(rewind_credentials={}))

        def run(statement: str) -> Any:
            with psycopg.connect(**place, dbname="postgres", autocommit=True) as connection:  # type: ignore[arg-type]
                return connection.execute(statement).fetchone()

        first = log_begin.ask(leader, ours)
        assert 0 < first <= run("SELECT pg_current_wal_lsn() - '0/0'")[0]
        oldest = min(path.name for path in (tmp_path / "data" / "pg_wal").iterdir() if len(path.name) == 24)
        assert first == int(oldest[8:16], 16) << 32 | int(oldest[16:], 16) * (16 << 20)
        run("SELECT pg_switch_wal()")
        run("SELECT pg_logical_emit_message(true, 'mesh', 'the first record of the next segment')")
        (tmp_path / "data" / "pg_wal" / oldest).unlink()
        assert first < log_begin.ask(leader, ours) <= run("SELECT pg_current_wal_lsn() - '0/0'")[0]
