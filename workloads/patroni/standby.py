"""What a standby does while nobody leads, or somebody else: it follows whoever has the name, and is quiet meanwhile.

Three things that Patroni does otherwise:
- Without a leader it has PostgreSQL follow nobody, and with the next one follow again: each time a new configuration is
  written and read, just when everybody is busy with the take-over. Here all members have one address, a route's, which
  leads to the next leader by itself. Whether the next one's log goes on where this member's ends is looked at all the
  same, once that one says that it is the primary: before, there is nobody to ask, and to get ready for it takes two
  programs (10 ms of a processor that the take-over waits for).
- It says anew what it is each time that it wakes, which costs the servers a write and wakes all other members. Those
  writes came from the one who takes over and from the one who only looks on, just when everybody had to wait for the
  promotion. Here that waits until the change of leader is over.
- It lets a leader without Consul go on (failsafe mode) though it knows of another one, and then holds that first one
  for the leader for 20 s, whatever happens: a leader that was cut off and comes back asks for it, and should the next
  one die soon after, nobody takes over for that long (10 s were measured). Here it refuses, and forgets when it learns
  of another leader.

That Patroni still has what is changed here is for the tests to say.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

QUIET_SECONDS = 1.0
"""From a change of leader to what a member says of itself."""
SILENT_SECONDS = 5.0
"""The longest that it says nothing, however often the leader changes: saying it renews the session as well, which is of
10 s (`config`)."""


def steady(dcs: Any, ha: Any, now: Callable[[], float] = time.monotonic) -> None:
    """Has Patroni's `dcs` and `ha` stand by as above."""
    _know_the_leader(dcs, ha)
    _keep_following(ha)
    _keep_quiet(ha, now)


def _know_the_leader(dcs: Any, ha: Any) -> None:
    update, load = ha.update_failsafe, ha.load_cluster_from_dcs

    def updating(data: dict[str, Any]) -> int | str | None:
        """As Patroni has it: a text refuses. By what Consul said last, if that was not long ago and nothing failed."""
        cluster = dcs.cluster
        leader = cluster.leader.name if cluster is not None and cluster.leader else None
        if leader and leader != data.get("name"):
            return f"{leader} leads"
        answer: int | str | None = update(data)
        return answer

    def loading() -> None:
        load()
        told, leader = ha._failsafe.leader, ha.cluster.leader
        if told and leader and leader.name and told.name != leader.name:
            ha._failsafe.set_is_active(0)

    ha.update_failsafe, ha.load_cluster_from_dcs = updating, loading


def _keep_following(ha: Any) -> None:
    follow = ha.follow
    unchecked = False

    def following(demote_reason: str, follow_reason: str, refresh: bool = True) -> str:
        """As Patroni has it, unless nobody leads and PostgreSQL is a replica that runs: that one waits."""
        nonlocal unchecked
        if refresh:
            ha.load_cluster_from_dcs()
        postgresql = ha.state_handler
        replica = postgresql.role == "replica" and postgresql.state == "running" and not postgresql.is_primary()
        if replica and ha.cluster.is_unlocked() and not ha.is_paused() and not ha.is_standby_cluster():
            unchecked = True
            return "waiting for the next leader"
        if unchecked and _is_primary(ha.cluster.leader):
            unchecked = False
            ha._rewind.trigger_check_diverged_lsn()
        return str(follow(demote_reason, follow_reason, refresh=False))

    ha.follow = following


def _is_primary(leader: Any) -> bool:
    """Whether the holder of the key says that it has been promoted; Patroni asks no other one about its log."""
    return leader is not None and leader.data.get("role") in ("primary", "master")


def _keep_quiet(ha: Any, now: Callable[[], float]) -> None:
    load, touch = ha.load_cluster_from_dcs, ha.touch_member
    leader: str | None = None
    changed: float | None = None
    """When it did, or was seen first."""
    said = float("-inf")

    def loading() -> None:
        nonlocal leader, changed
        load()
        before, leader = leader, ha.cluster.leader.name if ha.cluster.leader else None
        if changed is None or before != leader:
            changed = now()

    def touching() -> bool:
        """As Patroni has it, unless the leader has just changed, and this member said what it is before that."""
        nonlocal said
        just = changed is not None and now() - changed < QUIET_SECONDS
        if just and now() - said < SILENT_SECONDS and ha.cluster.has_member(ha.state_handler.name):
            return True
        done = bool(touch())
        if done:
            said = now()
        return done

    ha.load_cluster_from_dcs, ha.touch_member = loading, touching
