"""Plans for virtual addresses: every prefix is safe."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from vip.plan import Add, Operation, Remove, plan

ADDRESSES = st.frozensets(st.sampled_from([f"127.10.0.{index}" for index in range(1, 12)]))


def after(present: frozenset[str], operation: Operation) -> frozenset[str]:
    """The addresses once the operation was carried out."""
    return present | {operation.address} if isinstance(operation, Add) else present - {operation.address}


def test_nothing_to_do_is_an_empty_plan() -> None:
    """Ours and wanted, or foreign and not wanted: both stay."""
    assert plan(frozenset({"127.0.0.1", "127.10.0.1"}), frozenset({"127.10.0.1"}), frozenset({"127.10.0.1"})) == ()


def test_additions_come_first_in_numeric_order() -> None:
    """A new route waits for no removal, and the plan is the same each time."""
    present = frozenset({"127.10.0.9", "127.10.0.10"})
    assert plan(present, frozenset({"127.10.0.2", "127.10.0.11"}), present) == (
        Add("127.10.0.2"),
        Add("127.10.0.11"),
        Remove("127.10.0.9"),
        Remove("127.10.0.10"),
    )


def test_a_foreign_address_that_is_wanted_is_used_and_never_removed() -> None:
    """It is not added again; when it is no longer wanted it is still not ours to remove."""
    foreign = frozenset({"127.10.0.1"})
    assert plan(foreign, foreign, frozenset()) == ()
    assert plan(foreign, frozenset(), frozenset()) == ()


def test_an_address_once_ours_that_is_gone_is_not_removed() -> None:
    """Somebody removed it already."""
    assert plan(frozenset(), frozenset(), frozenset({"127.10.0.1"})) == ()


@given(ADDRESSES, ADDRESSES, ADDRESSES)
def test_a_plan_reaches_its_end_and_every_prefix_is_safe(
    present: frozenset[str], wanted: frozenset[str], marked: frozenset[str]
) -> None:
    """At no step is a wanted address lost or a foreign one touched; interrupted anywhere, planning again goes on."""
    owned = present & marked
    foreign = present - owned
    steps = plan(present, wanted, owned)
    states = [present]
    for operation in steps:
        states.append(after(states[-1], operation))
    for before, now in pairwise(states):
        assert (now & wanted) >= (before & wanted)
        assert now >= foreign
    assert states[-1] == foreign | wanted
    for done, state in enumerate(states):
        now_owned = (owned | (state - present)) & state
        assert plan(state, wanted, now_owned) == steps[done:]
