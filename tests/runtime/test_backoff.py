from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from runtime.backoff import Backoff


def test_delays_double_up_to_the_cap() -> None:
    """Without jitter the delays are base x factor^attempt, capped."""
    backoff = Backoff(base=0.5, cap=3.0, jitter=0)
    assert [backoff.delay(attempt, Random(1)) for attempt in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


@given(st.integers(0, 10**9), st.integers())
def test_delay_stays_within_jitter_and_cap(attempt: int, seed: int) -> None:
    """No attempt number overflows, and jitter only takes away its share."""
    backoff = Backoff(base=0.1, cap=5.0, jitter=0.2)
    full = min(5.0, 0.1 * 2.0 ** min(attempt, 64))
    assert full * 0.8 <= backoff.delay(attempt, Random(seed)) <= full
