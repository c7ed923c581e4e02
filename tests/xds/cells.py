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
    def long(self) -> bool:
        """Whether it is played only when asked for: 50 MB to a reader that is not fast, but for an orderly close."""
        return self.size == "50MB" and self.reader != "fast" and self.end != "close"

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
    ends, both = cell.ender in (me, "both"), cell.ender == "both"
    return part(
        me,
        send=cell.bytes if ends else 0,
        read=cell.reader if both or not ends else "fast",
        end=cell.end if ends else "",
        whole=cell.bytes if both and cell.end == "close" else 0,
        answer=cell.bytes if cell.end == "half-close" and not ends else 0,
        probe=not ends and cell.end != "half-close",
    )


ENDLESS = 1 << 40
"""Bytes that nobody ever sends: a side goes on until it may not."""
ENOUGH = 1_000_000
"""Bytes after which a fast reader leaves."""
UPLOAD = 3 * ENOUGH
"""Bytes that a sender sends that then waits: more than the reader takes, less than the kernels hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Torn:
    """A sender, and a reader (`read` of READERS) that leaves in the middle, by `end` of ENDS. The sender goes on
    sending (`size` is ENDLESS), or has sent all and waits for an answer."""

    sender: str
    size: int
    end: str
    read: str

    def __str__(self) -> str:
        does = "sends" if self.size == ENDLESS else "waits"
        return f"{self.sender}-{does}-{self.read}-reader-leaves-by-{self.end}"

    @property
    def reader(self) -> str:
        """The side that leaves."""
        return SIDES[self.sender == "client"]

    @property
    def signs(self) -> set[str]:
        """What the sender may be told, by a read or a write. A reader that closes at a moment when it has read all that
        came ends by FIN, and answers what comes later by RST: a sender that waits sees the former, one that sends
        EPIPE."""
        if self.read == "stop" or self.end == "reset":
            return {"ECONNRESET"}
        return {"ECONNRESET", "EPIPE" if self.size == ENDLESS else "EOF"}

    def parts(self) -> dict[str, dict[str, Any]]:
        """What each side does."""
        return {
            self.sender: part(self.sender, send=self.size),
            # One that stopped reads one block when it is told to go on, and leaves with the others unread.
            self.reader: part(self.reader, read=self.read, end=self.end, whole=ENOUGH if self.read == "fast" else 1),
        }


def torn() -> list[Torn]:
    """Every way to leave a sender."""
    every = itertools.product(SIDES, (ENDLESS, UPLOAD), ("close", "reset", "kill"), ("fast", "stop"))
    return [Torn(sender=a, size=b, end=c, read=d) for a, b, c, d in every]


def part(me: str, **changes: Any) -> dict[str, Any]:
    """What a side does (`tests.xds.party`) that is silent and ends after its peer, but for `changes`."""
    silent = {"send": 0, "answer": 0, "read": "fast", "end": "", "whole": 0, "probe": False, "bound": BOUND}
    return {"me": me, "peer": SIDES[me == "client"], **silent, **changes}


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
        # The kernel tells an error once: a read after the write that was told of it finds an end.
        f"{SOME}, EOF, write: ECONNRESET",
        f"{SOME}, ECONNRESET",
        f"{SOME}, ECONNRESET, write: EPIPE",
    },
}
"""What each side may observe when both end."""
