"""The anchor of a CVM's network namespace."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from lab import anchor


def test_mark_is_there_while_the_platform_holds_the_connection(tmp_path: Path) -> None:
    """The health mark appears when the platform says `attached`, and goes when it goes away."""
    mark, path = tmp_path / "attached", tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as platform:
        platform.bind(str(path))
        platform.listen()
        ended: list[str] = []
        holder = threading.Thread(target=lambda: ended.append(anchor.hold(str(path), "api-0", mark)), daemon=True)
        holder.start()
        connection, _ = platform.accept()
        assert connection.recv(100) == b"api-0\n"
        assert not mark.exists()
        connection.sendall(b"attached\n")
        end = time.monotonic() + 10
        while not mark.exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        connection.close()
        holder.join(10)
    assert ended == ["the platform went away"]
    assert not mark.exists()


def test_refusal_is_passed_on(tmp_path: Path) -> None:
    """What the platform answers instead is the reason, also when it has gone before it was told who asks."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as platform:
        platform.bind(str(path))
        platform.listen()

        def answer() -> None:
            connection, _ = platform.accept()
            with connection:
                connection.sendall(b"this mesh has no such CVM\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        assert anchor.hold(str(path), "x-9", tmp_path / "mark") == "this mesh has no such CVM"
        thread.join(10)


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """A call that makes no sense says how to call it."""
    assert anchor.main([]) == 2
    assert "usage" in capsys.readouterr().err
