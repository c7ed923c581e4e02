"""Admitted keys, as coordinators give them to a rendezvous: values, JSON, and how several sets become one. Pure."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from peer.spec import LinkError, check_address, check_key


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittedKey:
    """One admitted CVM."""

    public_key: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySet:
    """What one coordinator says."""

    version: int
    peers: tuple[AdmittedKey, ...]


class KeySource(Protocol):
    """One coordinator."""

    async def watch(self, seen: int) -> KeySet:
        """The newest set as soon as its version is not `seen`, or after a while. OSError or LinkError: not to be had.

        Saying `seen` tells the coordinator that this version is applied here.
        """


def decode_keys(tree: Mapping[str, Any], pool: str) -> KeySet:
    """`{"version", "peers": [{"public_key", "address"}]}`; LinkError names what does not fit."""
    try:
        version, rows = tree["version"], tree["peers"]
        peers = tuple(AdmittedKey(public_key=row["public_key"], address=row["address"]) for row in rows)
    except (KeyError, TypeError) as error:
        raise LinkError(f"the coordinator's keys are not what they should be: {error!r}") from error
    if not isinstance(version, int):
        raise LinkError(f"the keys' version is {reprlib.repr(version)}, expected an integer")
    for peer in peers:
        check_key(peer.public_key)
        check_address(peer.address, pool)
    return KeySet(version=version, peers=peers)


def unite(sets: Sequence[KeySet], reserved: str) -> dict[str, str]:
    """Address by public key over all sets, the newest news first in `sets`.

    Where two coordinators name different keys for one address (a CVM has just booted anew), the newer news counts: two
    keys cannot share an address. `reserved` is the rendezvous' own address, which nobody gets.
    """
    keys: dict[str, str] = {}
    taken = {reserved}
    for keyset in sets:
        for peer in keyset.peers:
            if peer.public_key not in keys and peer.address not in taken:
                keys[peer.public_key] = peer.address
                taken.add(peer.address)
    return keys
