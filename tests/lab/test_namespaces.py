"""System calls of the lab's containers: what tests/lab/test_container.py does not show."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from lab import namespaces
from tests.support import network_namespace


def test_sockets_made_inside_stay_there() -> None:
    """A socket bound inside a namespace listens there, and the thread is home again afterwards."""
    home = Path("/proc/thread-self/ns/net").readlink()
    with network_namespace() as name:
        with namespaces.inside_network(f"/run/netns/{name}"):
            inner = socket.create_server(("127.0.0.1", 0))
        assert Path("/proc/thread-self/ns/net").readlink() == home
        with inner, socket.socket() as outer, pytest.raises(ConnectionRefusedError):
            outer.connect(("127.0.0.1", inner.getsockname()[1]))


def test_error_inside_comes_home_too() -> None:
    """An exception inside the block leaves the thread where it was."""
    home = Path("/proc/thread-self/ns/net").readlink()
    with network_namespace() as name, pytest.raises(ZeroDivisionError), namespaces.inside_network(f"/run/netns/{name}"):
        _ = 1 / 0
    assert Path("/proc/thread-self/ns/net").readlink() == home


def test_refused_call_names_itself() -> None:
    """A call that the kernel refuses says what it was."""
    with pytest.raises(OSError, match=r"setns\(/dev/null\)"):
        namespaces.setns("/dev/null")
