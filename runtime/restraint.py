"""How many lines of one kind a log gets, when somebody else decides how often they are written. Pure.

Each kind has a number of lines at once, and one more after each interval. The others are counted, and a later line of
the kind says how many there were.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

MOST_KINDS = 512
"""Kinds that are told apart; there are some 200 places that log. Further ones share one allowance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What one kind gets."""

    at_once: int
    seconds: float
    """For one more."""


@dataclass(slots=True)
class _Kind:
    allowance: Allowance
    left: float
    """Lines that may come now, as of `at`."""
    at: float
    unsaid: int = 0

    def refill(self, now: float) -> None:
        """A clock that was set back gives nothing, and takes nothing."""
        gained = max(0.0, now - self.at) / self.allowance.seconds
        self.left, self.at = min(float(self.allowance.at_once), self.left + gained), now


class Restraint:
    """Decides line by line. `now` is of any one clock, in seconds."""

    def __init__(self) -> None:
        self._kinds: dict[Hashable, _Kind] = {}
        self._unsaid: set[Hashable] = set()
        self.total = 0
        """Lines that were not let pass, ever."""

    @property
    def waits(self) -> bool:
        """Whether there is a count that no line has told yet."""
        return bool(self._unsaid)

    def passes(self, kind: Hashable, allowance: Allowance, now: float) -> int | None:
        """None: this line is not to be written. Else it is, and says how many of its kind were not since the last."""
        if kind not in self._kinds and len(self._kinds) >= MOST_KINDS:
            kind = None
        known = self._kinds.setdefault(kind, _Kind(allowance, float(allowance.at_once), now))
        known.refill(now)
        if known.left < 1.0:
            known.unsaid += 1
            self.total += 1
            self._unsaid.add(kind)
            return None
        known.left -= 1.0
        self._unsaid.discard(kind)
        unsaid, known.unsaid = known.unsaid, 0
        return unsaid

    def due(self, now: float) -> list[tuple[Hashable, int]]:
        """Kinds whose count may be told now without a line of theirs, each with it; told herewith."""
        found = []
        for kind in tuple(self._unsaid):
            known = self._kinds[kind]
            known.refill(now)
            if known.left >= 1.0:
                known.left -= 1.0
                found.append((kind, known.unsaid))
                known.unsaid = 0
                self._unsaid.discard(kind)
        return found
