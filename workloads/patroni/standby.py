"""What a standby does while it leads nobody: it goes on following whoever has the name, and knows who leads.

Two things that Patroni does otherwise:
- Without a leader it has PostgreSQL follow nobody, and with the next one follow again: each time a new configuration is
  written and read, just when everybody is busy with the take-over. Here all members have one address, a route's, which
  leads to the next leader by itself. Whether the next one's log goes on where this member's ends is looked at all the
  same.
- It lets a leader without Consul go on (failsafe mode) though it knows of another one, and then holds that first one
  for the leader for 20 s, whatever happens: a leader that was cut off and comes back asks for it, and should the next
  one die soon after, nobody takes over for that long (10 s were measured). Here it refuses, and forgets when it learns
  of another leader.

That Patroni still has what is changed here is for the tests to say.
"""

from __future__ import annotations

from typing import Any


def steady(dcs: Any, ha: Any) -> None:
    """Has Patroni's `dcs` and `ha` stand by as above."""
    _know_the_leader(dcs, ha)
    _keep_following(ha)


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

    def following(demote_reason: str, follow_reason: str, refresh: bool = True) -> str:
        """As Patroni has it, unless nobody leads and PostgreSQL is a replica that runs: that one waits."""
        if refresh:
            ha.load_cluster_from_dcs()
        postgresql = ha.state_handler
        replica = postgresql.role == "replica" and postgresql.state == "running" and not postgresql.is_primary()
        if not replica or not ha.cluster.is_unlocked() or ha.is_paused() or ha.is_standby_cluster():
            return str(follow(demote_reason, follow_reason, refresh=False))
        ha._rewind.trigger_check_diverged_lsn()
        return "waiting for the next leader"

    ha.follow = following
