"""Leases."""

from __future__ import annotations

import string
from dataclasses import replace

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
    """Not the last one of a part either, some of whose bits base64 throws away."""
    text = seal(LEASE, b"key").reveal()
    position %= len(text)
    changed = text[:position] + other + text[position + 1 :]
    if changed != text:
        with pytest.raises(LeaseError):
            unseal(changed, b"key")


@pytest.mark.parametrize("boot_key", ["k", "k0", "k01"])
def test_a_lease_has_one_text(boot_key: str) -> None:
    """Base64 has several for the same bytes: padded or not, with other unused bits, in the other alphabet."""
    text = seal(replace(LEASE, boot_key=boot_key), b"key").reveal()
    parts = text.split(".")
    for n, part in enumerate(parts):
        texts = {part + "=" * (-len(part) % 4), part.replace("-", "+"), part.replace("_", "/"), part + "\n"}
        texts |= {part[:-1] + last for last in string.ascii_letters + string.digits + "-_+/"}
        for other in texts - {part}:
            with pytest.raises(LeaseError):
                unseal(".".join([*parts[:n], other, *parts[n + 1 :]]), b"key")


def test_a_lease_does_not_show() -> None:
    """It is a bearer text: its repr hides it."""
    assert "api-0" not in repr(seal(LEASE, b"key"))
