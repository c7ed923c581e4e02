"""Our nftables table as a whole: what is reset (`vip.resets`) and what may come in (`vip.filter`). Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from vip import filter as packets
from vip import messages, resets
from vip.filter import Filter
from vip.messages import Batch
from vip.resets import Resets


class Wanted(NamedTuple):
    """What the table is to do."""

    resets: Resets = Resets()
    filter: Filter | None = None
    """None: everything may come in."""


def whole(wanted: Wanted) -> Batch:
    """Replaces our table, whoever left it, by one that does `wanted`; nothing is open in between. ValueError when a
    part of it is no address or network.
    """
    return messages.batch(*_anew(wanted))


def change(held: Wanted, wanted: Wanted) -> Batch:
    """What leads from `held` to `wanted`: only the elements that change, and no message where none does. Another pool
    or interface of the filter takes another table.
    """
    before, after = held.filter, wanted.filter
    if (before and before[:2]) != (after and after[:2]):
        return whole(wanted)
    return messages.batch(*_changed(held, wanted))


def gone() -> Batch:
    """Takes our table away; no error where there is none."""
    return messages.batch(messages.new_table(), messages.no_table())


def _anew(wanted: Wanted) -> Iterable[bytes]:
    # Made before it is deleted, which is an error only where it is missing.
    yield from (messages.new_table(), messages.no_table(), messages.new_table())
    yield from resets.made()
    empty = None
    if wanted.filter is not None:
        yield from packets.made(wanted.filter)
        empty = wanted.filter._replace(tcp=frozenset(), udp=frozenset())
    yield from _changed(Wanted(filter=empty), wanted)


def _changed(held: Wanted, wanted: Wanted) -> Iterable[bytes]:
    yield from resets.changed(held.resets, wanted.resets)
    if held.filter is not None and wanted.filter is not None:
        yield from packets.changed(held.filter, wanted.filter)
