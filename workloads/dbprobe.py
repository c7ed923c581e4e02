"""Clients of a database under a remote control: JSON commands on stdin, JSON answers on stdout, a line each.

`python -m workloads.dbprobe` runs where an application runs and sees what it sees. It ends, with everything that it
started, when stdin closes. IO: stdin, stdout, the database, Patroni's REST API.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import psycopg

from workloads import dbattacks
from workloads.dbclients import CREATE, RETRY_SECONDS, Holder, Reader, Target, Writer, connect
from workloads.patroni import standing

_WATCH_SECONDS = 0.5
_STOP_SECONDS = 3.0
_HTTP_SECONDS = 10.0
_BURN_BYTES = 1 << 18
"""Of one row of `burn`."""
TAIL = 5
"""Failures of one client that are told: the newest ones."""
DIGEST = (
    "SELECT count(*), coalesce(sum(hashtextextended(run || '/' || writer || '/' || seq, 0)::numeric), 0)::text,"
    " pg_is_in_recovery() FROM chaos_rows"
)


class Probe:
    """The commands. Each takes the fields of its JSON object and returns what becomes the answer."""

    def __init__(self) -> None:
        self._writers: list[Writer] = []
        self._reader: Reader | None = None
        self._holder: Holder | None = None
        self._watch = threading.Thread(target=self._look_after, daemon=True)
        self._watch.start()

    def create(self, target: dict[str, Any]) -> None:
        """Makes the table."""
        with connect(Target(**target)) as connection:
            connection.execute(CREATE)

    def write(self, target: dict[str, Any], run: str, writers: int, pause: float, retry: float = RETRY_SECONDS) -> None:
        """Starts writers that append rows of `run`."""
        self._end_writers()
        self._writers = [Writer(Target(**target), run, number, pause, retry) for number in range(writers)]
        for writer in self._writers:
            writer.start()

    def read(self, target: dict[str, Any], pause: float) -> None:
        """Starts the reader."""
        self._end_reader()
        self._reader = Reader(Target(**target), pause)
        self._reader.start()

    def hold(self, target: dict[str, Any], pause: float) -> dict[str, Any]:
        """Opens the connections that are held; whom they reached."""
        self._end_holder()
        self._holder = Holder(Target(**target), pause)
        return self._holder.state()

    def state(self, after: float, timeline: int) -> dict[str, Any]:
        """How many writes that began after `after` were acknowledged, in all and beyond `timeline`; what is held."""
        acks = [ack for writer in self._writers for ack in list(writer.acks) if ack.start > after]
        failures = [failure for writer in self._writers for failure in writer.failures[-1:]]
        return {
            "now": time.monotonic(),
            "acks": len(acks),
            "beyond": sum(ack.timeline > timeline for ack in acks),
            "timeline": max((ack.timeline for ack in acks), default=0),
            "last": max((ack.end for ack in acks), default=None),
            "held": self._holder.state() if self._holder else {},
            "reads": len(self._reader.reads) if self._reader else 0,
            "last_failure": max(failures, default=None),
        }

    def stop(self) -> dict[str, Any]:
        """Ends all clients; everything that they noted."""
        writers, reader, holder = self._writers, self._reader, self._holder
        for client in (*writers, *((reader,) if reader else ())):
            client.stop()
        held = holder.state() if holder else {}
        self._end_writers()
        self._end_reader()
        self._end_holder()
        return {
            "acks": [[writer.number, *astuple(ack)] for writer in writers for ack in writer.acks],
            "unknown": [[writer.number, seq] for writer in writers for seq in writer.unknown],
            "failures": [[writer.name, *failure] for writer in writers for failure in writer.failures[-TAIL:]],
            "attempts_failed": sum(len(writer.failures) for writer in writers),
            "reads": [list(read) for read in reader.reads] if reader else [],
            "read_failures": len(reader.failures) if reader else 0,
            "held": held,
        }

    def rows(self, target: dict[str, Any], run: str) -> list[list[int]]:
        """The rows of `run` that the database has: writer and number."""
        with connect(Target(**target)) as connection:
            found = connection.execute("SELECT writer, seq FROM chaos_rows WHERE run = %s", (run,)).fetchall()
        return [[int(writer), int(seq)] for writer, seq in found]

    def digest(self, target: dict[str, Any]) -> dict[str, Any]:
        """A number that two servers share when they have the same rows."""
        with connect(Target(**target)) as connection:
            row = connection.execute(DIGEST).fetchone()
        assert row is not None
        return {"count": row[0], "sum": row[1], "in_recovery": row[2]}

    def clear(self, target: dict[str, Any]) -> None:
        """Removes the table."""
        with connect(Target(**target)) as connection:
            connection.execute("DROP TABLE IF EXISTS chaos_rows, chaos_burnt")

    def burn(self, target: dict[str, Any], size: int, seconds: float) -> int:
        """Writes rows that do not compress until `size` bytes were written, something refuses, or time is up; bytes."""
        written, end = 0, time.monotonic() + seconds
        try:
            with connect(Target(**target)) as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS chaos_burnt (data bytea)")
                while written < size and time.monotonic() < end:
                    connection.execute("INSERT INTO chaos_burnt VALUES (%s)", (os.urandom(_BURN_BYTES),))
                    written += _BURN_BYTES
        except psycopg.Error:
            # A full disk refuses, or ends the server: that is what was asked for.
            return written
        return written

    def occupy(self, targets: list[list[Any]], each: int, seconds: float) -> dict[str, int]:
        """See `workloads.dbattacks.occupy`."""
        return dbattacks.occupy([(str(host), int(port)) for host, port in targets], each, seconds)

    def poison(self, nodes: list[str], seconds: float) -> dict[str, int]:
        """See `workloads.dbattacks.poison`."""
        return dbattacks.poison(nodes, seconds)

    def standing(self, folder: str) -> list[str]:
        """How the member beside this probe stands to its cluster (`workloads.patroni.standing`): state and reason."""
        found = standing.read(Path(folder))
        return [found.state, found.reason]

    def http(self, url: str) -> dict[str, Any]:
        """GET `url`: status and text. Status 0: no answer."""
        try:
            with urllib.request.urlopen(url, timeout=_HTTP_SECONDS) as answer:
                return {"status": answer.status, "body": answer.read().decode()}
        except urllib.error.HTTPError as error:
            return {"status": error.code, "body": error.read().decode(errors="replace")}
        except OSError as error:
            return {"status": 0, "body": str(error)}

    def _end_writers(self) -> None:
        for writer in self._writers:
            writer.stop()
        for writer in self._writers:
            writer.wait(_STOP_SECONDS)
        self._writers = []

    def _end_reader(self) -> None:
        if self._reader:
            self._reader.stop()
            self._reader.wait(_STOP_SECONDS)
        self._reader = None

    def _end_holder(self) -> None:
        if self._holder:
            self._holder.stop()
        self._holder = None

    def _look_after(self) -> None:
        while True:
            time.sleep(_WATCH_SECONDS)
            for client in (*self._writers, *((self._reader,) if self._reader else ())):
                client.check()


def main() -> int:
    """Answers commands until stdin ends."""
    probe = Probe()
    for line in sys.stdin:
        command = json.loads(line)
        method: Callable[..., Any] = getattr(probe, command.pop("do"))
        try:
            answer = {"ok": method(**command)}
        except (psycopg.Error, OSError) as error:
            answer = {"error": f"{type(error).__name__}: {str(error).strip()}"}
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
