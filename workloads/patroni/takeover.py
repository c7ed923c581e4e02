"""How a standby takes over: whatever can wait does, from the moment that the leader key is gone until it is promoted.

Three things that Patroni does on this way, each with a round trip to Consul's servers or to PostgreSQL:
- It renews its session each time that it wakes. One that was renewed within a loop's wait is good for many more; should
  it have ended nevertheless, taking the key fails, and Patroni makes a new one.
- It asks its PostgreSQL for the timeline over a new replication connection when it has not heard of the leader's
  timeline yet. Here it has: it is asked in a quiet moment.
- It cleans up after whoever asked for a switchover. That is done beside the promotion.

That Patroni still has what is changed here is for the tests to say.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

TRIES = 10
"""How often one timeline is asked for: PostgreSQL may still be on its way to it, and may never get there."""


def hasten(dcs: Any, postgresql: Any, ha: Any) -> None:
    """Has Patroni's `dcs`, `postgresql` and `ha` take over as above."""
    _keep_session(dcs, _Timeline(postgresql, ha).learn)
    _clean_up_aside(dcs)


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

    def manual_failover(leader: str, candidate: str, scheduled_at: Any = None, version: Any = None) -> bool:
        """As Patroni has it; where everything is to be emptied and nobody looks at the answer, in a thread."""
        if leader or candidate or scheduled_at or version is not None:
            return bool(ask(leader, candidate, scheduled_at, version))
        threading.Thread(target=ask, args=(leader, candidate), name="clean up", daemon=True).start()
        return True

    dcs.manual_failover = manual_failover
