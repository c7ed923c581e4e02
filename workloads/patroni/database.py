"""Questions to the local PostgreSQL, and the roles of applications. IO: PostgreSQL's unix socket."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg import AsyncConnection, sql

from runtime.secret import Secret
from workloads.patroni.config import SUPERUSER

SECONDS = 5.0
"""For one question: PostgreSQL on a busy machine answers in less."""


class DatabaseDownError(Exception):
    """PostgreSQL refuses, or is not there."""


class SlowDatabaseError(Exception):
    """PostgreSQL did not answer in time: that says little about it."""


class Database:
    """One connection of the superuser, kept."""

    def __init__(self, run: Path, port: int, password: Secret) -> None:
        self._run = run
        self._port = port
        self._password = password
        self._connection: AsyncConnection | None = None

    async def in_recovery(self) -> bool:
        """Whether it replays another's changes, as a replica does."""
        row = await self._one("SELECT pg_is_in_recovery()")
        return bool(row)

    async def ensure_user(self, role: str, password: Secret) -> None:
        """Makes `role` able to log in with `password`, and the owner of a database of its name. Safe to repeat.

        What is sent is the verifier that PostgreSQL stores: the password itself never reaches it, nor its log.
        """
        name = sql.Identifier(role)
        try:
            async with asyncio.timeout(SECONDS * 4):
                connection = await self._connect()
                verifier = connection.pgconn.encrypt_password(
                    password.reveal().encode(), role.encode(), b"scram-sha-256"
                ).decode()
                # A replica that is not there yet must not keep us waiting: it gets the role when it comes.
                await connection.execute("SET synchronous_commit = local")
                await connection.execute("SET log_min_duration_statement = -1")
                if not await self._exists("SELECT 1 FROM pg_roles WHERE rolname = %s", role):
                    await connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
                await connection.execute(sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(name, sql.Literal(verifier)))
                if not await self._exists("SELECT 1 FROM pg_database WHERE datname = %s", role):
                    await connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, name))
        except TimeoutError as error:
            await self.close()
            raise SlowDatabaseError(f"making the role {role} took longer than {SECONDS * 4:g} s") from error
        except (psycopg.Error, OSError) as error:
            await self.close()
            raise DatabaseDownError(str(error).strip()) from error

    def another(self) -> Database:
        """The same database, over a connection of its own."""
        return Database(self._run, self._port, self._password)

    async def close(self) -> None:
        """Closes the connection; the next question opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _exists(self, query: LiteralString, name: str) -> bool:
        assert self._connection is not None
        cursor = await self._connection.execute(query, (name,))
        return await cursor.fetchone() is not None

    async def _one(self, query: LiteralString) -> object:
        try:
            async with asyncio.timeout(SECONDS):
                connection = await self._connect()
                row = await (await connection.execute(query)).fetchone()
        except TimeoutError as error:
            await self.close()
            raise SlowDatabaseError(f"no answer within {SECONDS:g} s") from error
        except (psycopg.Error, OSError) as error:
            await self.close()
            raise DatabaseDownError(str(error).strip()) from error
        return row[0] if row else None

    async def _connect(self) -> AsyncConnection:
        if self._connection is None:
            try:
                self._connection = await AsyncConnection.connect(
                    host=str(self._run),
                    port=self._port,
                    user=SUPERUSER,
                    password=self._password.reveal(),
                    dbname="postgres",
                    application_name="supervisor",
                    autocommit=True,
                )
            except (psycopg.Error, OSError) as error:
                raise DatabaseDownError(str(error).strip()) from error
        return self._connection
