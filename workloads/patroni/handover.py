"""How a leader that shuts down gives its key away: as soon as nothing more can be written and a standby has it all.

Patroni's own way is right but slow: it looks once a second, sleeps a second more, and reads the write-ahead log with
two programs. Waiting for PostgreSQL's first process instead, as was done here before, is at the mercy of what that one
waits for: until version 18 it does not end while a connection that never said a word is still being turned away, for a
minute and longer.

Why it is safe: the control file says *shut down* when the shutdown's checkpoint has been written, which PostgreSQL
begins when every connection of a client has ended. From then on nobody can be told of a commit, and the end of the log
is known. Only when a member that may lead has come to that end, too, does the key go.

The key is given away also where the supervisor has written to it meanwhile (`publisher`): Patroni goes by the version
that it read, and here by the session that holds it.

A leader whose PostgreSQL was *killed* gives nothing away here: Patroni would, when it looks just then, while processes
of PostgreSQL may be alive and acknowledge. That is the supervisor's, which sees to their death first.

That Patroni still has what is changed here is for the tests to say.
"""

from __future__ import annotations

import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LOOK_SECONDS = 0.01
"""Between looks at a PostgreSQL that was told to stop, and between questions to those who may follow it."""
PATIENCE_SECONDS = 1.0
"""How long the others are given to have everything; it is Patroni's own. Then the end of the process is waited for."""
KILLED_SECONDS = 10.0
"""How long a Patroni with a killed PostgreSQL waits to be ended by its supervisor, which takes milliseconds."""
_STATE = struct.Struct("@16xi")
"""`ControlFileData.state` follows system identifier and two version numbers, in every version since 8.2."""
_SHUT_DOWN = 1
"""`DB_SHUTDOWNED` in catalog/pg_control.h."""


def is_shut_down(data: Path) -> bool:
    """Whether the control file below `data` says that PostgreSQL has shut down. Cheap, and only a hint."""
    try:
        with (data / "global" / "pg_control").open("rb") as file:
            return bool(_STATE.unpack(file.read(_STATE.size))[0] == _SHUT_DOWN)
    except (OSError, struct.error):
        return False


def hasten(dcs: Any, postgresql: Any, ha: Any) -> None:
    """Has Patroni's `dcs`, `postgresql` and `ha` hand over as above."""
    _delete_surely(dcs)
    clock = _Clock()
    # Not by import: these two modules of Patroni cannot be imported in every order.
    _module(ha).time = clock.namespace
    _module(postgresql).STOP_POLLING_INTERVAL = LOOK_SECONDS
    postgresql.latest_checkpoint_locations = _locations(postgresql)
    postgresql.controldata = _controldata(postgresql, clock)
    postgresql.stop = _stop(postgresql, clock)
    ha.is_failover_possible = _patient(ha)
    ha.recover = _recover(postgresql, ha)


def _delete_surely(dcs: Any) -> None:
    delete = dcs._delete_leader

    def deleting(leader: Any) -> bool:
        """Whether the key is gone; also one that has another version than `leader`, while our own session holds it."""
        if delete(leader):
            return True
        now = dcs.get_cluster().leader
        if now is None or now.version == leader.version or now.session != leader.session:
            return False
        return bool(delete(now))

    dcs._delete_leader = deleting


def _module(it: Any) -> Any:
    return sys.modules[type(it).__module__]


class _Clock:
    """`time` for Patroni's `ha`, whose pause within a hand-over is left out. Per thread: another's pauses stay."""

    def __init__(self) -> None:
        self._local = threading.local()
        self.namespace = SimpleNamespace(**{name: getattr(time, name) for name in dir(time) if name[0] != "_"})
        self.namespace.sleep = self._sleep

    def set(self, name: str, on: bool) -> None:
        setattr(self._local, name, on)

    def get(self, name: str) -> bool:
        return getattr(self._local, name, False)

    def _sleep(self, seconds: float) -> None:
        if not self.get("handing_over"):
            time.sleep(seconds)


def _locations(postgresql: Any) -> Callable[..., tuple[int | None, int | None]]:
    def latest_checkpoint_locations(data: dict[str, str] | None = None) -> tuple[int | None, int | None]:
        """Where the shutdown's checkpoint is. Its predecessor is another place only where segments are archived."""
        data = postgresql.controldata() if data is None else data
        lsn = data.get("Latest checkpoint location")
        if data.get("Database cluster state") != "shut down" or not lsn:
            return None, None
        found = _module(postgresql).parse_lsn(lsn)
        return found, found

    return latest_checkpoint_locations


def _controldata(postgresql: Any, clock: _Clock) -> Callable[[], dict[str, str]]:
    original = postgresql.controldata

    def controldata() -> dict[str, str]:
        """What `pg_controldata` says; it is not started before the file has changed to what a stop waits for."""
        if clock.get("stopping") and not is_shut_down(Path(postgresql.data_dir)):
            return {}
        found: dict[str, str] = original()
        return found

    return controldata


def _stop(postgresql: Any, clock: _Clock) -> Callable[..., Any]:
    original = postgresql.stop

    def stop(*args: Any, on_shutdown: Callable[[int, int], Any] | None = None, **kwargs: Any) -> Any:
        def at_once(checkpoint: int, previous: int) -> Any:
            clock.set("stopping", False)
            clock.set("handing_over", True)
            try:
                return on_shutdown(checkpoint, previous) if on_shutdown else None
            finally:
                clock.set("handing_over", False)

        clock.set("stopping", on_shutdown is not None)
        try:
            return original(*args, on_shutdown=at_once if on_shutdown else None, **kwargs)
        finally:
            clock.set("stopping", False)

    return stop


def _patient(ha: Any) -> Callable[..., bool]:
    original = ha.is_failover_possible

    def is_failover_possible(*, cluster_lsn: int = 0, exclude_failover_candidate: bool = False) -> bool:
        """As Patroni has it; with a place in the log, asked again for a while until somebody has got there."""
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            found = bool(original(cluster_lsn=cluster_lsn, exclude_failover_candidate=exclude_failover_candidate))
            if found or not cluster_lsn or time.monotonic() > end:
                return found
            time.sleep(LOOK_SECONDS)

    return is_failover_possible


def _recover(postgresql: Any, ha: Any) -> Callable[[], str]:
    original = ha.recover

    def recover() -> str:
        """As Patroni has it, once the supervisor has had its turn: a PID file is left behind by one that was killed."""
        if ha.has_lock(False) and (Path(postgresql.data_dir) / "postmaster.pid").exists():
            time.sleep(KILLED_SECONDS)
        done: str = original()
        return done

    return recover
