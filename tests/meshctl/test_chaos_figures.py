"""Accounting and statistics of chaos rounds: given histories, known answers."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshctl.chaos_figures import (
    FAULTS,
    Ack,
    Round,
    Spread,
    after_demotion,
    decision,
    document,
    last_closed,
    longest_gap,
    lost,
    outage,
    recovery,
    spread,
    summaries,
)


def ack(seq: int, end: float, timeline: int = 1, *, start: float | None = None, writer: int = 0) -> Ack:
    """An acknowledged write that took a millisecond."""
    begin = end - 0.001 if start is None else start
    return Ack(writer=writer, seq=seq, start=begin, end=end, timeline=timeline, peer=f"postgres-{timeline}")


def result(**changes: Any) -> Round:
    """A good round."""
    fields: dict[str, Any] = {
        "fault": "crash-postgres", "number": 0, "victim": "postgres-0", "at": 10.0, "leader": "postgres-0",
        "new_leader": "postgres-1", "rto": 0.2, "closed": {"idle": 0.1, "talking": 0.05}, "decided": 0.05,
        "acknowledged": 100,
        "unknown": 1, "lost": (), "demoted": (), "reads": 50, "read_gap": 0.1,
    }  # fmt: skip
    return Round(**(fields | changes))


def test_recovery_is_the_first_write_of_the_new_leader() -> None:
    """From the fault to it, whatever the old leader still acknowledged; for a switchover, from the last of those."""
    history = [ack(1, 9.99), ack(2, 10.05), ack(3, 10.40, 2), ack(4, 10.45, 2)]
    assert recovery(history, 10.0, 1, pause=False) == pytest.approx(0.40)
    assert recovery(history, 10.0, 1, pause=True) == pytest.approx(0.35)
    assert outage(history, 10.0, 1) == (10.05, 10.40)


def test_recovery_without_a_new_leader_is_the_end_of_the_longest_outage() -> None:
    """One hiccup before the fault and one small one after it do not count."""
    history = [ack(1, 8.0), ack(2, 9.98), ack(3, 10.01), ack(4, 10.31), ack(5, 10.33), ack(6, 10.43)]
    assert recovery(history, 10.0, 1, pause=False) == pytest.approx(0.31)
    assert recovery(history, 10.0, 1, pause=True) == pytest.approx(0.30)


def test_no_recovery_is_none() -> None:
    """Nothing acknowledged after the fault, or nothing at all."""
    assert recovery([ack(1, 9.0), ack(2, 9.5)], 10.0, 1, pause=False) is None
    assert recovery([], 10.0, 1, pause=True) is None


def test_recovery_counts_from_the_fault_when_nothing_was_acknowledged_before() -> None:
    """A switchover before anybody wrote."""
    assert recovery([ack(1, 10.5, 2)], 10.0, 1, pause=True) == pytest.approx(0.5)


def test_acknowledged_rows_that_are_not_there_are_lost() -> None:
    """Rows nobody was told about are no gain, rows of another writer no substitute."""
    acks = [ack(1, 1.0), ack(2, 2.0), ack(2, 2.0, writer=1)]
    assert lost(acks, [[0, 1], [0, 2], [1, 2], [0, 3]]) == ()
    assert lost(acks, [[0, 1], [1, 2], [0, 3]]) == (acks[1],)
    assert lost(acks, []) == tuple(acks)


def test_a_demoted_leader_is_caught_by_the_clock() -> None:
    """A write that began after the successor had acknowledged one, and was acknowledged by the predecessor."""
    fine = [ack(1, 1.0), ack(2, 2.2, start=1.9), ack(3, 2.0, 2), ack(4, 2.5, 2)]
    assert after_demotion(fine) == ()
    late = ack(5, 3.0, 1, start=2.1)
    assert after_demotion([*fine, late]) == (late,)
    assert after_demotion([ack(1, 1.0, 1), ack(2, 2.0, 2), ack(3, 3.0, 3)]) == ()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 50)), unique=True), st.data())
def test_what_is_present_is_never_lost(rows: list[tuple[int, int]], data: st.DataObject) -> None:
    """For any rows and any part of them acknowledged: nothing lost; with any of those removed: exactly those."""
    told = [ack(seq, float(seq), writer=writer) for writer, seq in rows if data.draw(st.booleans())]
    assert lost(told, [list(row) for row in rows]) == ()
    gone = {each.row for each in told if data.draw(st.booleans())}
    assert {each.row for each in lost(told, [list(row) for row in rows if row not in gone])} == gone


def moves(seconds: str, route: str, was: str) -> str:
    """A line of a sidecar's log."""
    stamp = f"time=2026-11-26T14:00:{seconds}Z level=info logger=sidecar.effects"
    return f'{stamp} event="role moves" route={route} was={was} now=nobody'


