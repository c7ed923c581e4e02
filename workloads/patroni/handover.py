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

import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from workloads.patroni import control, txn

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.01
"""Between looks at a PostgreSQL that was told to stop, and between questions to those who may follow it."""
PATIENCE_SECONDS = 1.0
"""How long the others are given to have everything; it is Patroni's own. Then the end of the process is waited for."""
KILLED_SECONDS = 10.0
"""How long a Patroni with a killed PostgreSQL waits to be ended by its supervisor, which takes milliseconds."""


def hasten(dcs: Any, postgresql: Any, ha: Any) -> None:
    """Has Patroni's `dcs`, `postgresql` and `ha` hand over as above."""
    _Deletion(dcs)
    clock = _Clock()
    # Not by import: these two modules of Patroni cannot be imported in every order.
    _module(ha).time = clock.namespace
    _module(postgresql).STOP_POLLING_INTERVAL = LOOK_SECONDS
    postgresql.latest_checkpoint_locations = _locations(postgresql)
    postgresql.controldata = _controldata(postgresql, clock)
    postgresql.stop = _stop(postgresql, clock)
    ha.is_failover_possible = _patient(ha)
    ha.touch_member = _touch(ha, clock)
    ha.recover = _recover(postgresql, ha)


class _Deletion:
    """Writes the end of the log and deletes the leader key, in one transaction where that can be. Per thread: what
    another one writes is not held back.
    """

    def __init__(self, dcs: Any) -> None:
        self._dcs = dcs
        self._delete, self._write, self._whole = dcs._delete_leader, dcs._write_status, dcs.delete_leader
        self._local = threading.local()
        dcs._delete_leader, dcs._write_status, dcs.delete_leader = self.delete, self.write, self.whole

    def whole(self, leader: Any, last_lsn: int | None = None) -> bool:
        """As Patroni has it: `write`, then `delete`."""
        self._local.held = []
        try:
            return bool(self._whole(leader, last_lsn))
        finally:
            self._write_held()
            self._local.held = None

    def write(self, value: str) -> bool:
        """Writes the status, or holds it back for the transaction."""
        held = getattr(self._local, "held", None)
        if held is None:
            return bool(self._write(value))
        held.append(value)
        return True

    def delete(self, leader: Any) -> bool:
        """Whether the key is gone; also one that has another version than `leader`, while our own session holds it."""
        if self._at_once(leader):
            return True
        self._write_held()
        if self._delete(leader):
            return True
        now = self._dcs.get_cluster().leader
        if now is None or now.version == leader.version or now.session != leader.session:
            return False
        return bool(self._delete(now))

    def _at_once(self, leader: Any) -> bool:
        held = getattr(self._local, "held", None)
        if not held:
            return False
        dcs = self._dcs
        writes = [txn.call("set", dcs.status_path, value) for value in held]
        try:
            txn.commit(dcs._client, [*writes, txn.call("delete-cas", dcs.leader_path, Index=int(leader.version))])
        except Exception as error:  # noqa: BLE001 -- then one after the other, which meets it again and says so
            log.info("the leader key is not given away in one step: %r", error)
            return False
        held.clear()
        return True

    def _write_held(self) -> None:
        held = getattr(self._local, "held", None) or []
        for value in held:
            self._write(value)
        held.clear()


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
        if clock.get("stopping") and control.state(Path(postgresql.data_dir)) != control.SHUT_DOWN:
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


def _touch(ha: Any, clock: _Clock) -> Callable[[], Any]:
    original = ha.touch_member

    def touch_member() -> Any:
        """As Patroni has it, which says after its key that it stops; its next round, or its end, says so as well."""
        return True if clock.get("handing_over") else original()

    return touch_member


def _recover(postgresql: Any, ha: Any) -> Callable[[], str]:
    original = ha.recover

    def recover() -> str:
        """As Patroni has it, once the supervisor has had its turn: a PID file is left behind by one that was killed."""
        if ha.has_lock(False) and (Path(postgresql.data_dir) / "postmaster.pid").exists():
            time.sleep(KILLED_SECONDS)
        done: str = original()
        return done

    return recover
