"""What Patroni says of a member, for a person."""

from __future__ import annotations

from typing import Any

import pytest

from workloads.patroni import facts
from workloads.patroni.election import TAG, Holding, Kind, tag
from workloads.patroni.facts import Facts
from workloads.patroni.terms import Position

LEADER = {"role": "primary", "state": "running", "timeline": 3, "xlog": {"location": 0x3000148}, "dcs_last_seen": 9}
REPLICA = {
    "role": "replica",
    "state": "running",
    "replication_state": "streaming",
    "timeline": 3,
    "xlog": {"received_location": 0x3000100, "replayed_location": 1},
}
HELD = Holding(kind=Kind.STANDBY, position=Position(timeline=2, lsn=77))


def test_timeline_log_and_lag_are_shown() -> None:
    """A replica is behind by what it has not received; the leader is behind nobody."""
    leader, replica = facts.read(LEADER), facts.read(REPLICA)
    assert leader.line(leader) == "primary, running, timeline 3, log at 0/3000148"
    assert replica.line(leader) == "replica, streaming, timeline 3, log at 0/3000100, 72 bytes behind"
    assert replica.line(None) == "replica, streaming, timeline 3, log at 0/3000100"
    assert (leader.leads, replica.leads, leader.heard) == (True, False, 9)


def test_what_the_member_would_say_in_an_election_stands_in() -> None:
    """PostgreSQL is not asked while it is down; what the member has, it has said in its tag."""
    down: dict[str, Any] = {"role": "replica", "state": "stopped"}
    held = facts.read(down | {"tags": {TAG: tag(HELD)}})
    assert held.line(None) == "replica, stopped, timeline 2, log at 0/4D"
    empty = facts.read(down | {"tags": {TAG: tag(Holding(kind=Kind.EMPTY))}})
    assert empty.line(held) == "replica, stopped, empty"
    assert facts.read(down).line(held) == "replica, stopped"


@pytest.mark.parametrize(
    "answer",
    [None, [], {}, {"role": "primary"}, {"role": "primary", "state": "\x1b[2J"}, {"role": 1, "state": "running"}],
)
def test_strange_answer_is_refused(answer: Any) -> None:
    """Whatever another member sends is what Patroni says, or a ValueError."""
    with pytest.raises(ValueError, match="Patroni"):
        facts.read(answer)


def test_strange_numbers_are_not_known() -> None:
    """A number out of range, or of another type, counts as none."""
    for number in (-1, 0, 1 << 63, True, "3", 1.5, None):
        odd = {"role": "primary", "state": "running", "timeline": number, "xlog": {"location": number}}
        assert facts.read(odd) == Facts(role="primary", state="running")
    assert facts.read(LEADER | {"xlog": [1]}).position is None
