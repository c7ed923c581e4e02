"""What this process and its children write to stdout and stderr, behind a bounded queue.

Who reads these may be slow, stopped or gone, and a log's disk may be full. A program that writes there itself then
stands in a `write` until somebody reads. So `begin` puts a pipe in the place of both descriptors, for this process,
libraries in C and every child alike. One thread empties the pipe into a queue, another one writes the queue to where
the output went before. Only that thread ever waits. What finds no room is dropped, by the line, and counted.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import logging
import os
import select
import struct
import termios
import threading
import time
from collections import deque

from runtime.log import KeyValueFormatter

MOST_BYTES = 1 << 20
"""Of lines that wait: some 5,000 of ours, minutes of a healthy process."""
LINE_BYTES = 64
"""What a line takes beside its text in CPython, so that many short ones are bounded too."""
LONGEST_LINE = 1 << 16
"""A longer one is handed on in pieces."""
AGAIN_SECONDS = 1.0
"""After a write that failed, as on a full disk: no line is tried before."""
EXIT_SECONDS = 1.0
"""A process that ends waits so long for what it has written. A reader that is there takes milliseconds."""
_PIPE_BYTES = 1 << 20
"""Room for children while this process is busy; the most that the kernel grants everybody (pipe(7))."""
_POLL_SECONDS = 0.005
_BEGUN: dict[int, Outlet] = {}
"""By descriptor. These are the whole process's, and so is this."""
LOST = "lines lost: this output is read too slowly, or cannot be written"


class Outlet:
    """Writes lines to the descriptor `target`; `put` never waits for it."""

    def __init__(self, target: int, most: int = MOST_BYTES) -> None:
        self.target = target
        self._most = most
        self._source: int | None = None
        self._changed = threading.Condition()
        self._lines: deque[tuple[bytes, int]] = deque()
        """Each with the number of lost lines that it tells of, 0 for any other."""
        self._size = 0
        self._rest = b""
        """The begin of a line, until its end comes."""
        self._untold = 0
        """Lines that were lost since the output last said so."""
        self._writing = False
        self._torn = False
        """The last write ended in the middle of a line."""
        self.lost = 0
        """Lines that nobody will see."""

    def start(self, source: int | None = None) -> None:
        """Begins to write, and to take what comes from the descriptor `source` until its end, which closes it."""
        threading.Thread(target=self._write, name="output", daemon=True).start()
        if source is not None:
            self._source = source
            threading.Thread(target=self._read, args=(source,), name="output pipe", daemon=True).start()

    def put(self, line: bytes) -> None:
        """Has `line` written, with the line break at its end, or counts it as lost."""
        with self._changed:
            self._put(line)

    def drain(self, seconds: float) -> bool:
        """Whether all that was written here before is out after `seconds`, or sooner."""
        end = time.monotonic() + seconds
        while True:
            with self._changed:
                if not self._unread():
                    rest, self._rest = self._rest, b""
                    if rest:
                        self._put(rest)
                    if not (self._lines or self._writing or self._untold):
                        return True
            if time.monotonic() > end:
                return False
            time.sleep(_POLL_SECONDS)

    def _put(self, line: bytes) -> None:
        if self._size + len(line) + LINE_BYTES > self._most:
            self._lose()
        else:
            if self._untold:
                self._enqueue(*self._account())
            self._enqueue(line, 0)
        self._changed.notify()

    def _enqueue(self, line: bytes, accounts_for: int) -> None:
        self._lines.append((line, accounts_for))
        self._size += len(line) + LINE_BYTES

    def _lose(self) -> None:
        self._untold += 1
        self.lost += 1

    def _account(self) -> tuple[bytes, int]:
        """The line that says how many were lost since the one before, and that number."""
        count, self._untold = self._untold, 0
        record = logging.makeLogRecord({"name": __name__, "levelname": "WARNING", "msg": LOST, "count": count})
        return KeyValueFormatter().format(record).encode() + b"\n", count

    def _unread(self) -> bool:
        if self._source is None:
            return False
        try:
            answer = fcntl.ioctl(self._source, termios.FIONREAD, b"\0" * 4)
        except OSError:
            return False
        return bool(struct.unpack("i", answer)[0])

    def _read(self, source: int) -> None:
        ready = select.poll()
        ready.register(source, select.POLLIN)
        while True:
            ready.poll()
            # In one step with putting it into the queue: what is in neither would be left behind at the end.
            with self._changed:
                data = os.read(source, LONGEST_LINE)
                *lines, self._rest = (self._rest + data).split(b"\n")
                for line in lines:
                    self._put(line + b"\n")
                if self._rest and (not data or len(self._rest) >= LONGEST_LINE):
                    rest, self._rest = self._rest, b""
                    self._put(rest)
                if not data:
                    self._source = None
                    os.close(source)
                    return

    def _write(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                while not (self._lines or self._untold):
                    self._changed.wait()
                if not self._lines:
                    self._enqueue(*self._account())
                line, accounts_for = self._lines.popleft()
                self._size -= len(line) + LINE_BYTES
                self._writing = True
            if self._written(line):
                continue
            with self._changed:
                if accounts_for:
                    self._untold += accounts_for
                else:
                    self._lose()
            time.sleep(AGAIN_SECONDS)

    def _written(self, line: bytes) -> bool:
        left = b"\n" + line if self._torn else line
        try:
            while left:
                try:
                    left = left[os.write(self.target, left) :]
                    self._torn = bool(left)
                except BlockingIOError:
                    # Somebody else has made it so, for it is shared.
                    select.select((), (self.target,), ())
        except OSError:
            return False
        return True


def begin() -> None:
    """Does so for the rest of this process's life. Children that are started afterwards inherit it. To be called once,
    when the process has decided to run: the threads stay.
    """
    outlets: dict[tuple[int, int], tuple[Outlet, int]] = {}
    for number in (1, 2):
        try:
            place = os.fstat(number)
        except OSError:
            # Closed by whoever started us: there is nothing to write to.
            continue
        # One file for both: the order stays as it is written.
        key = (place.st_dev, place.st_ino)
        if key not in outlets:
            source, sink = os.pipe()
            with contextlib.suppress(OSError):
                fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            outlet = Outlet(os.dup(number))
            outlet.start(source)
            outlets[key] = outlet, sink
        os.dup2(outlets[key][1], number)
        _BEGUN[number] = outlets[key][0]
    for outlet, sink in outlets.values():
        os.close(sink)
        atexit.register(outlet.drain, EXIT_SECONDS)


def lines_lost() -> int:
    """How many lines of this process and its children nobody will see."""
    return sum(outlet.lost for outlet in set(_BEGUN.values()))


def say(text: str) -> None:
    """`text` on stderr, for a process that ends at once; waits EXIT_SECONDS at most for whoever reads."""
    outlet = _BEGUN.get(2)
    if outlet is None:
        outlet = Outlet(2)
        outlet.start()
    outlet.put(text.encode())
    outlet.drain(EXIT_SECONDS)


def unblocked_stderr() -> int | None:
    """A descriptor of where stderr leads, for whom writes without any thread: it takes what there is room for, and
    never waits. None where there is none, as for a socket.
    """
    target = _BEGUN[2].target if 2 in _BEGUN else 2
    try:
        return os.open(f"/proc/self/fd/{target}", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
