"""Which container's process holds a socket."""

from __future__ import annotations

import os
import socket

from lab.holders import display, holders
from lab.processes import Process


def test_the_process_that_has_a_socket_open_is_named() -> None:
    """By container and program; a socket that no container's process has is left out."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as other:
        inode = os.fstat(server.fileno()).st_ino
        found = holders({"app": os.getpid()}, {inode, 1})
        assert list(found) == [inode]
        assert found[inode][0] == "app"
        assert found[inode][1]
        assert holders({}, {os.fstat(other.fileno()).st_ino}) == {}
        assert holders({"app": os.getpid()}, set()) == {}


def test_the_name_that_tells_most() -> None:
    """A Python program is named by its module, others by their own name."""
    named = Process(pid=1, parent=0, names=frozenset({"python3", "python3.11", "worker"}))
    assert display(named) == "worker"
    assert display(Process(pid=1, parent=0, names=frozenset({"python3"}))) == "python3"
    assert display(Process(pid=1, parent=0, names=frozenset())) == "?"
