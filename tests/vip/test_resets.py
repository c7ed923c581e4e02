"""The nftables messages, without a kernel."""

from __future__ import annotations

import struct

from vip import table
from vip.messages import Batch
from vip.resets import Refusal, Resets
from vip.table import Wanted

ONE, TWO = Refusal("127.10.1.1", 80), Refusal("127.10.1.2", 5432)


def whole(wanted: Resets) -> Batch:
    """A table that only resets."""
    return table.whole(Wanted(wanted))


def change(held: Resets, wanted: Resets) -> Batch:
    """What leads from one such table to the other."""
    return table.change(Wanted(held), Wanted(wanted))


def kinds(data: bytes) -> list[int]:
    """The kinds of the messages in `data`, whose lengths must be right."""
    found = []
    while data:
        length, kind = struct.unpack_from("=IH", data)
        assert 20 <= length <= len(data)
        found.append(kind)
        data = data[length:]
    return found


def test_a_replacement_is_one_transaction() -> None:
    """Begin, table made, deleted and made anew, sets, chain, rules, elements, end: the kernel takes it as a whole."""
    batch = whole(Resets(frozenset({ONE, TWO}), frozenset({"100.96.0.7"})))
    empty = [0xA00, 0xA02, 0xA00, 0xA09, 0xA09, 0xA03, 0xA06, 0xA06]
    assert kinds(batch.data) == [0x10, *empty, 0xA0C, 0xA0C, 0x11]
    assert batch.acks == 10
    assert whole(Resets()).acks == 8


def test_only_what_changes_is_sent() -> None:
    """New pairs first, in their key's form: the address, then the port in a register of its own."""
    batch = change(Resets(frozenset({ONE})), Resets(frozenset({TWO})))
    assert kinds(batch.data) == [0x10, 0xA0C, 0xA0E, 0x11]
    added, removed = (bytes([127, 10, 1, last]) + port for last, port in ((2, b"\x15\x38\0\0"), (1, b"\0\x50\0\0")))
    assert batch.data.count(added) == batch.data.count(removed) == 1
    assert batch.data.index(added) < batch.data.index(removed)
    assert change(Resets(frozenset({ONE})), Resets(frozenset({ONE, TWO}))).acks == 1


def test_a_lost_peer_is_an_element_of_its_own_set() -> None:
    """The refused pairs stay as they are; the address is the whole key."""
    pairs = frozenset({ONE})
    batch = change(Resets(pairs, frozenset({"100.96.0.7"})), Resets(pairs, frozenset({"100.96.0.8"})))
    assert kinds(batch.data) == [0x10, 0xA0C, 0xA0E, 0x11]
    added, removed = (b"\x08\0\x01\0" + bytes([100, 96, 0, last]) for last in (8, 7))
    assert 0 < batch.data.index(added) < batch.data.index(removed)


def test_nothing_is_sent_where_nothing_changes() -> None:
    """An empty transaction would be a call of the kernel for nothing."""
    assert change(Resets(frozenset({ONE})), Resets(frozenset({ONE}))) == (b"", 0)


def test_many_pairs_are_divided_into_messages_that_the_kernel_can_take() -> None:
    """An attribute's length has 16 bits."""
    many = frozenset(Refusal(f"127.10.{n >> 8}.{n & 255}", 80) for n in range(1 << 13))
    batch = change(Resets(), Resets(many))
    assert kinds(batch.data)[1:-1] == [0xA0C] * 9
    assert batch.acks == 9
