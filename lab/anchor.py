"""The first container of a CVM on a Docker engine: its network namespace is the CVM's.

`python -m lab.anchor SOCKET PEER_ID` tells the platform of the lab that the namespace is there; the platform knows
which one it is from the caller's process ID (SO_PEERCRED). While the connection stands the CVM is plugged in; when the
platform comes back after an end, it is plugged in again. Standard library only.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType

ATTACHED = Path("/run/attached")
"""There while the network is: the container's health check."""
_PAUSE = 0.1


def hold(path: str, peer_id: str, mark: Path = ATTACHED) -> str:
    """One connection, from its start to its end; returns why it ended. OSError when there is no platform."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        # A platform that refuses may have answered and gone already: what it said is the reason.
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(peer_id.encode() + b"\n")
        answer = _line(connection)
        if answer != "attached":
            return answer or "the platform went away"
        try:
            mark.touch()
            _line(connection)
        finally:
            mark.unlink(missing_ok=True)
    return "the platform went away"


def _line(connection: socket.socket) -> str:
    data = b""
    with contextlib.suppress(ConnectionError):
        while not data.endswith(b"\n"):
            chunk = connection.recv(4096)
            if not chunk:
                break
            data += chunk
    return data.decode(errors="replace").strip()


def _stop(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def main(argv: list[str]) -> int:
    """Runs until a signal; the exit code."""
    if len(argv) != 2:
        print("usage: lab.anchor SOCKET PEER_ID", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    told = ""
    while True:
        try:
            reason = hold(argv[0], argv[1])
        except OSError as error:
            reason = f"no platform at {argv[0]}: {error.strerror}"
        if reason != told:
            print(f"{argv[1]}: {reason}", file=sys.stderr, flush=True)
            told = reason
        time.sleep(_PAUSE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
