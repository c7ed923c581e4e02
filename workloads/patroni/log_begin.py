"""Where the log begins that the leader still has: a question to the leader's PostgreSQL. IO."""

from __future__ import annotations

from typing import Any

_QUESTION = (
    "SELECT min(('x' || pg_catalog.substr(name, 9, 8))::bit(32)::bigint * 4294967296"
    " + ('x' || pg_catalog.substr(name, 17, 8))::bit(32)::bigint * (SELECT setting::bigint FROM pg_catalog.pg_settings"
    " WHERE pg_settings.name = 'wal_segment_size'))"
    " FROM pg_catalog.pg_ls_dir('pg_wal', true, false) AS name WHERE name ~ '^[0-9A-F]{24}$'"
)
"""A segment's name is timeline, upper half of its LSN, number within that; the account of pg_rewind may list
files, by this form of the function."""


def ask(leader: Any, postgresql: Any) -> int:
    """The LSN at which the oldest segment of the leader's log begins; 0 where it says that it has none.

    `leader`, `postgresql`: Patroni's. Takes 5 s at most (Patroni's own limits for such a question). Raises what psycopg
    raises where the leader does not answer.
    """
    from patroni.postgresql.connection import get_connection_cursor

    kwargs = leader.conn_kwargs(postgresql.config.rewind_credentials)
    kwargs |= {"dbname": postgresql.database, "target_session_attrs": "read-write"}
    with get_connection_cursor(**kwargs) as cursor:
        cursor.execute(_QUESTION)
        row = cursor.fetchone()
    return int(row[0]) if row and row[0] is not None else 0
