"""Ready means that a failover would work, as a table."""

from __future__ import annotations

from typing import Any

import pytest

from workloads.patroni.standing import Standing, State
from workloads.patroni.wholeness import judge

SYNCHRONOUS = {"synchronous_mode": True}


def cluster(*roles: str, state: str = "streaming") -> dict[str, Any]:
    """Patroni's answer to `GET /cluster`."""
    return {"members": [
        {"name": f"p{n}", "role": role, "state": "running" if role == "leader" else state}
        for n, role in enumerate(roles)
    ]}  # fmt: skip


@pytest.mark.parametrize(
    ("found", "config", "listed", "ready", "why"),
    [
        (cluster("leader", "sync_standby", "replica"), SYNCHRONOUS, 3, True, "synchronous standby p1"),
        (cluster("leader", "replica", "replica"), SYNCHRONOUS, 3, False, "no synchronous standby"),
        (cluster("leader", "sync_standby", state="stopped"), SYNCHRONOUS, 2, False, "no synchronous standby"),
        (cluster("leader"), SYNCHRONOUS, 3, False, "no synchronous standby"),
        (cluster("leader"), SYNCHRONOUS, 1, True, "there is no standby"),
        (cluster("leader", "replica"), {}, 2, True, "the standby p1"),
        (cluster("leader"), {}, 2, False, "no standby"),
        (cluster("replica", "replica"), SYNCHRONOUS, 2, False, "nobody leads"),
        ({"members": []}, SYNCHRONOUS, 1, False, "nobody leads"),
    ],
)
def test_readiness(found: dict[str, Any], config: dict[str, Any], listed: int, ready: bool, why: str) -> None:
    """A synchronous cluster is ready with a synchronous standby, or where it can have none; and it says which."""
    judged = judge(found, config, "p0", listed, Standing())
    assert (judged.ready, why in judged.reason) == (ready, True), judged.reason


@pytest.mark.parametrize("state", [State.FORK, State.WAITING])
def test_member_that_is_not_whole_is_not_ready(state: State) -> None:
    """A fork is never ready, whatever Patroni says of it."""
    judged = judge(cluster("leader", "sync_standby"), SYNCHRONOUS, "p1", 2, Standing(state=state, reason="why"))
    assert not judged.ready
    assert "why" in judged.reason


def test_own_member_counts() -> None:
    """A member that is not up yet is not ready, though the others are."""
    assert not judge(cluster("leader", "sync_standby"), SYNCHRONOUS, "p2", 3, Standing()).ready


@pytest.mark.parametrize("found", [None, [], {}, {"members": 1}, {"members": [1]}])
def test_strange_answer_is_refused(found: Any) -> None:
    """What is no answer of Patroni's ends in a ValueError."""
    with pytest.raises(ValueError, match="Patroni's answer"):
        judge(found, {}, "p0", 1, Standing())
