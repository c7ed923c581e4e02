"""Progress on a terminal and in a log, and running a program while its output is read. Standard library only.

On a terminal one line is rewritten; elsewhere (CI, a pipe) a plain line appears at most every 20 seconds.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

PLAIN_INTERVAL = 20.0
"""Seconds between plain progress lines: often enough that a CI system sees life, rare enough to read the log."""
PLAIN_WIDTH = 120
"""Columns of a plain progress line; what pip prints about itself can be a page long."""
TAIL_LINES = 60
"""Lines of output that are kept to explain a failure."""


def fit(text: str, width: int) -> str:
    """`text` in at most so many columns; what was cut off shows. A word is left out whole, unless it is most of it."""
    if len(text) <= width:
        return text
    kept = text[: max(width - 2, 0)]
    whole = kept if text[len(kept)] == " " else kept.rpartition(" ")[0]
    return f"{whole.rstrip()} …" if len(whole) > width // 2 else f"{text[: max(width - 1, 0)]}…"


class Progress(Protocol):
    """Where a long step tells how far it is."""

    def update(self, text: str) -> None:
        """Where the step is now; replaces the previous update."""

    def line(self, text: str) -> None:
        """A fact worth keeping, such as the end of a step."""


class Silent:
    """Tells nobody."""

    def update(self, text: str) -> None:
        """Drops the text."""

    def line(self, text: str) -> None:
        """Drops the text."""


class Console:
    """Progress on `stream` (default stderr, so that `--json` on stdout stays clean)."""

    def __init__(self, stream: IO[str] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._clock = clock
        self._last = clock() - PLAIN_INTERVAL
        self._open = False

    def update(self, text: str) -> None:
        """Rewrites the terminal's line, or prints a plain line when the last one is old enough."""
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r\x1b[K{fit(text, width)}")
            self._open = True
        elif self._clock() - self._last >= PLAIN_INTERVAL:
            self._stream.write(f"{fit(text, PLAIN_WIDTH)}\n")
            self._last = self._clock()
        self._stream.flush()

    def line(self, text: str) -> None:
        """Ends the rewritten line, if any, and prints `text` for good."""
        self._stream.write(f"\r\x1b[K{text}\n" if self._open else f"{text}\n")
        self._open = False
        self._last = self._clock()
        self._stream.flush()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a program ended."""

    code: int
    """Exit code; negative for a signal."""
    tail: tuple[str, ...]
    """The last lines that it printed, stdout and stderr together."""
    seconds: float
    """How long it ran."""


def stream(
    argv: Sequence[str],
    *,
    on_tick: Callable[[str, float], None],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log: IO[str] | None = None,
    stdin: IO[bytes] | None = None,
) -> Outcome:
    """Runs `argv` and calls `on_tick(line, seconds so far)` for each line, and each second with "".

    `stdin` is a file that it reads; without one it has no input. The program is killed when this call is left by an
    exception (an interrupt, for instance).
    """
    started = time.monotonic()
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    with subprocess.Popen(
        argv, stdin=stdin or subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, cwd=cwd
    ) as process:
        assert process.stdout is not None
        try:
            for line in _Lines(process.stdout.fileno()):
                if line:
                    tail.append(line)
                    if log is not None:
                        log.write(line + "\n")
                on_tick(line, time.monotonic() - started)
        except BaseException:
            process.kill()
            raise
    return Outcome(code=process.returncode, tail=tuple(tail), seconds=time.monotonic() - started)


class _Lines:
    """Iterates over the lines that arrive on a descriptor, and yields "" for each second without one."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = b""
        self._ready: deque[str] = deque()
        self._ended = False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        while not self._ready:
            if self._ended:
                raise StopIteration
            if not select.select([self._descriptor], [], [], 1.0)[0]:
                return ""
            self._take(os.read(self._descriptor, 65536))
        return self._ready.popleft()

    def _take(self, data: bytes) -> None:
        if not data:
            self._ended = True
            data = b"\n" if self._buffer else b""
        # A carriage return redraws a line; what it leaves behind is the part worth showing.
        *complete, self._buffer = (self._buffer + data).replace(b"\r", b"\n").split(b"\n")
        self._ready.extend(text for text in (part.decode(errors="replace").rstrip() for part in complete) if text)


def elapsed(seconds: float) -> str:
    """`seconds` as a person reads it: `12 s`, `3 min 07 s`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
