"""When a peer counts as heard."""

from __future__ import annotations

from peer.silence import Silence, asked, heard, received


def test_an_answer_ends_the_silence_and_its_questions() -> None:
    """Questions are counted from the last answer on."""
    silent = asked(asked(heard(Silence(), 5.0)))
    assert (silent.heard_at, silent.asked) == (5.0, 2)
    assert heard(silent, 9.0) == Silence(heard_at=9.0)


def test_questions_alone_are_not_heard() -> None:
    """A peer that never answered was never heard."""
    assert asked(Silence()).heard_at is None


def test_bytes_that_the_tunnel_took_are_an_arrival() -> None:
    """Not the first count, which may be old, but every one that is higher than the one before."""
    first = received(asked(Silence()), 1000, 1.0)
    assert (first.heard_at, first.asked) == (None, 1)
    assert received(first, 1000, 2.0) is first
    assert received(first, 1032, 3.0) == Silence(heard_at=3.0, asked=0, received=1032)


def test_a_new_device_counts_from_zero() -> None:
    """Fewer bytes than before are no arrival, and what comes after them is one."""
    old = received(Silence(), 1000, 1.0)
    new = received(old, 0, 2.0)
    assert new.heard_at is None
    assert received(new, 148, 3.0).heard_at == 3.0
