"""`python -m sidecar health`: asks the running sidecar. Run every few seconds, so it loads next to nothing."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

SECONDS = 4.0
"""A container's health check has 5 s."""


def ask(status_socket: Path) -> tuple[int, str]:
    """(exit code, what to print)."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(SECONDS)
            connection.connect(str(status_socket))
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: sidecar\r\n\r\n")
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
    except OSError as error:
        return 1, f"the sidecar does not answer at {status_socket}: {error}"
    head, _, body = answer.partition(b"\r\n\r\n")
    return (0 if b" 200 " in head.split(b"\r\n")[0] else 1), body.decode(errors="replace").rstrip()


def main(state_dir: str) -> int:
    """Prints the answer of the sidecar whose state is in `state_dir`; the exit code."""
    code, text = ask(Path(state_dir) / "status.sock")
    print(text, file=sys.stdout if code == 0 else sys.stderr)
    return code