def test_the_decision_is_read_from_the_callers_log() -> None:
    """The first line after the fault that takes the route from that leader; other routes and leaders do not count."""
    lines = [
        moves("00.500", "m", "pg-0"),
        "noise",
        moves("01.000", "n", "pg-0"),
        moves("01.250", "m", "pg-0"),
        moves("01.750", "m", "nobody"),
    ]
    start = datetime(2026, 11, 26, 14, 0, 0, tzinfo=UTC).timestamp()
    assert decision(lines, "m", "pg-0", start) == pytest.approx(start + 0.5)
    assert decision(lines, "m", "pg-0", start + 1) == pytest.approx(start + 1.25)
    assert decision(lines, "m", "pg-0", start + 1.2505) == pytest.approx(start + 1.25)
    assert decision(lines, "m", "pg-0", start + 2) is None
    assert decision([], "m", "pg-0", start) is None


def test_gaps_and_spreads() -> None:
    """The longest silence; median, p99 and maximum of what is known."""
    assert longest_gap([3.0, 1.0, 1.5]) == 1.5
    assert longest_gap([1.0]) is None
    assert spread([0.3, None, 0.1, 0.2]) == Spread(median=0.2, p99=0.3, max=0.3)
    assert spread([None]) == Spread(median=None, p99=None, max=None)


def test_old_connections_are_closed_when_the_last_one_is() -> None:
    """One that stays open leaves no figure."""
    assert last_closed({"idle": 0.1, "talking": 0.2}) == 0.2
    assert last_closed({"idle": None, "talking": 0.2}) is None
    assert last_closed({}) is None


def test_summaries_add_up_per_fault() -> None:
    """Counts are sums, times are spreads, in the order of the faults; faults without a round are absent."""
    rounds = [
        result(fault="switchover", rto=0.1),
        result(rto=0.4, lost=(ack(1, 1.0),), closed={"idle": None, "talking": 0.1}),
        result(rto=0.2, unknown=2, forked=("postgres-1", "postgres-2")),
        result(rto=None),
    ]
    first, second = summaries(rounds)
    assert (first.fault, second.fault) == ("crash-postgres", "switchover")
    assert (first.rounds, first.acknowledged, first.lost, first.unknown) == (3, 300, 1, 4)
    assert (first.rto.median, first.rto.max, first.never_closed, first.forked) == (0.2, 0.4, 1, 2)
    assert second.rto == Spread(median=0.1, p99=0.1, max=0.1)
    assert summaries([]) == ()


def test_document_is_the_contract() -> None:
    """Exactly the documented fields, as JSON."""
    tree = json.loads(json.dumps(document(summaries([result(), result(fault="cvm-loss", rto=None)]))))
    assert tree == {
        "faults": [
            {
                "fault": "crash-postgres",
                "rounds": 1,
                "rto_s": {"median": 0.2, "p99": 0.2, "max": 0.2},
                "old_connection_closed_s": {"median": 0.1, "p99": 0.1, "max": 0.1},
                "writes_acknowledged": 100,
                "writes_lost": 0,
                "members_forked": 0,
            },
            {
                "fault": "cvm-loss",
                "rounds": 1,
                "rto_s": {"median": None, "p99": None, "max": None},
                "old_connection_closed_s": {"median": 0.1, "p99": 0.1, "max": 0.1},
                "writes_acknowledged": 100,
                "writes_lost": 0,
                "members_forked": 0,
            },
        ]
    }
    assert FAULTS == (
        "crash-postgres", "crash-patroni", "crash-envoy", "crash-sidecar", "cvm-loss", "partition-both", "partition-in",
        "partition-out", "switchover", "coordinators-restart", "coordinators-lost", "coordinator-and-members",
        "rolling-update", "disk-full", "rest-attack", "check-attack",
    )  # fmt: skip
