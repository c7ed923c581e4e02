"""What the flags of a leader key say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import leader_key


@pytest.mark.parametrize("serves", [True, False])
def test_what_is_said_is_heard(serves: bool) -> None:
    """Consul keeps 64 bits."""
    said = leader_key.flags(serves=serves)
    assert leader_key.serves(said) is serves
    assert 0 <= said < 1 << 64


@given(st.one_of(st.none(), st.text(), st.integers(0, (1 << 64) - 1).filter(lambda it: it != leader_key.SERVES)))
def test_nobody_elses_flags_are_taken_for_ours(found: object) -> None:
    """An application may use them as it likes."""
    assert not leader_key.serves(found)
