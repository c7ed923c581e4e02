"""The listening sockets of a network namespace."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from sidecar import listeners
from sidecar.backends import Listener
from tests.sidecar.test_backends import HEAD, ROW


def test_reading_ends_at_the_first_socket_that_does_not_listen(tmp_path: Path) -> None:
    """Listening sockets come first, so what a busy CVM has of connections is not read; a table may be missing."""
    table = tmp_path / "tcp"
    rows = [ROW.format("0100007F:1F90", "0A", 1), ROW.format("0100007F:1F91", "01", 2)]
    table.write_text(HEAD + "".join([*rows, ROW.format("0100007F:1F92", "0A", 3)]))
    assert [item.inode for item in listeners.read((table, tmp_path / "none"))] == [1]


def test_the_sockets_of_this_machine_are_found() -> None:
    """A real listening socket, IPv4 and IPv6, is found with its address, port and inode."""
    with socket.create_server(("127.0.0.1", 0)) as four, socket.socket(socket.AF_INET6) as six:
        held = [(four, "127.0.0.1")]
        try:
            six.bind(("::1", 0))
            six.listen()
        except OSError:
            pass
        else:
            held.append((six, "::1"))
        found = listeners.read()
        for item, address in held:
            wanted = Listener(address=address, port=item.getsockname()[1], inode=os.fstat(item.fileno()).st_ino)
            assert wanted in found
