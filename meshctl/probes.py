"""A program inside a CVM's container that takes JSON commands on stdin and answers on stdout, a line each."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
from typing import Any

from meshctl import runs
from meshctl.lab_commands import exec_argv

_END_SECONDS = 10.0


class ProbeError(Exception):
    """The program is gone, did not answer in time, or answered with an error; the message says which."""


class Probe:
    """A running `python3 -m MODULE` in the application container of a CVM. Ends when it is closed, or when we end."""

    def __init__(self, run: runs.Run, peer: str, module: str) -> None:
        self._name = f"{module} in {peer}"
        # A session of its own: Ctrl-C is for us, and we end it in our own time.
        self._process = subprocess.Popen(
            exec_argv(run, peer, None, ("python3", "-m", module)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(runs.CHECKOUT)},
            start_new_session=True,
        )
        self._buffer = b""

    def do(self, command: str, _seconds: float = 30.0, **fields: Any) -> Any:
        """One command; its answer. ProbeError when it failed or took longer than `_seconds`."""
        process = self._process
        assert process.stdin is not None
        line = json.dumps({"do": command, **fields}).encode() + b"\n"
        try:
            process.stdin.write(line)
            process.stdin.flush()
        except (OSError, ValueError) as error:  # ValueError: closed by us
            raise ProbeError(f"{self._name} is gone") from error
        answer = json.loads(self._line(command, time.monotonic() + _seconds))
        if "error" in answer:
            raise ProbeError(f"{self._name}: {command}: {answer['error']}")
        return answer["ok"]

    def _line(self, command: str, end: float) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                # Its answer may still come, to a question that nobody asks any more.
                self.close()
                raise ProbeError(f"{self._name}: {command} took too long")
            data = os.read(descriptor, 1 << 16)
            if not data:
                raise ProbeError(f"{self._name} ended during {command}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def close(self) -> None:
        """Ends it and all that it started."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
