"""How far a CVM's clock is from its coordinator's, by the `Date` header of an answer (RFC 9110, 6.6.1). Pure.

The header is cut to whole seconds, and written somewhere between the request and its answer, so what is known is a
range. Only what is certain is said: an answer that took long makes no clock look wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import parsedate_to_datetime

MAX_SKEW = 300.0
"""Seconds by which a CVM that is admitted may differ from its coordinator. The nonce gives freshness; this catches a
clock that would refuse certificates: they are good from an hour before they are made (`coordinator.authority`)."""
WARN_SECONDS = 5.0
"""From here on a clock is not kept: NTP holds one to some milliseconds."""
_HEADER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Skew:
    """Seconds by which our clock is ahead of the other one: between `least` and `most`."""

    least: float
    most: float

    @property
    def certain(self) -> float:
        """The part that is certain, with its sign; 0 where the clocks may agree."""
        return max(self.least, 0.0) + min(self.most, 0.0)

    @property
    def problem(self) -> str:
        """What to say of it; empty while it is below WARN_SECONDS."""
        off = self.certain
        if abs(off) < WARN_SECONDS:
            return ""
        side = "ahead of" if off > 0 else "behind"
        # The coordinator's own clock may be the wrong one.
        text = f"this CVM's clock is {abs(off):.0f} s {side} its coordinator's; set whichever is wrong (NTP)"
        refused = f"; from {MAX_SKEW:.0f} s on no coordinator admits this CVM, and from an hour on calls fail"
        return text + refused


def measured(header: str | None, sent: float, received: float) -> Skew | None:
    """By the answer to what was `sent` then, and the moment at which it was `received` (Unix seconds of our clock).
    None where the header says nothing, or our clock was set meanwhile.
    """
    if header is None or received < sent:
        return None
    try:
        said = parsedate_to_datetime(header).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return Skew(sent - said - _HEADER_SECONDS, received - said)
