"""How a standby takes over: whatever can wait does, from the moment that the leader key is gone until it is promoted.

Three things that Patroni does on this way, each with a round trip to Consul's servers or to PostgreSQL:
- It renews its session each time that it wakes. One that was renewed within a loop's wait is good for many more; should
  it have ended nevertheless, the key is not taken with it, and a new one is made (`acquire`).
- It asks its PostgreSQL for the timeline over a new replication connection when it has not heard of the leader's
  timeline yet. Here it has: it is asked in a quiet moment.
- It cleans up after whoever asked for a switchover. That is done after the promotion.

And one of PostgreSQL's: its startup process may hear of the promotion between two looks, or even take the request, and
go to sleep over it for as long as it waits between two attempts to follow. It is woken until it is done.

That Patroni still has what is changed here is for the tests to say.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from workloads.patroni import control
from workloads.patroni.processes import postmaster_pid

log = logging.getLogger(__name__)

TRIES = 10
"""How often one timeline is asked for: PostgreSQL may still be on its way to it, and may never get there."""
CLEAN_UP_SECONDS = 0.5
"""Until the promotion is over: each write wakes everybody who watches. Before the next round of Patroni, which would
clean up as well."""
NUDGE_SECONDS = 0.02
"""Between two signals that a promotion waits."""
NUDGES = 100
WAKE_TURNS = 5
"""Once the request was taken, only each fifth nudge is one: most are done with it before the first, and each makes
every process read its configuration."""
REQUEST = "promote"
"""The file in the data directory that asks for a promotion; the startup process removes it (PROMOTE_SIGNAL_FILE)."""


def hasten(dcs: Any, postgresql: Any, ha: Any) -> None:
    """Has Patroni's `dcs`, `postgresql` and `ha` take over as above."""
    _keep_session(dcs, _Timeline(postgresql, ha).learn)
    _clean_up_aside(dcs)
    _insist(postgresql)


def _keep_session(dcs: Any, when_quiet: Callable[[], None]) -> None:
    watch = dcs.watch

    def watching(leader_version: int | None, timeout: float) -> bool:
        renewed = dcs._last_session_refresh
        changed = bool(watch(leader_version, timeout))
        if changed and leader_version:
            dcs._last_session_refresh = renewed
        elif leader_version:
            when_quiet()
        return changed

    dcs.watch = watching


class _Timeline:
    """Has Patroni remember the timeline that its PostgreSQL is on."""

    def __init__(self, postgresql: Any, ha: Any) -> None:
        self._postgresql = postgresql
        self._ha = ha
        self._wanted: int | None = None
        self._tries = 0

    def learn(self) -> None:
        """To be called as long as nothing happens: whoever asks next finds it remembered."""
        wanted = self._ha.cluster.timeline
        if wanted != self._wanted:
            self._wanted, self._tries = wanted, 0
        if self._tries == TRIES or self._postgresql.role != "replica" or self._postgresql.state != "running":
            return
        # It opens no connection for one that it remembers.
        known = self._postgresql.replica_cached_timeline(wanted)
        self._tries = TRIES if known == wanted else self._tries + 1


def _clean_up_aside(dcs: Any) -> None:
    ask = dcs.manual_failover

    def clean_up(version: int | None) -> None:
        time.sleep(CLEAN_UP_SECONDS)
        # What somebody has asked for since is another version, and stays.
        ask("", "", version=version)

    begin = _aside("clean up", clean_up)

    def manual_failover(leader: str, candidate: str, scheduled_at: Any = None, version: Any = None) -> bool:
        """As Patroni has it; where everything is to be emptied and nobody looks at the answer, in a thread."""
        if leader or candidate or scheduled_at or version is not None:
            return bool(ask(leader, candidate, scheduled_at, version))
        failover = dcs.cluster.failover if dcs.cluster is not None else None
        begin(failover.version if failover is not None else None)
        return True

    dcs.manual_failover = manual_failover


def _insist(postgresql: Any) -> None:
    pg_ctl = postgresql.pg_ctl
    begin = _aside("nudge", nudge)

    def insisting(command: str, *args: str, **kwargs: Any) -> bool:
        done = bool(pg_ctl(command, *args, **kwargs))
        if done and command == "promote":
            begin(Path(postgresql.data_dir))
        return done

    postgresql.pg_ctl = insisting


def _aside(name: str, work: Callable[[Any], object]) -> Callable[[Any], None]:
    """A call that has `work` done by a thread, which waits for it: to start one takes until its first turn, 16 ms when
    everybody wants one.
    """
    begun: SimpleQueue[Any] = SimpleQueue()

    def run() -> None:
        while True:
            about = begun.get()
            try:
                work(about)
            except Exception:
                log.exception("%s", name)

    threading.Thread(target=run, name=name, daemon=True).start()
    return begun.put


def nudge(data: Path) -> None:
    """Wakes the startup process of PostgreSQL on `data` until the promotion that was asked for is done.

    As long as the request lies there, as `pg_ctl promote` does: SIGUSR1, upon which the server looks for it. After that
    by what `pg_ctl reload` sends, SIGHUP, which every process takes note of.
    """
    for turn in range(NUDGES):
        time.sleep(NUDGE_SECONDS)
        pid = postmaster_pid(data)
        asked = (data / REQUEST).exists()
        if pid is None or not (asked or control.state(data) == control.IN_RECOVERY):
            return
        if asked or turn % WAKE_TURNS == WAKE_TURNS - 1:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1 if asked else signal.SIGHUP)
