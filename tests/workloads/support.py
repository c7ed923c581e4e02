"""Servers of the demo programs in this process, and interfaces inside a namespace that a test made."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from workloads.server import Paths, Server


@contextmanager
def serving(paths: Paths, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """A server with `paths` on a free port of loopback, over HTTPS where there is `tls`."""
    made = Server(("127.0.0.1", 0), paths)
    if tls is not None:
        # The handshake is in the thread of the connection, as of a server that is in use.
        made.socket = tls.wrap_socket(made.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        made.server_close()
        thread.join(10)


@contextmanager
def silent() -> Iterator[str]:
    """The base URL of a listener that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def url(server: Server) -> str:
    """Its base URL."""
    return f"http://127.0.0.1:{server.server_port}"


def add_interface(netns: str, name: str, address: str, gateway: str | None = None) -> None:
    """One end of a veth pair with `address`/24; its other end stays in the same namespace."""
    from pyroute2 import NetNS

    with NetNS(netns) as link:
        link.link("add", ifname=name, kind="veth", peer=f"{name[:12]}-p")
        for end in (name, f"{name[:12]}-p"):
            link.link("set", index=link.link_lookup(ifname=end)[0], state="up")
        link.addr("add", index=link.link_lookup(ifname=name)[0], address=address, prefixlen=24)
        if gateway is not None:
            link.route("add", dst="default", gateway=gateway)
