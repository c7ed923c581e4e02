"""How long to wait before trying again. Pure: the attempt and the chance are arguments."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Exponential back-off with a cap, and jitter so that many peers do not try in step."""

    base: float
    """Seconds before the first retry."""
    cap: float
    """Seconds that no delay exceeds, jitter included."""
    factor: float = 2.0
    jitter: float = 0.2
    """Share of the delay that chance may take off (0 = none)."""

    def delay(self, attempt: int, rng: Random) -> float:
        """Seconds to wait after failed attempt number `attempt` (0 is the first)."""
        # 64 doublings are beyond any cap; the bound keeps the power from overflowing on a peer that fails for days.
        full = min(self.cap, self.base * self.factor ** min(attempt, 64))
        return full * (1 - self.jitter * rng.random())
