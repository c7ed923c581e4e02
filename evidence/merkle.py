"""A Merkle tree over nonces: one quote answers many questions, and each asker sees that its own is in it. Pure.

Leaf: SHA-256(0x00 ‖ nonce); inner node: SHA-256(0x01 ‖ left ‖ right), so that no inner node passes for a leaf (as in
RFC 6962, section 2.1). A node without a partner moves up as it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

MAX_STEPS = 16
"""Steps of a path: a tree of 65,536 nonces has that many, and a quote answers far fewer."""
_LEAF, _NODE = b"\0", b"\1"
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step from a leaf towards the root: the neighbour, and on which side it stands."""

    side: str
    """`left` or `right`."""
    hash: str
    """32 bytes, hex."""


def leaf(nonce: bytes) -> bytes:
    """The leaf of `nonce`."""
    return hashlib.sha256(_LEAF + nonce).digest()


def tree(nonces: Sequence[bytes]) -> tuple[bytes, tuple[tuple[Step, ...], ...]]:
    """The root over `nonces` (one at least), and the path of each."""
    level = [leaf(nonce) for nonce in nonces]
    # Where each nonce's node stands in the level.
    places = list(range(len(level)))
    paths: list[list[Step]] = [[] for _ in level]
    while len(level) > 1:
        for number, place in enumerate(places):
            partner = place ^ 1
            if partner < len(level):
                side = "left" if partner < place else "right"
                paths[number].append(Step(side=side, hash=level[partner].hex()))
        level = [_above(level[at : at + 2]) for at in range(0, len(level), 2)]
        places = [place // 2 for place in places]
    return level[0], tuple(map(tuple, paths))


def climb(nonce: bytes, path: Sequence[Step]) -> bytes:
    """The root that `path` leads to from `nonce`. ValueError for what is no path."""
    if len(path) > MAX_STEPS:
        raise ValueError(f"the path has {len(path)} steps, expected {MAX_STEPS} at most")
    found = leaf(nonce)
    for number, step in enumerate(path):
        if not _HASH.fullmatch(step.hash) or step.side not in ("left", "right"):
            raise ValueError(f"step {number} of the path is no side (left, right) with 32 bytes in lower-case hex")
        other = bytes.fromhex(step.hash)
        found = _above([other, found] if step.side == "left" else [found, other])
    return found


def _above(pair: Sequence[bytes]) -> bytes:
    return hashlib.sha256(_NODE + pair[0] + pair[1]).digest() if len(pair) == 2 else pair[0]
