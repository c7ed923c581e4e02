"""Who may lead where Consul does not remember the cluster, as tables."""

from __future__ import annotations

import itertools

import pytest

from workloads.patroni.election import TAG, Holding, Kind, answer, may_initialize, may_lead, tag
from workloads.patroni.terms import Position

EMPTY = Holding(kind=Kind.EMPTY)
UNSETTLED = Holding(kind=Kind.UNSETTLED)
A, B = "a" * 32, "b" * 32


def standby(timeline: int, lsn: int, term: str = "") -> Holding:
    """One that has replayed up to there."""
    return Holding(kind=Kind.STANDBY, position=Position(timeline=timeline, lsn=lsn), term=term)


def primary(timeline: int, lsn: int = 1) -> Holding:
    """One that leads."""
    return Holding(kind=Kind.PRIMARY, position=Position(timeline=timeline, lsn=lsn))


@pytest.mark.parametrize(
    ("own", "others", "allowed", "why"),
    [
        (standby(2, 10), [], True, "none has more"),
        (standby(2, 10), [standby(2, 10), standby(2, 9)], True, "none has more"),
        (standby(2, 10), [EMPTY, standby(1, 99)], True, "none has more"),
        (standby(2, 10), [standby(2, 11), standby(2, 9)], False, "p0 has more"),
        (standby(2, 10), [standby(3, 1), EMPTY], False, "p0 has more"),
        (standby(2, 10), [standby(2, 9), None], False, "missing: p1"),
        (standby(2, 10), [UNSETTLED, standby(2, 9)], False, "how far the log reaches of: p0"),
        (standby(2, 10), [primary(1), standby(2, 9)], False, "p0 is primary"),
        (standby(2, 10, A), [standby(2, 9, B)], False, "another history"),
        (standby(2, 10, A), [standby(2, 9, A)], True, "none has more"),
        (standby(2, 10, A), [standby(2, 9)], True, "none has more"),
        (UNSETTLED, [EMPTY], False, "this member is unsettled"),
        (EMPTY, [EMPTY], False, "this member is empty"),
        (primary(2), [None, standby(2, 99)], True, "primary already"),
        (primary(2), [None, primary(3)], False, "p1 is further"),
        (primary(2), [standby(3, 1)], False, "p0 is further"),
    ],
)
def test_leading(own: Holding, others: list[Holding | None], allowed: bool, why: str) -> None:
    """The one that has most leads, and only when nobody is missing; who is primary already goes on."""
    verdict = may_lead(own, {f"p{n}": held for n, held in enumerate(others)})
    assert (verdict.allowed, why in verdict.reason) == (allowed, True), verdict.reason


@pytest.mark.parametrize(
    ("others", "allowed", "why"),
    [
        ([standby(2, 1), EMPTY], True, "none has more"),
        ([None, standby(2, 1)], False, "missing: p0"),
        ([UNSETTLED], False, "how far the log reaches of: p0"),
        ([standby(2, 11)], False, "p0 has more"),
        ([standby(3, 1), None], False, "p0 is further"),
        ([primary(2), None], False, "p0 is primary"),
    ],
)
def test_a_paused_primary_asks_like_anybody(others: list[Holding | None], allowed: bool, why: str) -> None:
    """Patroni lets it go on without Consul and without asking: another may have been promoted since. An operator's word
    counts as ever.
    """
    names = {f"p{n}": held for n, held in enumerate(others)}
    for rule in (may_lead, may_initialize):
        verdict = rule(primary(2, 10), names, paused=True)
        assert (verdict.allowed, why in verdict.reason) == (allowed, True), verdict.reason
    assert may_lead(primary(2, 10), {"p0": None}, paused=True, operator=True).allowed


@pytest.mark.parametrize(
    ("own", "others", "allowed", "why"),
    [
        (EMPTY, [], True, "no member has a database"),
        (EMPTY, [EMPTY, EMPTY], True, "no member has a database"),
        (EMPTY, [EMPTY, None], False, "missing: p1"),
        (EMPTY, [UNSETTLED, None], False, "p0 has a database"),
        (EMPTY, [standby(1, 1), EMPTY], False, "p0 has a database"),
        (standby(1, 1), [EMPTY, EMPTY], True, "none has more"),
        (standby(1, 1), [EMPTY, None], False, "missing: p1"),
        (primary(1), [EMPTY, None], True, "primary already"),
    ],
)
def test_initializing(own: Holding, others: list[Holding | None], allowed: bool, why: str) -> None:
    """A new cluster is made only when every member says that it has no database."""
    verdict = may_initialize(own, {f"p{n}": held for n, held in enumerate(others)})
    assert (verdict.allowed, why in verdict.reason) == (allowed, True), verdict.reason


@pytest.mark.parametrize(
    ("own", "others", "allowed"),
    [
        (standby(2, 10), [None, standby(2, 11)], True),
        (UNSETTLED, [None], True),
        (standby(2, 10, A), [standby(2, 9, B)], True),
        (standby(2, 10), [primary(1)], False),
    ],
)
def test_operator_decides(own: Holding, others: list[Holding | None], allowed: bool) -> None:
    """An operator's word stands for what cannot be asked; against a primary that runs it has no weight."""
    assert may_lead(own, {f"p{n}": held for n, held in enumerate(others)}, operator=True).allowed is allowed


def test_operator_does_not_replace_a_database_by_an_empty_one() -> None:
    """A member without data makes no new cluster beside one that answers, whatever an operator said."""
    assert not may_initialize(EMPTY, {"p0": standby(1, 1)}, operator=True).allowed
    assert may_initialize(EMPTY, {"p0": None}, operator=True).allowed


@pytest.mark.parametrize("count", [2, 3])
def test_two_never_lead_with_different_data(count: int) -> None:
    """Of all members, asked at one moment, those that may lead have the same position: Consul picks either."""
    choices = [EMPTY, UNSETTLED, standby(1, 5), standby(1, 6), standby(2, 1), standby(2, 1, A), standby(2, 1, B)]
    for held in itertools.product(choices, repeat=count):
        names = {f"p{n}": one for n, one in enumerate(held)}
        may = [
            one for name, one in names.items() if may_lead(one, {k: v for k, v in names.items() if k != name}).allowed
        ]
        assert len({one.position for one in may}) <= 1, held
        assert not {A, B} <= {one.term for one in may}, held


def test_answer_is_read_back() -> None:
    """What a member puts into its status is what another one reads."""
    for held in (EMPTY, UNSETTLED, standby(3, 1 << 62, A), primary(7)):
        assert answer({"state": "running", "tags": {TAG: tag(held)}}) == held


@pytest.mark.parametrize(
    "status",
    [
        None, [], {}, {"tags": []}, {"tags": {}}, {"tags": {TAG: 1}}, {"tags": {TAG: "x" * 999}},
        *({"tags": {TAG: text}} for text in (
            "", "1", "[]", "[[[", '["king","",1,1]', '["standby","",-1,1]', '["standby","x",1,1]', '["standby","",1]',
            '["standby","",null,1]', '["standby","",Infinity,1]',
        )),
    ],
)  # fmt: skip
def test_broken_answer_is_refused(status: object) -> None:
    """What another member says ends in a ValueError where it cannot be read: that member counts as missing."""
    with pytest.raises(ValueError, match=TAG):
        answer(status)
