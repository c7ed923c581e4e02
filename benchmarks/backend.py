"""The service that both meshes and the raw paths call: one thread, standard library only.

It listens on 127.0.0.1, where both Envoys deliver, and on the mesh address of its CVM, for the raw path. The first byte
of a connection says what it is for: `w` answers the ordinal of the peer ID and closes, `e` echoes, `s` swallows.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
from pathlib import Path

PORT, PLAIN_PORT = 9090, 9091
BUFFER = 1 << 20


IDENTITY = Path("/run/mesh/identity.json")


def serve(*places: tuple[str, int], ordinal: str = "0") -> None:
    """Serves at `places` until the process is ended; `ordinal`, one character, is the answer to `w`."""
    listeners = [socket.create_server(place, backlog=1024) for place in places]
    name = ordinal.encode()
    buffer = memoryview(bytearray(BUFFER))
    modes: dict[int, bytes] = {}
    with selectors.DefaultSelector() as selector:
        for listener in listeners:
            listener.setblocking(False)
            selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                peer = key.fileobj
                assert isinstance(peer, socket.socket)
                if peer in listeners:
                    _accept(peer, selector)
                    continue
                if not _answer(peer, buffer, modes, name):
                    selector.unregister(peer)
                    modes.pop(peer.fileno(), None)
                    peer.close()


def _accept(listener: socket.socket, selector: selectors.DefaultSelector) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            peer, _ = listener.accept()
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Blocking with a limit: what is written is small and the reader is there.
            peer.settimeout(5)
            selector.register(peer, selectors.EVENT_READ)


def _answer(peer: socket.socket, buffer: memoryview, modes: dict[int, bytes], name: bytes) -> bool:
    """Reads once and answers; False when the connection is done."""
    with contextlib.suppress(OSError):
        count = peer.recv_into(buffer)
        data = buffer[:count]
        if count == 0:
            return False
        mode = modes.get(peer.fileno())
        if mode is None:
            mode = modes[peer.fileno()] = bytes(data[:1])
            data = data[1:]
        if mode == b"w":
            peer.sendall(name)
            return False
        if mode == b"e" and data:
            peer.sendall(data)
        return True
    return False


if __name__ == "__main__":
    own = json.loads(IDENTITY.read_text(encoding="utf-8"))
    # Not the hostname: the slot that a CVM is given need not have the number of the CVM.
    serve(("127.0.0.1", PORT), ("127.0.0.1", PLAIN_PORT), (own["address"], PORT), ordinal=own["peer_id"][-1])
