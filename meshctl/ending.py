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
    """Inside, neither they nor SIGINT interrupt: for a short removal that must be finished."""
    numbers = {signal.SIGINT, *_ENDING}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
