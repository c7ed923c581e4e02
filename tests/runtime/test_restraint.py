from __future__ import annotations

from runtime.restraint import MOST_KINDS, Allowance, Restraint

THREE = Allowance(at_once=3, seconds=10.0)


def test_so_many_at_once_then_one_for_each_interval() -> None:
    """The first after a silence says how many were not written."""
    restraint = Restraint()
    assert [restraint.passes("a", THREE, 0.0) for _ in range(5)] == [0, 0, 0, None, None]
    assert restraint.passes("a", THREE, 9.0) is None
    assert restraint.passes("a", THREE, 10.0) == 3
    assert restraint.passes("a", THREE, 11.0) is None
    assert restraint.total == 4


def test_a_silence_gives_no_more_than_at_once() -> None:
    """However long it was."""
    restraint = Restraint()
    restraint.passes("a", THREE, 0.0)
    assert [restraint.passes("a", THREE, 1e6) for _ in range(4)] == [0, 0, 0, None]


def test_kinds_do_not_take_from_each_other() -> None:
    """A flood of one leaves the others alone."""
    restraint = Restraint()
    for _ in range(100):
        restraint.passes("flood", THREE, 0.0)
    assert restraint.passes("other", THREE, 0.0) == 0


def test_a_count_is_told_when_no_more_lines_come() -> None:
    """Once, after the interval."""
    restraint = Restraint()
    for _ in range(5):
        restraint.passes("a", THREE, 0.0)
    assert restraint.waits
    assert restraint.due(9.0) == []
    assert restraint.due(10.0) == [("a", 2)]
    assert not restraint.waits
    assert restraint.due(1e6) == []


def test_a_clock_that_is_set_back_does_no_harm() -> None:
    """It gives nothing, and an interval later there is a line again."""
    restraint = Restraint()
    for _ in range(3):
        restraint.passes("a", THREE, 1e9)
    assert restraint.passes("a", THREE, 0.0) is None
    assert restraint.passes("a", THREE, 10.0) == 1


def test_kinds_are_bounded() -> None:
    """Whoever makes up new ones gets one allowance for all that are too many."""
    restraint = Restraint()
    passed = [restraint.passes(number, THREE, 0.0) for number in range(MOST_KINDS + 10)]
    assert passed.count(0) == MOST_KINDS + 3
