"""The conversations of the transparency suite, and what each side of each has to observe. Pure.

What has to be observed is what Linux' TCP does between two sockets of one machine. It is written down once, and both
runs, directly and through a route, are held against it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

SIZES = {"nothing": 0, "1B": 1, "64KiB": 1 << 16, "5MB": 5_000_000, "50MB": 50_000_000}
ENDERS = ("client", "server", "both")
ENDS = ("close", "half-close", "reset", "kill")
READERS = ("fast", "slow", "stop")
SIDES = ("client", "server")
BOUND = 60
"""Seconds after which a side gives up: far longer than any conversation takes on a busy machine."""
GONE = "gone by itself"
"""How it ends for a side that closes, by FIN or RST: it observes nothing afterwards."""
SOME = "a beginning"
"""Bytes that are right and may be fewer than were sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Who ends first, how, after how many bytes (`size` of SIZES), towards what reader."""

    ender: str
    end: str
    size: str
    reader: str

    def __str__(self) -> str:
        return f"{self.ender}-{self.end}-{self.size}-{self.reader}"

    @property
    def bytes(self) -> int:
        """Bytes that whoever ends sends before it does."""
        return SIZES[self.size]


def cells() -> list[Cell]:
    """All of them. Two killed processes observe nothing and are not one."""
    every = itertools.product(ENDERS, ENDS, SIZES, READERS)
    return [Cell(ender=a, end=b, size=c, reader=d) for a, b, c, d in every if (a, b) != ("both", "kill")]


def plan(cell: Cell, me: str) -> dict[str, Any]:
    """What the side `me` does (`tests.xds.party`)."""
    ends = cell.ender in (me, "both")
    both = cell.ender == "both"
    return {
        "me": me,
        "peer": SIDES[me == "client"],
        "send": cell.bytes if ends else 0,
        "read": cell.reader if both or not ends else "fast",
        "end": cell.end if ends else "",
        "whole": cell.bytes if both and cell.end == "close" else 0,
        "answer": cell.bytes if cell.end == "half-close" and not ends else 0,
        "probe": not ends and cell.end != "half-close",
        "bound": BOUND,
    }


def seen(cell: Cell, saw: dict[str, Any], peer_sent: int) -> str:
    """What a side observed, in words. `peer_sent` is how many bytes the peer handed to its kernel."""
    if "failed" in saw:
        return str(saw["failed"])
    if not saw["intact"]:
        return f"other bytes than were sent, within the first {saw['got']}"
    amount = "all" if saw["got"] == peer_sent else f"{saw['got']} of {peer_sent} bytes"
    if cell.end == "reset" and saw["got"] <= peer_sent:
        # A reset overtakes what was sent before it: how much arrives is chance, in plain TCP as well.
        amount = SOME
    words = [amount, saw["end"] or GONE]
    if saw["write_error"]:
        words.append(f"write: {saw['write_error']}")
    if saw["after"]:
        words.append(f"afterwards: {saw['after']}")
    return ", ".join(words)


def demanded(cell: Cell) -> dict[str, set[str]]:
    """What each side may observe, by side; a side that was killed observes nothing and is left out."""
    if cell.ender == "both":
        return dict.fromkeys(SIDES, _BOTH[cell.end])
    other = SIDES[cell.ender == "client"]
    if cell.end == "kill":
        return {other: _OTHER[cell.end]}
    return {cell.ender: _ENDER[cell.end], other: _OTHER[cell.end]}


_ENDER = {"close": {f"all, {GONE}"}, "half-close": {"all, EOF"}, "reset": {f"{SOME}, {GONE}"}}
"""What the side observes that ends; the other one sends something after a half-close only."""
_OTHER = {
    # After FIN a write is answered by RST, and the next write fails with EPIPE (Linux, tcp_reset in tcp_input.c).
    "close": {"all, EOF, afterwards: EPIPE"},
    "kill": {"all, EOF, afterwards: EPIPE"},
    "half-close": {"all, EOF"},
    "reset": {f"{SOME}, ECONNRESET, afterwards: EPIPE"},
}
"""What the other side observes."""
_BOTH = {
    "close": {f"all, {GONE}"},
    "half-close": {"all, EOF"},
    # Whoever is first is gone; the other one is reset while it reads or writes, or is gone as well.
    "reset": {
        f"{SOME}, {GONE}",
        f"{SOME}, {GONE}, write: ECONNRESET",
        f"{SOME}, {GONE}, write: EPIPE",
        f"{SOME}, ECONNRESET",
        f"{SOME}, ECONNRESET, write: EPIPE",
    },
}
"""What each side may observe when both end."""
