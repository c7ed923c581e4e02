"""Since when nothing has arrived from a peer although it was asked. Pure.

What counts as an arrival is what nobody can replay: the answer to a probe of ours, which has its number, and bytes that
WireGuard took from the peer, which it takes once only. A probe of the peer's own does not count: whoever holds up its
packets could send an old one again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """What one peer's link has heard. A new key, as after the peer's boot, begins anew."""

    heard_at: float | None = None
    """When something arrived last, monotonic seconds; None: nothing ever did."""
    asked: int = 0
    """Probes sent since then."""
    received: int | None = None
    """Bytes that WireGuard had taken from the peer when it was last looked at."""


def asked(silence: Silence) -> Silence:
    """A probe is sent."""
    return replace(silence, asked=silence.asked + 1)


def heard(silence: Silence, now: float) -> Silence:
    """A probe was answered."""
    return replace(silence, heard_at=now, asked=0)


def received(silence: Silence, count: int, now: float) -> Silence:
    """WireGuard has taken `count` bytes from the peer so far. Fewer than before: the device is new."""
    if count == silence.received:
        return silence
    grown = silence.received is not None and count > silence.received
    silence = replace(silence, received=count)
    return heard(silence, now) if grown else silence
