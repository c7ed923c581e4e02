"""Which virtual addresses to add and which to remove. Pure.

The invariant, which holds after every prefix of a plan: no wanted address goes away, and no address that is not ours
is touched. Planning again from any point between gives the rest of the same plan.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Add:
    """Put `address` on loopback, marked as ours."""

    address: str


@dataclass(frozen=True, slots=True)
class Remove:
    """Take `address`, which is ours, off loopback."""

    address: str


Operation = Add | Remove


def plan(present: frozenset[str], wanted: frozenset[str], owned: frozenset[str]) -> tuple[Operation, ...]:
    """What leads from the addresses `present` on loopback to the `wanted` ones; `owned` are those that carry our mark.

    A wanted address that someone else has already put on loopback serves as well: it is not added, and, as it is not
    ours, never removed. Additions come first, so that a new route waits for nothing.
    """
    additions = tuple(Add(address) for address in _ordered(wanted - present))
    return additions + tuple(Remove(address) for address in _ordered((owned & present) - wanted))


def _ordered(addresses: frozenset[str]) -> list[str]:
    return sorted(addresses, key=ipaddress.IPv4Address)
