"""Challenges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.nonces import NONCE_BYTES, Challenges, NonceError

RANDOM = bytes(range(8))


def test_a_nonce_is_redeemed_once() -> None:
    """The second use of a nonce is refused."""
    challenges = Challenges(b"k" * 32)
    nonce = challenges.issue(RANDOM, 10.0)
    assert len(nonce) == NONCE_BYTES
    challenges.redeem(nonce, 11.0)
    with pytest.raises(NonceError, match="used before"):
        challenges.redeem(nonce, 12.0)


def test_a_nonce_expires() -> None:
    """After its lifetime a nonce is refused, at its end it is not."""
    challenges = Challenges(b"k" * 32, lifetime=60.0)
    late, last = challenges.issue(RANDOM, 10.0), challenges.issue(bytes(8), 10.0)
    challenges.redeem(last, 70.0)
    with pytest.raises(NonceError, match="older than 60 s"):
        challenges.redeem(late, 70.01)


def test_a_nonce_of_another_coordinator_is_refused() -> None:
    """The key binds a nonce to the process that issued it."""
    nonce = Challenges(b"a" * 32).issue(RANDOM, 10.0)
    with pytest.raises(NonceError, match="not issued by this coordinator"):
        Challenges(b"b" * 32).redeem(nonce, 10.0)


@given(st.binary(max_size=64))
def test_garbage_is_refused(data: bytes) -> None:
    """Bytes that were not issued are refused, whatever their length."""
    with pytest.raises(NonceError):
        Challenges(b"k" * 32).redeem(data, 10.0)


@given(st.integers(0, NONCE_BYTES * 8 - 1))
def test_each_bit_counts(bit: int) -> None:
    """A nonce with one bit changed is refused."""
    challenges = Challenges(b"k" * 32)
    nonce = bytearray(challenges.issue(RANDOM, 10.0))
    nonce[bit // 8] ^= 1 << bit % 8
    with pytest.raises(NonceError):
        challenges.redeem(bytes(nonce), 10.0)


def test_memory_is_bounded_and_comes_back() -> None:
    """When too many answers are remembered, more are refused until the old ones have expired."""
    challenges = Challenges(b"k" * 32, lifetime=60.0, capacity=2)
    nonces = [challenges.issue(bytes([n]) * 8, 0.0) for n in range(3)]
    challenges.redeem(nonces[0], 0.0)
    challenges.redeem(nonces[1], 0.0)
    assert challenges.full
    with pytest.raises(NonceError, match="too many"):
        challenges.redeem(nonces[2], 1.0)
    fresh = challenges.issue(RANDOM, 61.0)
    assert not challenges.full
    challenges.redeem(fresh, 61.0)


def test_the_wrong_amount_of_chance_is_our_bug() -> None:
    """A caller that passes too few random bytes is told so."""
    with pytest.raises(AssertionError):
        Challenges(b"k" * 32).issue(b"", 0.0)
