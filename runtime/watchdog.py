"""Ends a process whose event loop stands still, so that its container starts it again.

A loop stands when something in it blocks: a lock, a file system, an endless computation. Whatever the loop supervises
is then unattended, and nobody outside is told. A thread looks at it and counts its own turns, not a clock: a process
that is stopped (SIGSTOP, a frozen container, a suspended machine) gets none, and neither does its loop.

The thread needs CPython's interpreter lock, which C code may keep for as long as it computes, a regular expression for
one. So each turn of the thread also winds up a timer of the process's own CPU time, which ends the process without the
interpreter; what was written last may be lost then. What keeps the lock and computes nothing is not found.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator

from runtime import output

STILL_SECONDS = 30.0
"""A loop that stands for so long is not waited for. Twice a lease: by then the CVM's slot is not renewed any more."""
STEP_SECONDS = 1.0
"""Between two looks."""
CODE = 70
"""Exit code: EX_SOFTWARE of sysexits.h."""


@contextlib.contextmanager
def watching(seconds: float = STILL_SECONDS, step: float = STEP_SECONDS) -> Iterator[None]:
    """Watches the running loop, whose thread is the caller's. One at a time in a process."""
    loop, over = asyncio.get_running_loop(), threading.Event()
    beats = 0
    handle: asyncio.TimerHandle

    def beat() -> None:
        nonlocal beats, handle
        beats += 1
        handle = loop.call_later(step, beat)

    def watch() -> None:
        seen, turns = beats, 0.0
        while not over.wait(step):
            _wind_up(seconds)
            turns = turns + step if beats == seen else 0.0
            seen = beats
            if turns >= seconds:
                _end(watched, seconds)

    watched = threading.get_ident()
    _arm()
    _wind_up(seconds)
    beat()
    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        handle.cancel()
        thread.join()
        _wind_up(0.0)


def _arm() -> None:
    """SIGPROF shows where each thread is, and ends the process: by C functions alone. The second is called by the
    first, and is the C library's `_exit` itself: the first process of a container is spared by a signal that nothing
    handles.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal.restype = ctypes.c_void_p
    faulthandler.unregister(signal.SIGPROF)
    libc.signal(signal.SIGPROF, ctypes.cast(libc._exit, ctypes.c_void_p))
    if (place := output.unblocked_stderr()) is not None:
        faulthandler.register(signal.SIGPROF, file=place, all_threads=True, chain=True)


def _wind_up(seconds: float) -> None:
    """The timer; 0 stops it."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _end(watched: int, seconds: float) -> None:
    """Says where the thread `watched` stands, and ends the process, children and all."""
    frame = sys._current_frames().get(watched)
    where = "".join(traceback.format_stack(frame)) if frame is not None else ""
    output.say(f"the event loop has stood still for {seconds:g} s, so this process ends; it stands at\n{where}")
    os._exit(CODE)
