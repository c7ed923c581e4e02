"""Clients of a database as an application has them: writers, readers, and connections that are only held. IO: the
database, threads.

Each one dials by name and, when its connection ends, dials again by name at once; none of them knows who leads. They
note what they were told and when (seconds of CLOCK_MONOTONIC, one clock for all namespaces of a machine), and judge
nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psycopg

CONNECT_SECONDS = 2
"""The shortest limit that libpq keeps."""
RETRY_SECONDS = 0.05
"""Between a failure and the next attempt, give or take a half: clients that ask more often, or all at once, keep a
small machine busy with being refused, while it has a leader to promote."""
PATIENCE_SECONDS = 15.0
"""How long one statement may take before its client gives the connection up, as an application with a limit would."""

CREATE = (
    "CREATE TABLE IF NOT EXISTS chaos_rows (run text NOT NULL, writer integer NOT NULL, seq integer NOT NULL,"
    " at timestamptz NOT NULL DEFAULT clock_timestamp(), PRIMARY KEY (run, writer, seq))"
)
_TIMELINE = "('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::integer"
"""Of the server that runs the statement: each promotion makes a new one."""
_PEER = "coalesce(current_setting('mesh.peer_id', true), '')"
INSERT = f"INSERT INTO chaos_rows (run, writer, seq) VALUES (%s, %s, %s) RETURNING {_TIMELINE}, {_PEER}"
READ = f"SELECT pg_is_in_recovery(), {_PEER}"
WHERE = f"SELECT {_TIMELINE}, {_PEER}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where and as whom a client logs in."""

    host: str
    port: int
    user: str
    database: str
    password_file: str
    """Read at each attempt; empty: none is needed."""


def connect(target: Target) -> psycopg.Connection[Any]:
    """A new connection in which each statement is a transaction. psycopg.Error or OSError when there is none."""
    password = Path(target.password_file).read_text(encoding="utf-8") if target.password_file else None
    return psycopg.connect(
        host=target.host,
        port=target.port,
        user=target.user,
        dbname=target.database,
        password=password,
        connect_timeout=CONNECT_SECONDS,
        application_name="chaos",
        autocommit=True,
        # The mesh encrypts; asking for either would cost a round trip.
        sslmode="disable",
        gssencmode="disable",
    )


@dataclass(frozen=True, slots=True)
class Ack:
    """A write that the database has acknowledged."""

    seq: int
    start: float
    end: float
    timeline: int
    peer: str


class Client(threading.Thread):
    """A thread that keeps a connection and uses it until it is told to stop."""

    def __init__(self, target: Target, name: str, retry: float = RETRY_SECONDS) -> None:
        super().__init__(name=name, daemon=True)
        self._retry = retry
        self.failures: list[tuple[float, str]] = []
        """When an attempt or a connection failed, and how."""
        self._target = target
        self._rng = Random()
        self._stopping = threading.Event()
        self._busy_since: float | None = None
        self._descriptor: int | None = None

    def run(self) -> None:
        """Connects, works, and does so again after each failure."""
        while not self._stopping.is_set():
            try:
                self._busy_since = time.monotonic()
                with connect(self._target) as connection:
                    self._descriptor = connection.fileno()
                    self._busy_since = None
                    self._work(connection)
            except (psycopg.Error, OSError) as error:
                self.failures.append((time.monotonic(), f"{type(error).__name__}: {str(error).strip()[:160]}"))
                self._stopping.wait(self._retry * self._rng.uniform(0.5, 1.5))
            finally:
                self._descriptor = self._busy_since = None

    def _work(self, connection: psycopg.Connection[Any]) -> None:
        """Uses the connection until `_stopping`."""
        raise NotImplementedError

    def check(self) -> None:
        """Ends a connection whose statement has taken too long. To be called now and then."""
        since = self._busy_since
        if since is not None and time.monotonic() - since > PATIENCE_SECONDS:
            self._hang_up()

    def stop(self) -> None:
        """Asks it to end."""
        self._stopping.set()

    def wait(self, seconds: float) -> None:
        """Waits for the end; a statement that is under way after that is given up."""
        self.join(seconds)
        if self.is_alive():
            self._hang_up()
            self.join(seconds)

    def _hang_up(self) -> None:
        descriptor = self._descriptor
        if descriptor is not None:
            # A copy: the original is libpq's to close.
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as copy:
                copy.shutdown(socket.SHUT_RDWR)


