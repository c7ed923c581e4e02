"""Signals that end a command, as exceptions."""

from __future__ import annotations

import os
import signal

import pytest

from meshctl import ending


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_becomes_an_exception_and_the_old_handler_comes_back(number: int) -> None:
    """Inside, the signal raises Ended with its number; afterwards the handler is the one from before."""
    before = signal.getsignal(number)
    with pytest.raises(ending.Ended) as caught, ending.catching():
        os.kill(os.getpid(), number)
    assert caught.value.number == number
    assert signal.getsignal(number) is before


def test_what_nohup_ignores_stays_ignored() -> None:
    """A caller that ignores SIGHUP is not ended by it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending.catching():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_removal_is_finished_before_the_signal_counts() -> None:
    """A signal during `held_back` is delivered at its end, not in its middle."""
    steps = []

    def remove() -> None:
        with ending.held_back():
            os.kill(os.getpid(), signal.SIGTERM)
            steps.append("removed")
        steps.append("after")

    with pytest.raises(ending.Ended), ending.catching():
        remove()
    assert steps == ["removed"]
