"""When Docker calls a container unhealthy."""

from __future__ import annotations

import pytest

from topology.health import HealthCheck, duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2s", 2), ("1h30m", 5400), ("1.5s", 1.5), ("100ms", 0.1), ("", None), ("24", None), ("1d", None), (5, None)],
)
def test_durations_of_compose(text: object, seconds: float | None) -> None:
    """Numbers with units, one after the other; a number alone is none."""
    assert duration(text) == seconds


def test_a_container_is_given_up_after_its_start_period_and_its_retries() -> None:
    """Failures within the start period are not counted; then each check in a row has to fail."""
    assert HealthCheck(interval=2, retries=150, start_period=86400).gives_up_after == 86400 + 300
    assert HealthCheck().gives_up_after == 90