class Writer(Client):
    """Appends rows with numbers that it never uses twice, one every `pause` seconds at most."""

    def __init__(self, target: Target, run: str, number: int, pause: float, retry: float = RETRY_SECONDS) -> None:
        super().__init__(target, f"writer {number}", retry)
        self.acks: list[Ack] = []
        self.unknown: list[int] = []
        """Numbers whose outcome nobody was told: they may be in the database or not."""
        self.number = number
        self._run = run
        self._pause = pause
        self._seq = 0

    def _work(self, connection: psycopg.Connection[Any]) -> None:
        while not self._stopping.is_set():
            self._seq += 1
            start = self._busy_since = time.monotonic()
            try:
                row = connection.execute(INSERT, (self._run, self.number, self._seq), prepare=True).fetchone()
            except (psycopg.Error, OSError):
                self.unknown.append(self._seq)
                raise
            end = time.monotonic()
            self._busy_since = None
            assert row is not None
            self.acks.append(Ack(self._seq, start, end, int(row[0]), str(row[1])))
            self._stopping.wait(max(0.0, start + self._pause - end))


class Reader(Client):
    """Reads again and again."""

    def __init__(self, target: Target, pause: float) -> None:
        super().__init__(target, "reader")
        self.reads: list[tuple[float, bool, str]] = []
        """When each answer came, whether from a replica, and from whom."""
        self._pause = pause

    def _work(self, connection: psycopg.Connection[Any]) -> None:
        while not self._stopping.is_set():
            self._busy_since = time.monotonic()
            row = connection.execute(READ, prepare=True).fetchone()
            self._busy_since = None
            assert row is not None
            self.reads.append((time.monotonic(), bool(row[0]), str(row[1])))
            self._stopping.wait(self._pause)


@dataclass(slots=True)
class _Held:
    connection: psycopg.Connection[Any]
    timeline: int
    peer: str
    closed: float | None = None
    thread: threading.Thread = field(default_factory=threading.Thread)


class Holder:
    """Two connections that are opened once: an idle one that never says a word, and one that talks all the time."""

    def __init__(self, target: Target, pause: float) -> None:
        self._pause = pause
        self._stopping = False
        self._held: dict[str, _Held] = {}
        try:
            for name, work in (("idle", self._listen), ("talking", self._talk)):
                connection = connect(target)
                row = connection.execute(WHERE).fetchone()
                assert row is not None
                held = self._held[name] = _Held(connection, int(row[0]), str(row[1]))
                held.thread = threading.Thread(target=work, args=(held,), name=name, daemon=True)
        except BaseException:
            self.stop()
            raise
        for held in self._held.values():
            held.thread.start()

    def state(self) -> dict[str, Any]:
        """Per connection: whom it reached, and when it was closed from the other side (None: not yet)."""
        return {
            name: {"timeline": held.timeline, "peer": held.peer, "closed": held.closed}
            for name, held in self._held.items()
        }

    def stop(self) -> None:
        """Closes both."""
        self._stopping = True
        for held in self._held.values():
            with (
                contextlib.suppress(OSError, psycopg.Error),
                socket.socket(fileno=os.dup(held.connection.fileno())) as copy,
            ):
                copy.shutdown(socket.SHUT_RDWR)
            if held.thread.is_alive():
                held.thread.join(PATIENCE_SECONDS)
            with contextlib.suppress(psycopg.Error):
                held.connection.close()

    def _listen(self, held: _Held) -> None:
        # Reads past libpq: nothing is ever asked here, and what the server may say before it closes is not the end.
        with socket.socket(fileno=os.dup(held.connection.fileno())) as copy:
            copy.setblocking(True)
            with contextlib.suppress(OSError):
                while copy.recv(4096):
                    pass
            self._note(held)

    def _talk(self, held: _Held) -> None:
        try:
            while not self._stopping:
                held.connection.execute("SELECT 1", prepare=True)
                time.sleep(self._pause)
        except (psycopg.Error, OSError):
            self._note(held)

    def _note(self, held: _Held) -> None:
        if not self._stopping:
            held.closed = time.monotonic()
