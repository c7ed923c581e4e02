"""The table as a whole, without a kernel."""

from __future__ import annotations

from tests.vip.test_resets import kinds
from vip.filter import Filter
from vip.resets import Refusal, Resets
from vip.table import Wanted, change, gone, whole

PACKETS = Filter("100.96.0.0/16", "mesh0", frozenset({28000, 8301}), frozenset({8301}))
RESETS = Resets(frozenset({Refusal("127.10.1.1", 80)}))
RULES, SETS, CHAINS = 16, 4, 4


def test_resets_and_filter_are_one_transaction() -> None:
    """Sets and chains of both, then what is in the sets."""
    found = kinds(whole(Wanted(RESETS, PACKETS)).data)
    assert [found.count(kind) for kind in (0xA06, 0xA09, 0xA03)] == [RULES, SETS, CHAINS]
    assert found[-4:] == [0xA0C, 0xA0C, 0xA0C, 0x11]


def test_one_route_that_flaps_among_a_thousand_costs_one_element() -> None:
    """The kernel is told of that route only, whatever else is refused."""
    all_of_them = frozenset(Refusal(f"127.10.{number >> 8}.{number & 255}", 80) for number in range(1000))
    flapping = Refusal("127.10.1.1", 80)
    refused, served = (Wanted(Resets(each), PACKETS) for each in (all_of_them, all_of_them - {flapping}))
    for held, wanted, kind in ((refused, served, 0xA0E), (served, refused, 0xA0C)):
        found = change(held, wanted)
        assert kinds(found.data) == [0x10, kind, 0x11]
        assert len(found.data) < 200, "bytes"


def test_a_change_of_ports_sends_the_ports_that_change() -> None:
    """Nothing of the resets, and no rule."""
    more = PACKETS._replace(tcp=frozenset({28001, 8301}))
    assert kinds(change(Wanted(RESETS, PACKETS), Wanted(RESETS, more)).data) == [0x10, 0xA0C, 0xA0E, 0x11]
    assert change(Wanted(RESETS, PACKETS), Wanted(RESETS, PACKETS)) == (b"", 0)


def test_another_pool_or_interface_takes_another_table() -> None:
    """So does a filter where there was none, and none where there was one."""
    held = Wanted(RESETS, PACKETS)
    others = (PACKETS._replace(pool="100.97.0.0/16"), PACKETS._replace(interface="mesh1"), None)
    for wanted in (Wanted(RESETS, other) for other in others):
        assert change(held, wanted) == whole(wanted)
        assert change(wanted, held) == whole(held)


def test_taking_the_table_away_needs_none_to_be_there() -> None:
    """It is made before it is deleted, which is an error only where it is missing."""
    assert kinds(gone().data) == [0x10, 0xA00, 0xA02, 0x11]
