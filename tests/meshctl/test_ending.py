"""Signals that end a command, as exceptions."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

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


@pytest.fixture(params=["alone", "beside a thread"])
def _other_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """A thread that does not block the signals, so that the kernel may hand them to it."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    if request.param != "alone":
        thread.start()
    yield
    end.set()
    if thread.ident is not None:
        thread.join()


@pytest.fixture
def _python_handles_interrupts() -> Iterator[None]:
    """As in a program: a worker of the test run leaves SIGINT to the process that runs the workers."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_other_thread", "_python_handles_interrupts")
@pytest.mark.parametrize(
    ("number", "end"),
    [(signal.SIGTERM, ending.Ended), (signal.SIGHUP, ending.Ended), (signal.SIGINT, KeyboardInterrupt)],
)
def test_a_removal_is_finished_before_the_signal_counts(number: int, end: type[BaseException]) -> None:
    """A signal during `held_back` counts at its end, not in its middle, whichever thread the kernel gives it to."""
    steps = []

    def remove() -> None:
        with ending.held_back():
            os.kill(os.getpid(), number)
            time.sleep(0.01)  # not a wait for anything: room for a handler that runs too early
            steps.append("removed")
        steps.append("after")

    with pytest.raises(end), ending.catching():
        remove()
    assert steps == ["removed"]


def test_a_program_that_removes_is_not_ended_by_the_terminal() -> None:
    """What is started during `held_back` has the signals blocked."""
    with ending.held_back():
        status = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
    blocked = int(status.split("SigBlk:")[1].split()[0], 16)
    assert all(blocked & 1 << number - 1 for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
