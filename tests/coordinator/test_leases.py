"""Leases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.leases import Lease, LeaseError, seal, unseal

LEASE = Lease(peer_id="api-0", group="api", instance_id="i0", boot_key="k0")


def test_a_lease_is_read_by_whoever_has_the_key() -> None:
    """Any coordinator of the cluster reads what another one sealed."""
    assert unseal(seal(LEASE, b"key").reveal(), b"key") == LEASE


def test_another_key_is_refused() -> None:
    """A lease of another cluster is none."""
    with pytest.raises(LeaseError):
        unseal(seal(LEASE, b"key").reveal(), b"other")


@given(st.text(max_size=80))
def test_garbage_is_refused(text: str) -> None:
    """Anything that was not sealed is refused with the one error."""
    with pytest.raises(LeaseError):
        unseal(text, b"key")


@given(st.integers(0, 500), st.characters(codec="ascii"))
def test_no_character_can_be_changed(position: int, other: str) -> None:
    """A lease that decodes to other bytes is refused."""
    text = seal(LEASE, b"key").reveal()
    position %= len(text)
    changed = text[:position] + other + text[position + 1 :]
    try:
        assert unseal(changed, b"key") == LEASE
    except LeaseError:
        return
    # Only the unused low bits of the last character may differ: the same bytes.
    assert changed == text or position in (text.index(".") - 1, len(text) - 1)


def test_a_lease_does_not_show() -> None:
    """It is a bearer text: its repr hides it."""
    assert "api-0" not in repr(seal(LEASE, b"key"))
