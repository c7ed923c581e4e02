"""Half-open connections of this machine's kernel, over its loopback."""

from __future__ import annotations

import socket

import pytest

from peer.half_open_ends import end
from tests.support import need_root_or_userns

TCP_REPAIR = 19
"""include/uapi/linux/tcp.h; a socket that is closed in repair mode says nothing to its other end."""


def connected() -> tuple[socket.socket, socket.socket, str]:
    """Two ends on different loopback addresses, and that of the second."""
    address = "127.77.0.9"
    with socket.create_server((address, 0)) as listener:
        client = socket.create_connection(listener.getsockname(), source_address=("127.77.0.10", 0), timeout=10)
        server, _ = listener.accept()
    return client, server, address


@pytest.mark.netns
def test_a_waiting_end_learns_that_the_other_one_is_gone() -> None:
    """It gets a reset at once; a connection whose other end lives goes on."""
    need_root_or_userns()
    client, server, address = connected()
    living, other, _ = connected()
    with client, living, other:
        server.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        server.close()
        assert end(frozenset({address})) == 2
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        other.sendall(b"x")
        living.settimeout(10)
        assert living.recv(1) == b"x"
        living.sendall(b"y")
        other.settimeout(10)
        assert other.recv(1) == b"y"


def test_no_connection_takes_no_right() -> None:
    """The raw socket is opened only where there is something to ask."""
    assert end(frozenset({"127.77.0.200"})) == 0
