"""Link health."""

from __future__ import annotations

import pytest

from peer.link import Health, handshake_age, health


@pytest.mark.parametrize(
    ("age", "wanted"),
    [(None, Health.NEVER), (0.0, Health.UP), (120.0, Health.UP), (150.0, Health.STALE), (180.0, Health.DOWN)],
)
def test_health_follows_the_handshake(age: float | None, wanted: Health) -> None:
    """Sessions are renewed after 120 s and end after 180 s."""
    assert health(age) is wanted


def test_ages() -> None:
    """No handshake has no age, and a clock set back makes none negative."""
    assert handshake_age(0, 1000.0) is None
    assert handshake_age(990.0, 1000.0) == 10.0
    assert handshake_age(1010.0, 1000.0) == 0.0
