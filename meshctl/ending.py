"""Signals that end a command while it makes something: they become exceptions, so that what is half made is removed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGHUP)
"""A closed terminal sends SIGHUP. SIGINT has its exception, KeyboardInterrupt."""


class Ended(BaseException):
    """The process was told to end by signal `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _raise(number: int, _frame: FrameType | None) -> None:
    raise Ended(number)


@contextmanager
def catching() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise `Ended`. What the caller ignores (nohup) stays ignored."""
    before = {number: signal.getsignal(number) for number in _ENDING}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held_back() -> Iterator[None]:
    """Inside, neither they nor SIGINT interrupt: for a short removal that must be finished. They count at its end.

    For the main thread. Blocked signals alone would not do: the kernel hands one that this thread blocks to any other
    thread, and Python runs the handler here all the same. They are blocked too, as the mask is what children inherit: a
    Ctrl-C, which goes to all of them, does not end the program that does the removing.
    """
    numbers = (signal.SIGINT, *_ENDING)
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
