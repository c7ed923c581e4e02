"""`/db` of webdemo: one row written through `postgres-master`, the rows counted there and through `postgres-replica`.

The password is a workload secret that the cluster grants to this group. IO: PostgreSQL.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT = 5
"""Seconds for a connection, and for a statement."""
_SETTINGS = "-c statement_timeout=5s"


class DatabaseError(Exception):
    """The database cannot be asked; the message is one line with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where the database is, and as whom to ask it."""

    master: str
    replica: str
    port: int
    user: str
    secret: Path


def target(environ: Mapping[str, str]) -> Target:
    """The target from `DATABASE_MASTER`, `DATABASE_REPLICA`, `DATABASE_PORT`, `DATABASE_USER`, `DATABASE_SECRET`."""
    return Target(
        master=environ.get("DATABASE_MASTER") or "postgres-master",
        replica=environ.get("DATABASE_REPLICA") or "postgres-replica",
        port=int(environ.get("DATABASE_PORT") or "5432"),
        user=environ.get("DATABASE_USER") or "webdemo",
        secret=Path(environ.get("DATABASE_SECRET") or "/run/mesh/secrets/db-webdemo"),
    )


def visit(peer: str, where: Target) -> dict[str, Any]:
    """Writes a row that says who asked, then counts through both routes. DatabaseError when that fails."""
    import psycopg

    try:
        password = where.secret.read_text(encoding="utf-8")
    except OSError as error:
        raise DatabaseError(f"no password: {error}; does the cluster grant this group a secret for it?") from error
    try:
        with _connect(where, where.master, password) as master:
            master.execute("CREATE TABLE IF NOT EXISTS visits (at timestamptz DEFAULT now(), peer text)")
            master.execute("INSERT INTO visits (peer) VALUES (%s)", (peer,))
            leader = _look(master)
        with _connect(where, where.replica, password) as replica:
            reader = _look(replica)
    except psycopg.Error as error:
        raise DatabaseError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    return {"from": peer, "leader": leader["peer"], "routes": {where.master: leader, where.replica: reader}}


def from_environment(peer: str) -> dict[str, Any]:
    """`visit` of the target that this process' environment names."""
    return visit(peer, target(os.environ))


def _connect(where: Target, host: str, password: str) -> Any:
    import psycopg

    # In the mesh the connection is inside mutual TLS already; asking for it again would cost a round trip.
    return psycopg.connect(
        host=host, port=where.port, user=where.user, password=password, dbname=where.user, sslmode="disable",
        connect_timeout=TIMEOUT, autocommit=True, options=_SETTINGS,
    )  # fmt: skip


def _look(connection: Any) -> dict[str, Any]:
    row = connection.execute(
        "SELECT current_setting('mesh.peer_id', true), pg_is_in_recovery(), (SELECT count(*) FROM visits)"
    ).fetchone()
    return {"peer": row[0], "role": "replica" if row[1] else "master", "rows": row[2]}
