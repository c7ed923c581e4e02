"""Whether a failover would work: what `health` and `status` of a member say. Pure.

Ready means that a failover would work. In a synchronous cluster only the synchronous standby may take over, so without
one there is no failover, however many replicas stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workloads.patroni.standing import Standing, State

_LEADERS = frozenset({"leader", "standby_leader"})
_SYNCHRONOUS = frozenset({"sync_standby", "quorum_standby"})
_UP = frozenset({"running", "streaming"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Wholeness:
    """Whether the cluster is ready, and why (not)."""

    ready: bool
    reason: str


def judge(cluster: Any, config: Any, own: str, listed: int, standing: Standing) -> Wholeness:
    """Whether a failover would work, as the member `own` sees it.

    `cluster`, `config`: Patroni's answers to `GET /cluster` and `GET /config`, decoded. `listed`: members that the
    manifest lists. ValueError where the answers are none of Patroni's.
    """
    if standing.state is not State.WHOLE:
        return Wholeness(ready=False, reason=f"{own} is {standing.state}: {standing.reason}")
    members = _members(cluster)
    synchronous = isinstance(config, dict) and config.get("synchronous_mode") is True
    up = {name: role for name, (role, state) in members.items() if state in _UP}
    leader = next((name for name, role in up.items() if role in _LEADERS), None)
    if leader is None:
        return Wholeness(ready=False, reason="nobody leads")
    if own not in up:
        return Wholeness(ready=False, reason=f"{own} is {members.get(own, ('', 'not a member yet'))[1]}")
    if listed <= 1:
        return Wholeness(ready=True, reason=f"{leader} leads; there is no standby: the cluster has one member")
    wanted = _SYNCHRONOUS if synchronous else _SYNCHRONOUS | {"replica"}
    kind = "synchronous standby" if synchronous else "standby"
    standbys = sorted(name for name, role in up.items() if role in wanted)
    if not standbys:
        return Wholeness(ready=False, reason=f"{leader} leads, and has no {kind}: nobody may take over from it")
    return Wholeness(ready=True, reason=f"{leader} leads, with the {kind} {', '.join(standbys)}")


def _members(cluster: Any) -> dict[str, tuple[str, str]]:
    """Role and state by name."""
    listed = cluster.get("members") if isinstance(cluster, dict) else None
    if not isinstance(listed, list):
        raise ValueError("Patroni's answer has no list of members")
    found: dict[str, tuple[str, str]] = {}
    for item in listed:
        if not isinstance(item, dict):
            raise ValueError("a member in Patroni's answer is no object")
        found[str(item.get("name"))] = (str(item.get("role")), str(item.get("state")))
    return found
