"""Is a tunnel up? Judged from the age of its last handshake. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

REJECT_AFTER = 180.0
"""Seconds after which WireGuard drops a session's packets (WireGuard paper, 6.1)."""
REKEY_AFTER = 120.0
"""Seconds after which WireGuard renews a session that is in use."""
FRESH = REKEY_AFTER + 15.0 + 5.0
"""A link with keep-alives renews at 120 s; 15 s of silence and one 5 s retry later something is wrong."""


class Health(Enum):
    """How a tunnel does."""

    NEVER = "never"
    """No handshake yet."""
    UP = "up"
    STALE = "stale"
    """The session still carries packets, but was not renewed in time."""
    DOWN = "down"
    """The session is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkStatus:
    """One peer's link, for status and logs."""

    peer_id: str
    public_key: str
    path: str
    """`direct`, `relay` or `none`."""
    health: Health
    handshake_age_s: float | None
    """Seconds since the last handshake; None before the first."""
    endpoint: str | None
    round_trip_s: float | None
    """Seconds of the last probe on the path in use."""
    mtu: int
    """Bytes of the largest IPv4 packet inside the tunnel, in our direction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    """When one peer was heard, on whichever way."""

    peer_id: str
    public_key: str
    address: str
    """Its mesh address."""
    heard_at: float | None
    """When something arrived from it last that nobody can replay, monotonic seconds; None: nothing ever did."""
    asked: int
    """Probes sent to it since then."""
    restarts: int = 0
    """How often it seems to have restarted while it kept its key: connections of before may be half-open."""


def handshake_age(latest_handshake: float, now_unix: float) -> float | None:
    """Seconds since `latest_handshake` (both unix seconds); None when there was none."""
    # The clock of a CVM may be set back by its host; an age below zero would look fresh for ever.
    return None if latest_handshake <= 0 else max(0.0, now_unix - latest_handshake)


def health(age: float | None) -> Health:
    """The health of a link whose last handshake is `age` seconds old."""
    if age is None:
        return Health.NEVER
    if age < FRESH:
        return Health.UP
    return Health.STALE if age < REJECT_AFTER else Health.DOWN
