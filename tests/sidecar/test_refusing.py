"""When refusals begin and end, on a table that is not the machine's."""

from __future__ import annotations

import asyncio

from sidecar.refusing import Refusing
from tests.sidecar.test_effects import FakeRefusals
from vip.filter import Filter
from vip.resets import Refusal

ONE, TWO = Refusal("127.10.1.1", 80), Refusal("127.10.1.2", 80)


async def test_what_begins_while_a_lift_is_under_way_stays() -> None:
    """A route that empties after Envoy was given a snapshot, and before it has it, is not lifted with that."""
    table = FakeRefusals()
    refusing = Refusing(table)
    await refusing.begin(frozenset({ONE}))
    refusing.published("1", frozenset())
    await asyncio.gather(refusing.begin(frozenset({TWO})), refusing.envoy_has("1"))
    assert table.applied[-1] == {TWO}


async def test_a_table_that_fails_is_told_once_and_tried_again() -> None:
    """The problem stays until the kernel takes it; a lift that failed is made up for at the next call."""
    table = FakeRefusals()
    refusing = Refusing(table)
    await refusing.begin(frozenset({ONE}))
    refusing.published("1", frozenset())
    table.fails = 1
    await refusing.envoy_has("1")
    assert refusing.problem == "not permitted"
    await refusing.begin(frozenset())
    assert refusing.problem is None
    assert table.applied == [{ONE}, frozenset()]
    await refusing.begin(frozenset())
    assert len(table.applied) == 2, "nothing changes, so nothing is sent"


async def test_without_a_table_everything_else_goes_on() -> None:
    """A kernel that takes none is a problem to show, at every step."""
    table = FakeRefusals()
    table.fails = 100
    refusing = Refusing(table)
    await refusing.begin(frozenset({ONE}))
    assert refusing.published("1", frozenset())
    await refusing.envoy_has("1")
    await refusing.stop()
    assert refusing.problem == "not permitted"
    assert table.applied == []


async def test_a_stop_ends_all_refusals() -> None:
    """Nothing of ours is left in the kernel."""
    table = FakeRefusals()
    refusing = Refusing(table)
    await refusing.begin(frozenset({ONE, TWO}))
    await refusing.stop()
    assert table.applied[-1] == frozenset()


async def test_the_filter_stays_whatever_is_refused() -> None:
    """It begins with the first call, in the same transaction, and only another one changes it."""
    table = FakeRefusals()
    refusing = Refusing(table)
    packets = Filter("100.96.0.0/16", "mesh0", frozenset({8301}))
    await refusing.begin(frozenset({ONE}), packets)
    assert (table.applied, table.filter) == ([{ONE}], packets)
    refusing.published("1", frozenset())
    await refusing.envoy_has("1")
    await refusing.lose(frozenset({"100.96.0.7"}))
    assert table.filter == packets
    more = packets._replace(tcp=frozenset({8301, 28000}))
    await refusing.begin(frozenset(), more)
    assert (table.filter, table.lost) == (more, {"100.96.0.7"})
    await refusing.stop()
    assert table.filter is None


async def test_a_filter_that_failed_is_tried_again() -> None:
    """Nothing waits for it; the next call makes up for it."""
    table = FakeRefusals()
    table.fails = 1
    refusing = Refusing(table)
    packets = Filter("100.96.0.0/16", "mesh0")
    await refusing.begin(frozenset(), packets)
    assert (table.filter, refusing.problem) == (None, "not permitted")
    await refusing.begin(frozenset(), packets)
    assert (table.filter, refusing.problem) == (packets, None)
